//! A CRI server whose containers are only a record: a test says when they end. What an image is called decides what
//! becomes of its containers: `exits-N` ends at once with code N, `missing` can't be pulled, all others run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use cri_api::v1;
use futures::StreamExt;
use tokio::sync::broadcast;
use tonic::{Request, Response, Status, async_trait};

type Reply<T> = Result<Response<T>, Status>;
type Events = futures::stream::BoxStream<'static, Result<v1::ContainerEventResponse, Status>>;

/// The runtime; cheap to clone.
#[derive(Clone)]
pub struct FakeCri {
    pub state: Arc<Mutex<State>>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
}

#[derive(Default)]
pub struct State {
    pub sandboxes: HashMap<String, (v1::PodSandboxStatus, v1::PodSandboxConfig)>,
    pub containers: HashMap<String, (v1::ContainerStatus, v1::ContainerConfig, String)>,
    /// Every call, in order.
    pub calls: Vec<String>,
    /// What a command exits with; 0 if it isn't here.
    pub exec_codes: HashMap<String, i32>,
    /// Containers that ignore SIGTERM: they take their whole grace period.
    pub stubborn: bool,
    /// What the runtime handler announces.
    pub user_namespaces: bool,
    next: u32,
}

fn now() -> i64 {
    k8s_openapi::jiff::Timestamp::now().as_nanosecond() as i64
}

impl FakeCri {
    /// Serves on `socket` until dropped by the runtime that runs the test.
    pub fn serve(socket: &Path) -> Self {
        let fake = Self {
            state: Arc::default(),
            events: broadcast::channel(1024).0,
        };
        let listener = tokio::net::UnixListener::bind(socket).expect("a socket");
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(v1::runtime_service_server::RuntimeServiceServer::new(
                fake.clone(),
            ))
            .add_service(v1::image_service_server::ImageServiceServer::new(
                fake.clone(),
            ))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        fake
    }

    /// Ends a container as if its process had exited.
    pub fn exit(&self, id: &str, code: i32) {
        {
            let mut state = self.state.lock().unwrap();
            let (status, _, _) = state.containers.get_mut(id).expect("a container");
            status.state = v1::ContainerState::ContainerExited as i32;
            status.exit_code = code;
            status.finished_at = now();
            status.reason = if code == 0 { "Completed" } else { "Error" }.into();
        }
        self.tell(id, v1::ContainerEventType::ContainerStoppedEvent);
    }

    /// The id of the running instance of a container.
    pub fn running(&self, pod: &str, container: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        let running = state.containers.values().find(|(status, config, sandbox)| {
            status.state() == v1::ContainerState::ContainerRunning
                && config
                    .metadata
                    .as_ref()
                    .is_some_and(|m| m.name == container)
                && state.sandboxes[sandbox]
                    .0
                    .metadata
                    .as_ref()
                    .is_some_and(|m| m.name == pod)
        });
        running.map(|(status, ..)| status.id.clone())
    }

    /// The configuration of the newest instance of a container.
    pub fn config(&self, id: &str) -> v1::ContainerConfig {
        self.state.lock().unwrap().containers[id].1.clone()
    }

    /// How often a call was made.
    pub fn count(&self, call: &str) -> usize {
        self.state
            .lock()
            .unwrap()
            .calls
            .iter()
            .filter(|c| c.starts_with(call))
            .count()
    }

    fn tell(&self, container: &str, kind: v1::ContainerEventType) {
        let state = self.state.lock().unwrap();
        let Some((_, _, sandbox)) = state.containers.get(container) else {
            return;
        };
        let all = state.containers.values().filter(|(_, _, s)| s == sandbox);
        let event = v1::ContainerEventResponse {
            container_id: container.into(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: state
                .sandboxes
                .get(sandbox)
                .map(|(status, _)| status.clone()),
            containers_statuses: all.map(|(status, ..)| status.clone()).collect(),
        };
        // Nobody listens before the kubelet does.
        let _ = self.events.send(event);
    }

    fn called(&self, what: String) {
        self.state.lock().unwrap().calls.push(what);
    }
}

fn ok<T>(value: T) -> Reply<T> {
    Ok(Response::new(value))
}

/// What `async_trait` makes of an `async fn`; it doesn't see into macros.
type Later<'a, T> = futures::future::BoxFuture<'a, Reply<T>>;

macro_rules! unused {
    ($($name:ident($request:ident) -> $reply:ident;)*) => {
        $(fn $name<'a, 'async_trait>(&'a self, _: Request<v1::$request>) -> Later<'async_trait, v1::$reply>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

macro_rules! unused_streams {
    ($($stream:ident $name:ident($request:ident) -> $reply:ident;)*) => {
        $(type $stream = futures::stream::BoxStream<'static, Result<v1::$reply, Status>>;
        fn $name<'a, 'async_trait>(&'a self, _: Request<v1::$request>) -> Later<'async_trait, Self::$stream>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[async_trait]
impl v1::runtime_service_server::RuntimeService for FakeCri {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Reply<v1::VersionResponse> {
        ok(v1::VersionResponse {
            runtime_name: "fake".into(),
            runtime_version: "1".into(),
            ..Default::default()
        })
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Reply<v1::StatusResponse> {
        let good = |kind: &str| v1::RuntimeCondition {
            r#type: kind.into(),
            status: true,
            ..Default::default()
        };
        let status = v1::RuntimeStatus {
            conditions: vec![good("RuntimeReady"), good("NetworkReady")],
        };
        let features = v1::RuntimeHandlerFeatures {
            user_namespaces: self.state.lock().unwrap().user_namespaces,
            ..Default::default()
        };
        ok(v1::StatusResponse {
            status: Some(status),
            runtime_handlers: vec![v1::RuntimeHandler {
                name: String::new(),
                features: Some(features),
            }],
            ..Default::default()
        })
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Reply<v1::RunPodSandboxResponse> {
        let config = request.into_inner().config.expect("a configuration");
        let metadata = config.metadata.clone().expect("metadata");
        self.called(format!("run {}", metadata.name));
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let (id, address) = (
            format!("sandbox-{}", state.next),
            format!("10.9.0.{}", state.next),
        );
        let status = v1::PodSandboxStatus {
            id: id.clone(),
            metadata: Some(metadata),
            created_at: now(),
            network: Some(v1::PodSandboxNetworkStatus {
                ip: address,
                additional_ips: Vec::new(),
            }),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ..Default::default()
        };
        state.sandboxes.insert(id.clone(), (status, config));
        ok(v1::RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Reply<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.called(format!("stop sandbox {id}"));
        if let Some((status, _)) = self.state.lock().unwrap().sandboxes.get_mut(&id) {
            status.state = v1::PodSandboxState::SandboxNotready as i32;
        }
        ok(v1::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Reply<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut state = self.state.lock().unwrap();
        state.sandboxes.remove(&id);
        state.containers.retain(|_, (_, _, sandbox)| *sandbox != id);
        ok(v1::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Reply<v1::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let state = self.state.lock().unwrap();
        let status = state.sandboxes.get(&id).map(|(status, _)| status.clone());
        let status = status.ok_or_else(|| Status::not_found(id))?;
        ok(v1::PodSandboxStatusResponse {
            status: Some(status),
            ..Default::default()
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Reply<v1::ListPodSandboxResponse> {
        let selector = request
            .into_inner()
            .filter
            .unwrap_or_default()
            .label_selector;
        let state = self.state.lock().unwrap();
        let items = state.sandboxes.values().map(|(status, _)| v1::PodSandbox {
            id: status.id.clone(),
            metadata: status.metadata.clone(),
            state: status.state,
            created_at: status.created_at,
            labels: status.labels.clone(),
            ..Default::default()
        });
        let wanted =
            |item: &v1::PodSandbox| selector.iter().all(|(k, v)| item.labels.get(k) == Some(v));
        ok(v1::ListPodSandboxResponse {
            items: items.filter(wanted).collect(),
        })
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Reply<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.expect("a configuration");
        let metadata = config.metadata.clone().expect("metadata");
        self.called(format!("create {}", metadata.name));
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let id = format!("container-{}", state.next);
        let folder = request
            .sandbox_config
            .expect("the sandbox's configuration")
            .log_directory;
        let log_path = Path::new(&folder).join(&config.log_path);
        std::fs::create_dir_all(log_path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&log_path, "2026-01-01T00:00:00Z stdout F hello\n").expect("a log");
        let status = v1::ContainerStatus {
            id: id.clone(),
            metadata: Some(metadata),
            state: v1::ContainerState::ContainerCreated as i32,
            created_at: now(),
            image: config.image.clone(),
            image_ref: config.image.clone().unwrap_or_default().image,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: log_path.to_string_lossy().into_owned(),
            ..Default::default()
        };
        state
            .containers
            .insert(id.clone(), (status, config, request.pod_sandbox_id));
        ok(v1::CreateContainerResponse { container_id: id })
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Reply<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let image = {
            let mut state = self.state.lock().unwrap();
            let (status, config, _) = state.containers.get_mut(&id).expect("a container");
            status.state = v1::ContainerState::ContainerRunning as i32;
            status.started_at = now();
            let name = status.metadata.clone().unwrap_or_default().name;
            let image = config
                .image
                .clone()
                .unwrap_or_default()
                .user_specified_image;
            state.calls.push(format!("start {name}"));
            image
        };
        self.tell(&id, v1::ContainerEventType::ContainerStartedEvent);
        if let Some(code) = image.strip_prefix("exits-") {
            self.exit(&id, code.parse().expect("a code"));
        }
        ok(v1::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Reply<v1::StopContainerResponse> {
        let v1::StopContainerRequest {
            container_id,
            timeout,
        } = request.into_inner();
        self.called(format!("stop {container_id} {timeout}"));
        let stubborn = self.state.lock().unwrap().stubborn;
        if stubborn {
            tokio::time::sleep(std::time::Duration::from_secs(timeout as u64)).await;
        }
        let running = {
            let state = self.state.lock().unwrap();
            let found = state.containers.get(&container_id);
            found.is_some_and(|(status, ..)| status.state() == v1::ContainerState::ContainerRunning)
        };
        if running {
            self.exit(&container_id, if stubborn { 137 } else { 143 });
        }
        ok(v1::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Reply<v1::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.called(format!("remove {id}"));
        self.state.lock().unwrap().containers.remove(&id);
        ok(v1::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Reply<v1::ListContainersResponse> {
        let selector = request
            .into_inner()
            .filter
            .unwrap_or_default()
            .label_selector;
        let state = self.state.lock().unwrap();
        let items = state
            .containers
            .values()
            .map(|(status, _, sandbox)| v1::Container {
                id: status.id.clone(),
                pod_sandbox_id: sandbox.clone(),
                metadata: status.metadata.clone(),
                state: status.state,
                labels: status.labels.clone(),
                ..Default::default()
            });
        let wanted =
            |item: &v1::Container| selector.iter().all(|(k, v)| item.labels.get(k) == Some(v));
        ok(v1::ListContainersResponse {
            containers: items.filter(wanted).collect(),
        })
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Reply<v1::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let state = self.state.lock().unwrap();
        let status = state.containers.get(&id).map(|(status, ..)| status.clone());
        let status = status.ok_or_else(|| Status::not_found(id))?;
        ok(v1::ContainerStatusResponse {
            status: Some(status),
            ..Default::default()
        })
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Reply<v1::ExecSyncResponse> {
        let command = request.into_inner().cmd.join(" ");
        self.called(format!("exec {command}"));
        let exit_code = self
            .state
            .lock()
            .unwrap()
            .exec_codes
            .get(&command)
            .copied()
            .unwrap_or(0);
        ok(v1::ExecSyncResponse {
            exit_code,
            ..Default::default()
        })
    }

    async fn reopen_container_log(
        &self,
        _: Request<v1::ReopenContainerLogRequest>,
    ) -> Reply<v1::ReopenContainerLogResponse> {
        ok(v1::ReopenContainerLogResponse {})
    }

    type GetContainerEventsStream = Events;
    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Reply<Events> {
        let events = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        ok(events
            .filter_map(|event| async { event.ok().map(Ok) })
            .boxed())
    }

    unused! {
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        checkpoint_pod(CheckpointPodRequest) -> CheckpointPodResponse;
        restore_pod(RestorePodRequest) -> RestorePodResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }

    unused_streams! {
        StreamPodSandboxesStream stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesResponse;
        StreamContainersStream stream_containers(StreamContainersRequest) -> StreamContainersResponse;
        StreamContainerStatsStream stream_container_stats(StreamContainerStatsRequest) -> StreamContainerStatsResponse;
        StreamPodSandboxStatsStream stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> StreamPodSandboxStatsResponse;
        StreamPodSandboxMetricsStream stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> StreamPodSandboxMetricsResponse;
    }
}

#[async_trait]
impl v1::image_service_server::ImageService for FakeCri {
    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Reply<v1::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let image = (name != "missing").then(|| v1::Image {
            id: format!("sha256:{name}"),
            ..Default::default()
        });
        ok(v1::ImageStatusResponse {
            image,
            ..Default::default()
        })
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Reply<v1::PullImageResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        self.called(format!("pull {name}"));
        match name.as_str() {
            "missing" => Err(Status::not_found("no such image")),
            _ => ok(v1::PullImageResponse {
                image_ref: format!("sha256:{name}"),
            }),
        }
    }

    unused! {
        list_images(ListImagesRequest) -> ListImagesResponse;
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    unused_streams! {
        StreamImagesStream stream_images(StreamImagesRequest) -> StreamImagesResponse;
    }
}
