//! The mount table: what every container has, the sandbox's files, and the request's mounts.

use std::path::{Path, PathBuf};

use cri_api::v1::{IdMapping, LinuxContainerSecurityContext, Mount as Asked, MountPropagation};
use oci_spec::runtime::Mount;

use super::user_namespace::{mount_mappings, oci_mappings, user_mapping};
use super::{Error, Inputs, sandbox_namespaces_of};

/// Where the sandbox's shared memory appears.
pub const SHM: &str = "/dev/shm";

/// The sandbox's files on the host.
#[derive(Debug, Clone, Default)]
pub struct Files {
    pub resolv_conf: PathBuf,
    pub hostname: PathBuf,
    pub hosts: PathBuf,
}

/// The mounts, in the order in which they are made: a mount point's parents come first.
pub fn container(
    inputs: &Inputs<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Vec<Mount>, Error> {
    let of_pod = user_mapping(&sandbox_namespaces_of(inputs.sandbox))?;
    let mut asked: Vec<&Asked> = inputs.mounts.iter().collect();
    asked.sort_by_key(|mount| depth(&mount.container_path));
    let taken = |path: &str| {
        asked
            .iter()
            .any(|mount| clean(&mount.container_path) == path)
    };
    let mut mounts: Vec<Mount> = defaults(inputs, security, of_pod)
        .into_iter()
        .filter(|mount| !taken(&mount.destination().to_string_lossy()))
        .collect();
    for mount in asked {
        mounts.push(bind(mount, of_pod)?);
    }
    Ok(mounts)
}

fn defaults(
    inputs: &Inputs<'_>,
    security: &LinuxContainerSecurityContext,
    of_pod: Option<IdMapping>,
) -> Vec<Mount> {
    let access = if security.privileged { "rw" } else { "ro" };
    let quiet = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| -> Vec<&'static str> {
        quiet.iter().chain(more).copied().collect()
    };
    let mut terminals = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    // The terminals' group, if the pod has it.
    if of_pod.is_none_or(|mapping| mapping.length > 5) {
        terminals.push("gid=5");
    }
    let file_access = if security.readonly_rootfs { "ro" } else { "rw" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &quiet),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount("/dev/pts", "devpts", "devpts", &terminals),
        mount("/sys", "sysfs", "sysfs", &with(&[access])),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &with(&["relatime", access]),
        ),
    ];
    // It shows the queues of the IPC namespace that it is mounted in, the host's too, mounted there or not.
    mounts.push(mount("/dev/mqueue", "mqueue", "mqueue", &quiet));
    // The sandbox's own comes as a descriptor; the path is for whoever reads the specification.
    mounts.push(mount(SHM, "bind", "/dev/shm", &with(&["rbind"])));
    for (target, source) in [
        ("/etc/resolv.conf", &inputs.files.resolv_conf),
        ("/etc/hostname", &inputs.files.hostname),
        ("/etc/hosts", &inputs.files.hosts),
    ] {
        mounts.push(mount(
            target,
            "bind",
            &source.to_string_lossy(),
            &["rbind", "rprivate", file_access],
        ));
    }
    mounts
}

fn bind(asked: &Asked, of_pod: Option<IdMapping>) -> Result<Mount, Error> {
    if !asked.container_path.starts_with('/') {
        return Err(Error::invalid(
            "mounts.container_path",
            format!("{:?} is not absolute", asked.container_path),
        ));
    }
    let propagation = match asked.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    let access = match (asked.readonly, asked.recursive_read_only) {
        (true, true) if asked.propagation() != MountPropagation::PropagationPrivate => {
            return Err(Error::invalid(
                "mounts.recursive_read_only",
                "needs private propagation",
            ));
        }
        (true, true) => "rro",
        (false, true) => {
            return Err(Error::invalid(
                "mounts.recursive_read_only",
                "needs readonly",
            ));
        }
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let mut options = vec!["rbind", propagation, access];
    let mappings = mount_mappings(asked)?;
    let image = asked
        .image
        .as_ref()
        .is_some_and(|image| !image.image.is_empty());
    let as_pods = mappings.is_some_and(|[uids, gids]| {
        of_pod.is_some_and(|mapping| uids == [mapping] && gids == [mapping])
    });
    // The pod's namespace is there already; another mapping takes one more. An image's layers are mapped one by one.
    if as_pods && !image {
        options.push("idmap");
    }
    let mut mount = mount(
        &clean(&asked.container_path),
        "bind",
        &asked.host_path,
        &options,
    );
    if let Some([uids, gids]) = mappings.filter(|_| !as_pods && !image) {
        mount.set_uid_mappings(Some(oci_mappings(uids)?));
        mount.set_gid_mappings(Some(oci_mappings(gids)?));
    }
    Ok(mount)
}

/// An image's volume, which comes as a descriptor.
pub fn volume(path: &Path) -> Mount {
    let path = path.to_string_lossy();
    mount(&path, "bind", &path, &["rbind", "rprivate", "rw"])
}

/// A rootfs takes part in propagation only if a mount in it does.
pub fn rootfs_propagation(mounts: &[Asked]) -> Option<&'static str> {
    let wants = |propagation| {
        mounts
            .iter()
            .any(|mount| mount.propagation() == propagation)
    };
    if wants(MountPropagation::PropagationBidirectional) {
        Some("rshared")
    } else if wants(MountPropagation::PropagationHostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(target.into());
    mount.set_typ(Some(kind.into()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(
        options.iter().map(|option| (*option).to_owned()).collect(),
    ));
    mount
}

/// A path as it stands in the specification: absolute, without doubled slashes.
pub fn clean(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    format!("/{}", parts.join("/"))
}

fn depth(path: &str) -> usize {
    path.split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .count()
}
