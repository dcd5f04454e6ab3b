//! StopContainer: its stop signal, a grace period, then SIGKILL for all of its cgroup.

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::{StopContainerRequest, StopContainerResponse};
use tonic::Status;

use super::Error;
use super::stop_pod_sandbox::KILL_PATIENCE;
use crate::runtime::{Runtime, blocking};
use crate::state::{Container, ContainerStatus};

impl Runtime {
    /// CRI StopContainer. A container that doesn't exist, or doesn't run, is stopped. Each request waits its own
    /// grace period, so a second one may cut the first one short.
    pub async fn stop_container(
        self: &Arc<Self>,
        request: StopContainerRequest,
    ) -> Result<StopContainerResponse, Status> {
        let Some(container) = self.state.container(&request.container_id) else {
            return Ok(StopContainerResponse {});
        };
        let this = self.clone();
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        // In a task of its own: a client that gives up doesn't take the kill back.
        let stop = tokio::spawn(async move { this.stop(&container, grace).await });
        stop.await
            .map_err(|error| Status::internal(error.to_string()))??;
        Ok(StopContainerResponse {})
    }

    async fn stop(&self, container: &Arc<Container>, grace: Duration) -> Result<(), Error> {
        let Some(launched) = container.launched().filter(|_| is_running(container)) else {
            return Ok(());
        };
        if !grace.is_zero() {
            match linux::pidfd::send_signal(&launched.pidfd, container.record.stop_signal) {
                Err(error) if !error.is(rustix::io::Errno::SRCH.raw_os_error()) => {
                    return Err(error.into());
                }
                _ => {}
            }
            if tokio::time::timeout(grace, self.ended(container))
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        self.kill_container(container).await
    }

    /// Kills a container, and returns when it is known to have ended. One that doesn't run is left alone.
    ///
    /// # Errors
    /// The kernel's, or [`Error::Deadline`] when the kernel can't end it.
    pub(super) async fn kill_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        if !is_running(container) {
            return Ok(());
        }
        let cgroup = self.container_cgroup(&container.record)?;
        let launched = container.launched();
        blocking(move || {
            cgroup.kill()?;
            // The first process too if something moved it out of its cgroup.
            Ok(launched.map_or(Ok(()), |launched| linux::pidfd::kill(&launched.pidfd))?)
        })
        .await?;
        let ended = tokio::time::timeout(KILL_PATIENCE, self.ended(container)).await;
        ended.map_err(|_| {
            Error::Deadline(format!(
                "container {} has not ended after SIGKILL",
                container.id()
            ))
        })
    }

    /// Waits for the container's end to be journalled.
    async fn ended(&self, container: &Container) {
        // The channel can't close: the container that we hold owns it.
        let _ = container
            .changes()
            .wait_for(|status| !matches!(status, ContainerStatus::Running { .. }))
            .await;
    }
}

fn is_running(container: &Container) -> bool {
    matches!(container.status(), ContainerStatus::Running { .. })
}
