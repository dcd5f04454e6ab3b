//! The ends of containers: from the keeper's events into the journal, then to whoever waits or watches.

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::ContainerEventType;

use super::Error;
use crate::keeper::Exit;
use crate::runtime::{Runtime, blocking};
use crate::state::{Container, ContainerStatus};

/// How long what a container leaves behind in its cgroup may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

impl Runtime {
    /// Follows the keeper's events until the client shuts down.
    pub async fn follow_exits(self: Arc<Self>) {
        let mut exits = self.keeper.exits(0);
        while let Some(exit) = exits.next().await {
            // Of an exec: whoever started it waits for it.
            if exit.exec_id.is_some() {
                continue;
            }
            let Some(container) = self
                .state
                .container(&exit.id)
                .filter(|found| found.id() == exit.id)
            else {
                // A pod's init, or a container that is being undone: they are forgotten by whoever removes them.
                continue;
            };
            let this = self.clone();
            tokio::spawn(async move {
                // StartContainer records the start before the end is recorded.
                let started = container
                    .changes()
                    .wait_for(|status| *status != ContainerStatus::Created)
                    .await
                    .is_ok();
                if started && let Err(error) = this.record_exit(&container, &exit).await {
                    tracing::error!(container = %container.id(), %error, "could not record the end of a container");
                }
            });
        }
    }

    /// Records an end, once.
    ///
    /// # Errors
    /// The journal's; the keeper still holds the end then.
    pub(super) async fn record_exit(
        &self,
        container: &Arc<Container>,
        exit: &Exit,
    ) -> Result<(), Error> {
        self.clear_cgroup(container).await;
        let exited = |status: &ContainerStatus| {
            let started_at_ns = match status {
                ContainerStatus::Running { started_at_ns, .. } => *started_at_ns,
                ContainerStatus::Created => container.record.created_at_ns,
                ContainerStatus::Exited { .. } => return None,
            };
            Some(ContainerStatus::Exited {
                started_at_ns,
                finished_at_ns: exit.finished_at_ns,
                exit_code: exit.status.code,
                reason: reason(exit).into(),
                message: String::new(),
            })
        };
        if self.state.update_container(container, exited)? {
            container.set_launched(None);
            tracing::info!(container = %container.id(), code = exit.status.code, reason = reason(exit), "container ended");
            self.tell_of(container, ContainerEventType::ContainerStoppedEvent);
        }
        Ok(self.keeper.forget(container.id()).await?)
    }

    /// Ends what a container left behind, where it had no pid namespace of its own, and removes its cgroup.
    pub(super) async fn clear_cgroup(&self, container: &Container) {
        let cleared = async {
            let cgroup = self.container_cgroup(&container.record)?;
            blocking(move || {
                if cgroup.exists() {
                    cgroup.kill()?;
                    cgroup.wait_empty(PATIENCE)?;
                }
                Ok(cgroup.delete()?)
            })
            .await
        };
        if let Err(error) = cleared.await {
            tracing::warn!(container = %container.id(), %error, "could not remove the cgroup of a container that ended");
        }
    }
}

/// CRI's word for how it ended.
fn reason(exit: &Exit) -> &'static str {
    match exit.status {
        status if status.unknown => "Unknown",
        _ if exit.oom => "OOMKilled",
        status if status.code == 0 => "Completed",
        _ => "Error",
    }
}
