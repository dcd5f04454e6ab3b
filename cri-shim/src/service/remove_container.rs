//! RemoveContainer: killed if it runs, then its files and records go, and its image's layers if nobody else has them.

use std::sync::Arc;

use cri_api::v1::{ContainerEventType, RemoveContainerRequest, RemoveContainerResponse};
use tonic::Status;

use super::Error;
use super::remove_pod_sandbox::remove_tree;
use crate::runtime::{Runtime, blocking};
use crate::state::Container;

impl Runtime {
    /// CRI RemoveContainer. A container that doesn't exist is removed.
    pub async fn remove_container(
        self: &Arc<Self>,
        request: RemoveContainerRequest,
    ) -> Result<RemoveContainerResponse, Status> {
        if let Some(container) = self.state.container(&request.container_id) {
            let this = self.clone();
            let key = format!("remove {}", container.id());
            let remove = async move {
                this.delete_container(&container)
                    .await
                    .map_err(Status::from)?;
                Ok(String::new())
            };
            self.operations.join(&key, remove).await?;
        }
        Ok(RemoveContainerResponse {})
    }

    /// Kills a container if it runs and removes all of it.
    ///
    /// # Errors
    /// The first failure; the record stays then, and the request can be repeated.
    pub(super) async fn delete_container(&self, container: &Arc<Container>) -> Result<(), Error> {
        let _turn = container.turn.lock().await;
        self.kill_container(container).await?;
        self.keeper.forget(container.id()).await?;
        let cgroup = self.container_cgroup(&container.record)?;
        blocking(move || Ok(cgroup.delete()?)).await?;
        // Renamed first: what is half removed has no container's name.
        let folder = self.container_folder(container.id());
        let doomed = folder.with_extension("removed");
        match std::fs::rename(&folder, &doomed) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", folder.display()))(error));
            }
            _ => {}
        }
        self.state.remove_container(container.id())?;
        self.tell_of(container, ContainerEventType::ContainerDeletedEvent);
        remove_tree(doomed).await?;
        self.collect_after(container).await
    }

    /// A container whose image was removed while it ran takes the image's layers along.
    async fn collect_after(&self, container: &Container) -> Result<(), Error> {
        if self.images.get(container.record.image_id.as_str()).is_ok() {
            return Ok(());
        }
        container.release_layers();
        let images = self.images.clone();
        blocking(move || Ok(images.collect()?)).await
    }
}
