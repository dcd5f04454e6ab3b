//! A pod's volumes: where they are on the node, and how a container gets them.
//!
//! Disk-backed folders lie in the pod's folder under upstream's names; all files that come from the API lie in the
//! node's one shared tmpfs. Only an emptyDir with `medium: Memory` is a mount of its own, so that a pod that fills
//! it fills nobody else's.

pub mod atomic;
pub mod host_path;
mod mounts;
pub mod payload;
mod shared;
pub mod subpath;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};

use crate::config::Config;
use crate::fields::NodeFacts;
use crate::pod::PodExt;
use payload::{Objects, Owner};

pub use mounts::{ContainerMounts, container_mounts};
pub use shared::{mount_shared_tmpfs, unmount_shared_tmpfs};

/// A volume that isn't there (event FailedMount).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its files can't be made.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Payload {
        /// The volume's name.
        volume: String,
        /// Why.
        #[source]
        source: payload::Error,
    },
    /// Its files can't be written.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Write {
        /// The volume's name.
        volume: String,
        /// Why.
        #[source]
        source: atomic::Error,
    },
    /// Its path isn't what the pod says.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    HostPath {
        /// The volume's name.
        volume: String,
        /// Why.
        #[source]
        source: host_path::Error,
    },
    /// The kernel refused.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {}: {source}", path.display())]
    Io {
        /// The volume's name.
        volume: String,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// This kubelet has no such volumes.
    #[error("MountVolume.SetUp failed for volume \"{0}\" : unsupported volume source")]
    Unsupported(String),
    /// A container asks for it, the pod doesn't have it.
    #[error("volume mount \"{0}\" has no volume of that name")]
    NoVolume(String),
    /// A part of it can't be used.
    #[error("volume \"{volume}\": {source}")]
    SubPath {
        /// The volume's name.
        volume: String,
        /// Why.
        #[source]
        source: subpath::Error,
    },
    /// `subPathExpr` refers to what isn't in the environment.
    #[error("missing value for {missing} in subPathExpr of volume \"{volume}\"")]
    SubPathExpr {
        /// The volume's name.
        volume: String,
        /// The references.
        missing: String,
    },
}

/// Where a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder or file of the node.
    Host {
        /// Where.
        path: PathBuf,
        /// No container may write it.
        read_only: bool,
    },
    /// An image, which the runtime mounts.
    Image {
        /// Its name.
        reference: String,
    },
}

/// The volumes of a pod that are ready, by name.
pub type Places = HashMap<String, Place>;

/// Brings every volume of a pod into place; what is in place already is only brought up to date. It blocks.
pub fn set_up(
    config: &Config,
    pod: &Pod,
    objects: &Objects,
    node: &NodeFacts,
) -> Result<Places, Error> {
    let mut places = Places::new();
    for volume in pod.pod_spec().volumes.iter().flatten() {
        places.insert(
            volume.name.clone(),
            set_up_one(config, pod, volume, objects, node)?,
        );
    }
    Ok(places)
}

fn set_up_one(
    config: &Config,
    pod: &Pod,
    volume: &Volume,
    objects: &Objects,
    node: &NodeFacts,
) -> Result<Place, Error> {
    let uid = pod.uid();
    let fs_group = fs_group(pod);
    let owner = Owner {
        run_as_user: common_user(pod),
        fs_group: fs_group.is_some(),
    };
    if let Some(files) = payload::payload(pod, volume, objects, node, &owner) {
        let path = config.volatile_pod_dir(uid.as_str()).join(&volume.name);
        let files = files.map_err(|source| Error::Payload {
            volume: volume.name.clone(),
            source,
        })?;
        atomic::write(&path, &files, fs_group).map_err(|source| Error::Write {
            volume: volume.name.clone(),
            source,
        })?;
        return Ok(Place::Host {
            path,
            read_only: true,
        });
    }
    if let Some(source) = &volume.empty_dir {
        let path = empty_dir_path(config, uid.as_str(), &volume.name);
        set_up_empty_dir(&path, source, fs_group).map_err(|source| Error::Io {
            volume: volume.name.clone(),
            path: path.clone(),
            source,
        })?;
        return Ok(Place::Host {
            path,
            read_only: false,
        });
    }
    if let Some(source) = &volume.host_path {
        host_path::ensure(&source.path, source.type_.as_deref().unwrap_or_default()).map_err(
            |source| Error::HostPath {
                volume: volume.name.clone(),
                source,
            },
        )?;
        return Ok(Place::Host {
            path: source.path.clone().into(),
            read_only: false,
        });
    }
    if let Some(source) = &volume.image {
        return Ok(Place::Image {
            reference: source.reference.clone().unwrap_or_default(),
        });
    }
    Err(Error::Unsupported(volume.name.clone()))
}

fn empty_dir_path(config: &Config, uid: &str, volume: &str) -> PathBuf {
    config
        .pod_dir(uid)
        .join("volumes/kubernetes.io~empty-dir")
        .join(volume)
}

fn set_up_empty_dir(
    path: &Path,
    source: &EmptyDirVolumeSource,
    fs_group: Option<u32>,
) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    if source.medium.as_deref() == Some("Memory") {
        let limit = source
            .size_limit
            .as_ref()
            .and_then(|q| q.0.parse::<api::quantity::Quantity>().ok());
        shared::ensure_tmpfs(
            path,
            limit
                .map(|q| q.value().max(0).unsigned_abs())
                .filter(|n| *n > 0),
        )?;
    }
    let mode = if fs_group.is_some() { 0o2777 } else { 0o777 };
    if fs_group.is_some() {
        chown(path, None, fs_group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// `securityContext.fsGroup`.
fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.pod_spec().security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The user that all containers run as, if they all state the same.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.pod_spec();
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = pod
        .init_containers()
        .iter()
        .chain(&spec.containers)
        .map(|c| {
            c.security_context
                .as_ref()
                .and_then(|s| s.run_as_user)
                .or(of_pod)
        });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(())?;
    u32::try_from(first).ok()
}

/// Removes a pod's volumes; its containers' last words stay. It blocks, goes on past errors, and returns the first.
pub fn tear_down_volumes(config: &Config, uid: &str) -> io::Result<()> {
    let volumes = config.pod_dir(uid).join("volumes");
    let mut first = Ok(());
    let mut note = |outcome: io::Result<()>| {
        if first.is_ok() {
            first = outcome;
        }
    };
    if let Ok(entries) = std::fs::read_dir(volumes.join("kubernetes.io~empty-dir")) {
        for entry in entries.flatten() {
            note(shared::unmount_if_tmpfs(&entry.path()));
        }
    }
    note(remove(&config.volatile_pod_dir(uid)));
    // Never through a mount that is still there.
    first.and_then(|()| remove(&volumes))
}

/// Removes everything that a pod has on the node but its logs. It blocks.
pub fn tear_down(config: &Config, uid: &str) -> io::Result<()> {
    tear_down_volumes(config, uid)?;
    remove(&config.pod_dir(uid))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
