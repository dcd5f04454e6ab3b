//! What a start finds: the journal, the keeper and the kernel are compared, and what was half done is finished or
//! undone. No container is touched that should run.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Error;
use super::remove_pod_sandbox::remove_tree;
use crate::keeper::{Exit, ExitStatus, Held};
use crate::runtime::{Runtime, blocking};
use crate::spec::sandbox_namespaces_of;
use crate::state::{Container, ContainerStatus, Launched, Network, Phase, Sandbox, now_ns};
use cri_api::v1::NamespaceMode;

impl Runtime {
    /// Reconciles all that is left of an earlier server, before the first request is served.
    ///
    /// # Errors
    /// Only what makes serving impossible; what can't be cleaned up is logged, stays recorded, and is tried again.
    pub async fn recover(self: &Arc<Self>) -> Result<(), Error> {
        let mut held: HashMap<String, Held> = self
            .keeper
            .list()
            .await?
            .into_iter()
            .map(|held| (held.id.clone(), held))
            .collect();
        for container in self.state.containers() {
            let found = held.remove(container.id());
            if let Err(error) = self.recover_container(&container, found).await {
                tracing::error!(container = %container.id(), %error, "could not recover a container");
            }
        }
        let mut undone = HashSet::new();
        for sandbox in self.state.all_sandboxes() {
            held.remove(sandbox.id());
            match sandbox.status().phase {
                Phase::Creating => {
                    undone.insert(sandbox.id().to_owned());
                    self.undo_sandbox(&sandbox).await;
                }
                Phase::Ready if !self.is_whole(&sandbox) => {
                    tracing::info!(sandbox = %sandbox.id(), "sandbox did not outlive the last server");
                    if let Err(error) = self.release_sandbox(&sandbox).await {
                        tracing::warn!(sandbox = %sandbox.id(), %error, "could not release a sandbox");
                    }
                }
                Phase::Ready | Phase::NotReady => {}
            }
        }
        for stray in held.into_values().filter(|held| !undone.contains(&held.id)) {
            self.end_stray(stray).await;
        }
        self.sweep_folders().await;
        self.collect_network_garbage().await;
        Ok(())
    }

    async fn recover_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        held: Option<Held>,
    ) -> Result<(), Error> {
        match (container.status(), held) {
            (ContainerStatus::Exited { .. }, Some(held)) => self.end_stray(held).await,
            // Its program hadn't been reached: as if it had never been started.
            (ContainerStatus::Created, Some(held)) if held.launching => self.end_stray(held).await,
            (ContainerStatus::Created, Some(held)) => {
                // Started, and the server was killed before it could say so.
                let running = ContainerStatus::Running {
                    pid: held.pid,
                    started_at_ns: now_ns(),
                };
                self.state.update_container(container, |_| Some(running))?;
                self.adopt(container, held);
            }
            (ContainerStatus::Running { .. }, Some(held)) => self.adopt(container, held),
            (ContainerStatus::Running { .. }, None) => {
                // The host restarted, or the keeper's records are lost.
                let exit = Exit {
                    seq: 0,
                    id: container.id().to_owned(),
                    exec_id: None,
                    status: ExitStatus::UNKNOWN,
                    finished_at_ns: now_ns(),
                    oom: false,
                };
                self.record_exit(container, &exit).await?;
            }
            (ContainerStatus::Created | ContainerStatus::Exited { .. }, None) => {}
        }
        Ok(())
    }

    /// Takes a running container over; one that has ended meanwhile is told by the keeper's events.
    fn adopt(&self, container: &Container, held: Held) {
        if let Some(pidfd) = held.pidfd {
            container.set_launched(Some(Launched {
                pid: held.pid,
                pidfd,
            }));
        }
    }

    /// Whether a sandbox is still there in the kernel. Its network namespace tells; one of the host's network has
    /// nothing that a restart of the host would end, but the keeper that held its containers.
    fn is_whole(&self, sandbox: &Sandbox) -> bool {
        let options = sandbox_namespaces_of(&sandbox.record.config);
        let network = || {
            let pin = std::fs::File::open(self.netns_path(sandbox.id()));
            pin.is_ok_and(|pin| linux::mount::is_mount_root(&pin).unwrap_or(false))
        };
        match options.network() {
            NamespaceMode::Node => self.files(sandbox.id()).paths().hosts.exists(),
            _ => network(),
        }
    }

    /// Ends what the keeper holds and nobody wants.
    async fn end_stray(&self, held: Held) {
        let ended = async {
            if let Some(pidfd) = held.pidfd.filter(|_| held.exit.is_none()) {
                blocking(move || {
                    linux::pidfd::kill(&pidfd)?;
                    linux::pidfd::wait_exit(&pidfd, Some(super::stop_pod_sandbox::KILL_PATIENCE))?;
                    Ok(())
                })
                .await?;
                self.wait_until_reaped(&held.id).await?;
            }
            Ok::<(), Error>(self.keeper.forget(&held.id).await?)
        };
        if let Err(error) = ended.await {
            tracing::warn!(id = %held.id, %error, "could not end a process that belongs to no container");
        }
    }

    /// The keeper's events say when it has reaped, which is right after the kernel says that the process has ended.
    async fn wait_until_reaped(&self, id: &str) -> Result<(), Error> {
        let mut exits = self.keeper.exits(0);
        while let Some(exit) = exits.next().await {
            if exit.id == id && exit.exec_id.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Removes folders of no container and of no sandbox.
    async fn sweep_folders(&self) {
        let containers: HashSet<String> = self
            .state
            .containers()
            .iter()
            .map(|container| container.id().to_owned())
            .collect();
        let sandboxes: HashSet<String> = self
            .state
            .all_sandboxes()
            .iter()
            .map(|sandbox| sandbox.id().to_owned())
            .collect();
        let places = [
            (self.config.root.join("containers"), containers),
            (self.config.state.join("sandboxes"), sandboxes),
        ];
        for (folder, known) in places {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| known.contains(name))
                {
                    continue;
                }
                if let Err(error) = remove_tree(entry.path()).await {
                    tracing::warn!(%error, "could not remove what an earlier server left");
                }
            }
        }
    }

    /// Tells the plugins which pods exist, so that they drop what they hold for others.
    async fn collect_network_garbage(&self) {
        let connected =
            |sandbox: &Arc<Sandbox>| matches!(sandbox.status().network, Network::Connected(_));
        let sandboxes = self.state.all_sandboxes();
        let valid = sandboxes.iter().filter(|sandbox| connected(sandbox));
        let valid = valid
            .map(|sandbox| self.attachment(&sandbox.record).key())
            .collect();
        if let Err(error) = self.network.gc(valid).await {
            tracing::info!(%error, "the network's plugins did not collect their garbage");
        }
    }
}
