//! The CRI server, as the kubelet speaks to it: gRPC on a unix socket (CRI v1), and nothing else.

mod cache;
mod events;
pub mod labels;
mod last_words;
pub mod view;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cri_api::v1;
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint, Uri};

pub use cache::RuntimeCache;
pub use events::follow_events;

/// A call that the CRI server answered with an error, or did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{call}: {}", status.message())]
pub struct Error {
    /// Which RPC.
    pub call: &'static str,
    /// What gRPC says.
    pub status: Box<tonic::Status>,
}

impl Error {
    /// The message alone, without the call's name.
    pub fn message(&self) -> &str {
        self.status.message()
    }

    /// A call whose task ended without an answer.
    pub fn lost(call: &'static str, cause: &dyn std::fmt::Display) -> Self {
        Self {
            call,
            status: Box::new(tonic::Status::internal(cause.to_string())),
        }
    }

    /// Whether the object that the call names doesn't exist.
    pub fn is_not_found(&self) -> bool {
        self.status.code() == tonic::Code::NotFound
    }
}

/// How long an ordinary call may take (upstream's `runtimeRequestTimeout`).
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// A connection to a CRI server; cheap to clone. It connects when first used, and again when it broke.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $client:ident $name:ident($request:ty) -> $reply:ty;)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, request: $request) -> Result<$reply, Error> {
            self.within(stringify!($name), CALL_TIMEOUT, self.$client.clone().$name(request)).await
        })*
    };
}

impl Cri {
    /// A client of the server that listens on `socket`.
    pub fn new(socket: &Path) -> Self {
        let socket: PathBuf = socket.to_owned();
        // The address is only a placeholder: a socket's path is no valid authority.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(
            tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move {
                    let stream = tokio::net::UnixStream::connect(socket).await?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                }
            }),
        );
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(cri_api::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(cri_api::MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel)
                .max_decoding_message_size(cri_api::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(cri_api::MAX_MESSAGE_BYTES),
        }
    }

    calls! {
        /// Version.
        runtime version(v1::VersionRequest) -> v1::VersionResponse;
        /// Status.
        runtime status(v1::StatusRequest) -> v1::StatusResponse;
        /// UpdateRuntimeConfig.
        runtime update_runtime_config(v1::UpdateRuntimeConfigRequest) -> v1::UpdateRuntimeConfigResponse;
        /// ListPodSandbox.
        runtime list_pod_sandbox(v1::ListPodSandboxRequest) -> v1::ListPodSandboxResponse;
        /// ListContainers.
        runtime list_containers(v1::ListContainersRequest) -> v1::ListContainersResponse;
        /// CreateContainer.
        runtime create_container(v1::CreateContainerRequest) -> v1::CreateContainerResponse;
        /// Exec: where to stream it.
        runtime exec(v1::ExecRequest) -> v1::ExecResponse;
        /// Attach: where to stream it.
        runtime attach(v1::AttachRequest) -> v1::AttachResponse;
        /// PortForward: where to stream it.
        runtime port_forward(v1::PortForwardRequest) -> v1::PortForwardResponse;
        /// ListContainerStats.
        runtime list_container_stats(v1::ListContainerStatsRequest) -> v1::ListContainerStatsResponse;
    }

    /// RunPodSandbox; the sandbox's id. The runtime may take its time over a network plugin.
    pub async fn run_pod_sandbox(
        &self,
        request: v1::RunPodSandboxRequest,
    ) -> Result<String, Error> {
        let call = self.runtime.clone();
        self.within(
            "RunPodSandbox",
            CALL_TIMEOUT * 2,
            { call }.run_pod_sandbox(request),
        )
        .await
        .map(|reply| reply.pod_sandbox_id)
    }

    /// PodSandboxStatus.
    pub async fn pod_sandbox_status(
        &self,
        id: &str,
    ) -> Result<v1::PodSandboxStatusResponse, Error> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        self.within(
            "PodSandboxStatus",
            CALL_TIMEOUT,
            self.runtime.clone().pod_sandbox_status(request),
        )
        .await
    }

    /// StopPodSandbox.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let call = self
            .within(
                "StopPodSandbox",
                CALL_TIMEOUT,
                self.runtime.clone().stop_pod_sandbox(request),
            )
            .await;
        gone_is_done(call)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Error> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let call = self
            .within(
                "RemovePodSandbox",
                CALL_TIMEOUT,
                self.runtime.clone().remove_pod_sandbox(request),
            )
            .await;
        gone_is_done(call)
    }

    /// StartContainer.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let request = v1::StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.within(
            "StartContainer",
            CALL_TIMEOUT,
            self.runtime.clone().start_container(request),
        )
        .await
        .map(drop)
    }

    /// StopContainer: SIGTERM or the container's stop signal, and SIGKILL after `grace_seconds`.
    pub async fn stop_container(&self, id: &str, grace_seconds: i64) -> Result<(), Error> {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace_seconds,
        };
        let limit = CALL_TIMEOUT + Duration::from_secs(grace_seconds.max(0).unsigned_abs());
        let call = self
            .within(
                "StopContainer",
                limit,
                self.runtime.clone().stop_container(request),
            )
            .await;
        gone_is_done(call)
    }

    /// RemoveContainer.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let request = v1::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let call = self
            .within(
                "RemoveContainer",
                CALL_TIMEOUT,
                self.runtime.clone().remove_container(request),
            )
            .await;
        gone_is_done(call)
    }

    /// ContainerStatus.
    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus, Error> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let reply = self
            .within(
                "ContainerStatus",
                CALL_TIMEOUT,
                self.runtime.clone().container_status(request),
            )
            .await?;
        reply.status.ok_or_else(|| Error {
            call: "ContainerStatus",
            status: Box::new(tonic::Status::internal(format!(
                "no status of container {id}"
            ))),
        })
    }

    /// ExecSync; the runtime kills the command after `timeout`.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<v1::ExecSyncResponse, Error> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let limit = if timeout.is_zero() {
            Duration::from_secs(u32::MAX.into())
        } else {
            CALL_TIMEOUT + timeout
        };
        self.within("ExecSync", limit, self.runtime.clone().exec_sync(request))
            .await
    }

    /// ReopenContainerLog.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), Error> {
        let request = v1::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        self.within(
            "ReopenContainerLog",
            CALL_TIMEOUT,
            self.runtime.clone().reopen_container_log(request),
        )
        .await
        .map(drop)
    }

    /// ImageStatus; none if the node doesn't have the image.
    pub async fn image_status(&self, image: &str) -> Result<Option<v1::Image>, Error> {
        let request = v1::ImageStatusRequest {
            image: Some(image_spec(image)),
            verbose: false,
        };
        let reply = self
            .within(
                "ImageStatus",
                CALL_TIMEOUT,
                self.images.clone().image_status(request),
            )
            .await?;
        Ok(reply.image)
    }

    /// PullImage; the reference of what was pulled. It takes as long as it takes: the runtime gives up a pull
    /// that makes no progress.
    pub async fn pull_image(&self, request: v1::PullImageRequest) -> Result<String, Error> {
        let mut client = self.images.clone();
        let reply = client.pull_image(request).await;
        reply
            .map(|r| r.into_inner().image_ref)
            .map_err(|status| Error {
                call: "PullImage",
                status: Box::new(status),
            })
    }

    /// GetContainerEvents.
    pub async fn container_events(
        &self,
    ) -> Result<tonic::Streaming<v1::ContainerEventResponse>, Error> {
        let mut client = self.runtime.clone();
        let reply = client.get_container_events(v1::GetEventsRequest {}).await;
        reply
            .map(tonic::Response::into_inner)
            .map_err(|status| Error {
                call: "GetContainerEvents",
                status: Box::new(status),
            })
    }

    async fn within<T>(
        &self,
        call: &'static str,
        limit: Duration,
        reply: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Error> {
        let outcome = tokio::time::timeout(limit, reply)
            .await
            .unwrap_or_else(|_| {
                Err(tonic::Status::deadline_exceeded(format!(
                    "no answer from the runtime in {} s",
                    limit.as_secs()
                )))
            });
        outcome
            .map(tonic::Response::into_inner)
            .map_err(|status| Error {
                call,
                status: Box::new(status),
            })
    }
}

/// An image by the name that the pod gives it.
pub fn image_spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.to_owned(),
        user_specified_image: image.to_owned(),
        ..v1::ImageSpec::default()
    }
}

fn gone_is_done<T>(outcome: Result<T, Error>) -> Result<(), Error> {
    match outcome {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
