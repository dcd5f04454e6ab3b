//! StartContainer: the plan is made here, with everything opened; the keeper only clones.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri_api::v1::{
    ContainerEventType, NamespaceMode, StartContainerRequest, StartContainerResponse,
};
use linux::cgroup::Cgroup;
use linux::namespace::{self, NamespaceKind};
use linux::path::Target;
use oci_runtime::{LaunchPlan, LaunchResources, Rootfs};
use oci_spec::runtime::Spec;
use rustix::fs::OFlags;
use tonic::Status;

use super::Error;
use crate::keeper::{KeeperError, LaunchReply, LaunchRequest};
use crate::runtime::{Runtime, blocking};
use crate::sandbox::Held;
use crate::spec::{self, SHM, map_text, sandbox_namespaces_of, user_mapping};
use crate::state::{
    Container, ContainerRecord, ContainerStatus, ImageMount, Launched, Sandbox, now_ns,
};

/// Makes a container's log file, which is there when StartContainer answers: clients open it at once.
///
/// # Errors
/// When there can be no such file. A full disk is none: it stops a log, and no container.
fn make_log(path: &Path) -> Result<(), Error> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match crate::scribe::make_log(path) {
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded) => {
            tracing::warn!(path = %path.display(), %error, "the log can't be made yet");
            Ok(())
        }
        made => made.map_err(Error::io(format!("make log {}", path.display()))),
    }
}

/// What upstream's runtimes report for a container whose program couldn't be started.
const START_ERROR_CODE: i32 = 128;

impl Runtime {
    /// CRI StartContainer. A repeated request joins the one that is running.
    pub async fn start_container(
        self: &Arc<Self>,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse, Status> {
        let container = self.container(&request.container_id)?;
        let this = self.clone();
        let key = format!("start {}", container.id());
        let start = async move {
            let _turn = container.turn.lock().await;
            this.launch_container(&container)
                .await
                .map_err(Status::from)?;
            Ok(String::new())
        };
        self.operations.join(&key, start).await?;
        Ok(StartContainerResponse {})
    }

    async fn launch_container(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), Error> {
        if container.status() != ContainerStatus::Created {
            let state = container.status().cri_state().as_str_name();
            return Err(Error::Precondition(format!(
                "container {} is in state {state}",
                container.id()
            )));
        }
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        if !sandbox.status().is_ready() {
            return Err(Error::Precondition(format!(
                "sandbox {} is not ready",
                sandbox.id()
            )));
        }
        let started_at_ns = now_ns();
        match self.launch(container, &sandbox).await {
            Ok(launched) => {
                let pid = launched.pid;
                container.set_launched(Some(launched));
                let running =
                    |_: &ContainerStatus| Some(ContainerStatus::Running { pid, started_at_ns });
                self.state.update_container(container, running)?;
                self.tell_of(container, ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Err(error) => {
                let exited = |_: &ContainerStatus| {
                    Some(ContainerStatus::Exited {
                        started_at_ns: 0,
                        finished_at_ns: now_ns(),
                        exit_code: START_ERROR_CODE,
                        reason: "StartError".into(),
                        message: error.to_string(),
                    })
                };
                self.state.update_container(container, exited)?;
                self.clear_cgroup(container).await;
                self.tell_of(container, ContainerEventType::ContainerStoppedEvent);
                Err(error)
            }
        }
    }

    async fn launch(
        self: &Arc<Self>,
        container: &Arc<Container>,
        sandbox: &Arc<Sandbox>,
    ) -> Result<Launched, Error> {
        let pins = self
            .pins
            .get(sandbox.id())
            .await
            .map_err(Error::io("open the sandbox's namespaces"))?;
        let pid_namespace = self.pid_namespace(container, sandbox, &pins).await?;
        let (this, of, owner) = (self.clone(), container.clone(), sandbox.clone());
        let (plan, fds, memory_events) =
            blocking(move || this.plan(&of, &owner, pins, pid_namespace)).await?;
        let config = &container.record.config;
        let request = LaunchRequest {
            plan,
            fds,
            log_path: container.record.log_path.clone(),
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            terminal: config.tty,
            size: None,
            memory_events,
        };
        match self.keeper.launch(container.id(), request).await {
            Ok(reply) => Ok(Launched {
                pid: reply.pid,
                pidfd: reply.pidfd,
            }),
            // It may have been started all the same: whoever holds it knows.
            Err(KeeperError::Disconnected) => self.find_launched(container.id()).await,
            Err(error) => Err(error.into()),
        }
    }

    async fn find_launched(&self, id: &str) -> Result<Launched, Error> {
        let held = self
            .keeper
            .list()
            .await?
            .into_iter()
            .find(|held| held.id == id);
        match held.map(|held| (held.pid, held.pidfd)) {
            Some((pid, Some(pidfd))) => Ok(Launched { pid, pidfd }),
            _ => Err(KeeperError::Disconnected.into()),
        }
    }

    fn plan(
        &self,
        container: &Container,
        sandbox: &Sandbox,
        pins: Held,
        pid_namespace: Option<OwnedFd>,
    ) -> Result<(LaunchPlan, Vec<OwnedFd>, Option<OwnedFd>), Error> {
        let record = &container.record;
        let mut specification = self.read_spec(&record.id)?;
        if let Some(path) = &record.log_path {
            make_log(path)?;
        }
        let cgroup = self.container_cgroup(record)?;
        cgroup.ensure()?;
        oci_runtime::apply_resources(&cgroup, &specification)?;
        let options = sandbox_namespaces_of(&sandbox.record.config);
        let user = user_namespace(sandbox, &pins)?;
        let mut namespaces: Vec<(NamespaceKind, OwnedFd)> = Vec::new();
        if options.network() != NamespaceMode::Node {
            let pin = namespace::open(&self.netns_path(sandbox.id()))?;
            namespaces.push((NamespaceKind::Network, pin));
        }
        namespaces.extend(pins.ipc.map(|pin| (NamespaceKind::Ipc, pin)));
        namespaces.extend(pins.uts.map(|pin| (NamespaceKind::Uts, pin)));
        namespaces.extend(pid_namespace.map(|pin| (NamespaceKind::Pid, pin)));
        let memory_events = cgroup.oom_counter().ok();
        let rootfs = self.mount_rootfs(container, user.as_ref())?;
        let owner = user_mapping(&options)?.map(|mapping| mapping.host_id);
        let volumes = volumes(&rootfs, record, owner, &mut specification)?;
        let mut resources = LaunchResources::new(&record.id, Rootfs::Detached(rootfs));
        resources.bundle = self.container_folder(&record.id);
        resources.cgroup = Some(cgroup);
        resources.mounts = pins
            .shm
            .map(|shm| (PathBuf::from(SHM), shm))
            .into_iter()
            .chain(volumes)
            .collect();
        for mount in &record.image_mounts {
            let target = spec::clean_path(&mount.container_path);
            let mapping = image_mapping(mount)?;
            let mounted = self.mount_image(mount, mapping.as_ref())?;
            resources.mounts.push((target.into(), mounted));
        }
        namespaces.extend(user.map(|user| (NamespaceKind::User, user)));
        resources.namespaces = namespaces;
        let (plan, fds) = oci_runtime::plan_launch(&specification, resources)?;
        Ok((plan, fds, memory_events))
    }

    /// The image's layers with the container's writable one on top, as a mount that nobody else sees; with the layers'
    /// ids as those of the pod's user namespace, if it has one.
    fn mount_rootfs(
        &self,
        container: &Container,
        user: Option<&OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        let folder = self.container_folder(container.id());
        let layers = self.images.directories(&container.record.layers)?;
        let lowers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        let (upper, work) = (folder.join("fs"), folder.join("work"));
        Ok(overlay(
            linux::mount::Overlay {
                lowers: &lowers,
                upper: Some((&upper, &work)),
                volatile: false,
            },
            user,
        )?)
    }

    /// An image as a mount that nobody else sees and nobody can write to, or what of it is asked for; with its ids
    /// mapped by a user namespace.
    pub(super) fn mount_image(
        &self,
        image: &ImageMount,
        mapping: Option<&OwnedFd>,
    ) -> Result<OwnedFd, Error> {
        let mut layers = self.images.directories(&image.layers)?;
        if let [_] = layers.as_slice() {
            // One layer alone isn't an overlay.
            layers.push(self.images.directories(&[])?.remove(0));
        }
        let lowers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        let whole = overlay(
            linux::mount::Overlay {
                lowers: &lowers,
                upper: None,
                volatile: false,
            },
            mapping,
        )?;
        if image.sub_path.is_empty() {
            return Ok(whole);
        }
        let part = linux::path::open_in_root(&whole, Path::new(&image.sub_path), OFlags::PATH)?;
        Ok(linux::mount::bind_fd(&part, false)?)
    }

    /// The pid namespace to join: the pod's, another container's, or none for one of its own or the host's.
    async fn pid_namespace(
        &self,
        container: &Container,
        sandbox: &Sandbox,
        pins: &Held,
    ) -> Result<Option<OwnedFd>, Error> {
        let options = spec::namespaces_of(&container.record.config);
        let (pid, pidfd) = match options.pid() {
            NamespaceMode::Pod => {
                let init = self.ensure_init(sandbox, pins).await?;
                (init.pid, init.pidfd)
            }
            NamespaceMode::Target => {
                let target = self.container(&options.target_id)?;
                let launched = target.launched().ok_or_else(|| {
                    Error::Precondition(format!(
                        "target container {} is not running",
                        options.target_id
                    ))
                })?;
                (launched.pid, launched.pidfd)
            }
            _ => return Ok(None),
        };
        let namespace = namespace::open_of(pid, NamespaceKind::Pid)?;
        // Had the process ended and its pid been reused, the pidfd would tell.
        linux::pidfd::send_signal(&pidfd, 0)?;
        Ok(Some(namespace))
    }

    /// The init of the pod's shared pid namespace, started for the first container that wants one, and anew if it was
    /// killed (and with it all of its namespace). The keeper knows it by the sandbox's id.
    async fn ensure_init(&self, sandbox: &Sandbox, pins: &Held) -> Result<LaunchReply, Error> {
        let _turn = sandbox.init_turn.lock().await;
        let cgroup = self.init_cgroup(&sandbox.record)?;
        cgroup.ensure()?;
        for again in [true, false] {
            let (plan, fds) = oci_runtime::CgroupPlan::open(&cgroup)?;
            let user = user_namespace(sandbox, pins)?;
            match self
                .keeper
                .launch_pod_init(sandbox.id(), &plan, fds, user)
                .await
            {
                Err(KeeperError::WrongState { .. }) if again => {
                    self.keeper.forget(sandbox.id()).await?
                }
                other => return Ok(other?),
            }
        }
        Err(Error::Precondition(format!(
            "the init of sandbox {} has ended",
            sandbox.id()
        )))
    }

    /// A container's cgroup.
    pub(super) fn container_cgroup(&self, record: &ContainerRecord) -> Result<Cgroup, Error> {
        Ok(self.cgroups.at(&record.cgroup)?)
    }
}

/// The sandbox's own user namespace, if it has one.
fn user_namespace(sandbox: &Sandbox, pins: &Held) -> Result<Option<OwnedFd>, Error> {
    match user_mapping(&sandbox_namespaces_of(&sandbox.record.config))? {
        Some(_) => Ok(Some(pins.owner()?)),
        None => Ok(None),
    }
}

fn overlay(layers: linux::mount::Overlay<'_>, mapping: Option<&OwnedFd>) -> linux::Result<OwnedFd> {
    match mapping {
        None => linux::mount::overlay(layers),
        Some(user) => linux::mount::overlay_mapped(layers, user),
    }
}

/// A user namespace with an image mount's own mappings, if it has some.
fn image_mapping(mount: &ImageMount) -> linux::Result<Option<OwnedFd>> {
    if mount.uid_mappings.is_empty() {
        return Ok(None);
    }
    let [uids, gids] = [&mount.uid_mappings, &mount.gid_mappings].map(|maps| map_text(maps));
    namespace::user_with_mapping(&uids, &gids).map(Some)
}

/// Gives what was just made of a path to the container's root. In its root file system nothing else is the host's root's.
fn give_made_folders(rootfs: &OwnedFd, path: &Path, owner: u32) -> Result<(), Error> {
    use rustix::fs::{AtFlags, Gid, Uid, chownat, fstat};
    for part in path.ancestors() {
        let folder = linux::path::open_in_root(rootfs, part, OFlags::PATH)?;
        let what = || Error::io(format!("give {} to the container's root", part.display()));
        if fstat(&folder).map_err(|errno| what()(errno.into()))?.st_uid == 0 {
            let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
            chownat(&folder, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
                .map_err(|errno| what()(errno.into()))?;
        }
    }
    Ok(())
}

/// Makes the image's volumes. They are a part of the container's own writable layer, with what the image has in them,
/// and go with it; where the root file system is read-only, they stay writable.
fn volumes(
    rootfs: &OwnedFd,
    record: &ContainerRecord,
    owner: Option<u32>,
    specification: &mut Spec,
) -> Result<Vec<(PathBuf, OwnedFd)>, Error> {
    let root = specification.root().as_ref();
    let readonly = root.and_then(|root| root.readonly()).unwrap_or(false);
    let mut bound = Vec::new();
    for volume in &record.volumes {
        let path = Path::new(volume);
        let folder = linux::path::ensure_in_root(rootfs, path, Target::Directory)?;
        if let Some(owner) = owner {
            give_made_folders(rootfs, path, owner)?;
        }
        if !readonly {
            continue;
        }
        match linux::mount::bind_fd(&folder, false) {
            Ok(mount) => bound.push((PathBuf::from(volume), mount)),
            // Before Linux 6.15 a mount that is nowhere can't be bound.
            Err(error) if error.is(rustix::io::Errno::INVAL.raw_os_error()) => {
                tracing::warn!(container = %record.id, volume, "the image's volume stays read-only on this kernel");
            }
            Err(error) => return Err(error.into()),
        }
    }
    let mounts = bound.iter().map(|(volume, _)| spec::volume(volume));
    let mounts = mounts.chain(specification.mounts().iter().flatten().cloned());
    let mounts = mounts.collect();
    specification.set_mounts(Some(mounts));
    Ok(bound)
}
