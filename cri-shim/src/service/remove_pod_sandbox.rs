//! RemovePodSandbox: stopped if need be, then its containers, its files, its cgroup and its records go.

use std::sync::Arc;

use cri_api::v1::{ContainerEventType, RemovePodSandboxRequest, RemovePodSandboxResponse};
use tonic::Status;

use super::Error;
use crate::runtime::{Runtime, blocking};
use crate::state::Sandbox;

impl Runtime {
    /// CRI RemovePodSandbox. A sandbox that doesn't exist is removed.
    pub async fn remove_pod_sandbox(
        self: &Arc<Self>,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse, Status> {
        if let Some(sandbox) = self.state.sandbox(&request.pod_sandbox_id) {
            let this = self.clone();
            let key = format!("remove {}", sandbox.id());
            let remove = async move {
                this.remove_sandbox(&sandbox).await.map_err(Status::from)?;
                Ok(String::new())
            };
            self.operations.join(&key, remove).await?;
        }
        Ok(RemovePodSandboxResponse {})
    }

    async fn remove_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let _turn = sandbox.turn.lock().await;
        self.release_sandbox(sandbox).await?;
        for container in self.state.containers_of(sandbox.id()) {
            self.delete_container(&container).await?;
        }
        self.forget_sandbox(sandbox).await?;
        self.tell(
            sandbox.id(),
            ContainerEventType::ContainerDeletedEvent,
            sandbox,
        );
        Ok(())
    }

    /// Removes what is left of a sandbox that has ended.
    ///
    /// # Errors
    /// The first failure; the record stays then.
    pub(super) async fn forget_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        // The keeper may hold the init's end.
        self.keeper.forget(sandbox.id()).await?;
        let files = self.files(sandbox.id());
        files
            .remove()
            .map_err(Error::io("remove the sandbox's files"))?;
        self.cgroups.release_pod(&sandbox.record.cgroup)?;
        self.state.remove_sandbox(sandbox.id())?;
        Ok(())
    }
}

/// So that a caller off the async threads can remove a tree of files.
pub(super) async fn remove_tree(path: std::path::PathBuf) -> Result<(), Error> {
    blocking(move || match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    })
    .await
}
