//! StopPodSandbox: its containers are killed, its network is taken away, its namespaces end. Whatever fails, the rest
//! is done; a repeated request does what is left.

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::{ContainerEventType, StopPodSandboxRequest, StopPodSandboxResponse};
use futures::future::join_all;
use tonic::Status;

use super::Error;
use crate::runtime::{Runtime, blocking};
use crate::sandbox::release_network;
use crate::state::{Network, Phase, Sandbox};

/// How long killed processes may take to be gone: longer means that the kernel can't end one (a dead disk).
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(60);

impl Runtime {
    /// CRI StopPodSandbox. A sandbox that doesn't exist is stopped.
    pub async fn stop_pod_sandbox(
        self: &Arc<Self>,
        request: StopPodSandboxRequest,
    ) -> Result<StopPodSandboxResponse, Status> {
        if let Some(sandbox) = self.state.sandbox(&request.pod_sandbox_id) {
            let this = self.clone();
            let key = format!("stop {}", sandbox.id());
            let stop = async move {
                let _turn = sandbox.turn.lock().await;
                this.release_sandbox(&sandbox).await.map_err(Status::from)?;
                Ok(String::new())
            };
            self.operations.join(&key, stop).await?;
        }
        Ok(StopPodSandboxResponse {})
    }

    /// Ends all of a sandbox that is in the kernel.
    ///
    /// # Errors
    /// Everything that failed.
    pub(super) async fn release_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        // First, so that no container is started from here on.
        let was_ready = sandbox.status().is_ready();
        self.state.update_sandbox(sandbox, |status| {
            if status.phase == Phase::Ready {
                status.phase = Phase::NotReady;
            }
        })?;
        let mut errors = Vec::new();
        let containers = self.state.containers_of(sandbox.id());
        let killed = containers.iter().map(async |container| {
            let _turn = container.turn.lock().await;
            self.kill_container(container).await
        });
        errors.extend(join_all(killed).await.into_iter().filter_map(Result::err));
        errors.extend(self.end_init(sandbox).await.err());
        errors.extend(self.disconnect(sandbox).await.err());
        let netns = self.netns_path(sandbox.id());
        errors.extend(
            release_network(&netns)
                .map_err(Error::io("release the network namespace"))
                .err(),
        );
        let unpinned = self.pins.remove(sandbox.id()).await;
        errors.extend(
            unpinned
                .map_err(Error::io("release the ipc and uts namespaces"))
                .err(),
        );
        if was_ready {
            self.tell(
                sandbox.id(),
                ContainerEventType::ContainerStoppedEvent,
                sandbox,
            );
        }
        Error::of(errors).map_or(Ok(()), Err)
    }

    /// Takes the pod off its network, once.
    async fn disconnect(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let status = sandbox.status();
        let recorded = match &status.network {
            Network::Host | Network::Released => return Ok(()),
            Network::Unknown => None,
            Network::Connected(result) => Some(&**result),
        };
        self.network
            .del(&self.attachment(&sandbox.record), recorded)
            .await?;
        self.state
            .update_sandbox(sandbox, |status| status.network = Network::Released)?;
        Ok(())
    }

    /// Ends the init of a shared pid namespace, if there is one, and with it whatever was left in that namespace.
    async fn end_init(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let cgroup = self.init_cgroup(&sandbox.record)?;
        if cgroup.exists() {
            blocking(move || {
                cgroup.kill()?;
                cgroup.wait_empty(KILL_PATIENCE)?;
                Ok(cgroup.delete()?)
            })
            .await?;
        }
        Ok(())
    }
}
