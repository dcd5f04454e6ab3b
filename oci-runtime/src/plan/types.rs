//! The plans' data.

use super::cgroup::CgroupPlan;
use super::{HooksPlan, SchedulingPlan};
use crate::net_devices::NetDevicePlan;
use linux::capability::Sets;
use linux::mount::{Attributes, FsOption, Propagation};
use linux::namespace::NamespaceKind;
use linux::path::Target;
use linux::rlimit::Rlimit;
use linux::seccomp::Program;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An index into the descriptors that travel with the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fd(pub usize);

/// What a container's first process needs, all resolved: after this no path is looked up on the host and no file is
/// parsed. Refers to descriptors by index into the list that travels with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchPlan {
    pub(crate) namespaces: NamespacePlan,
    pub(crate) cgroup: CgroupPlan,
    pub(crate) rootfs: RootfsPlan,
    pub(crate) mounts: Vec<MountPlan>,
    /// Device nodes, with `/dev`'s usual links; `None` where `/dev` is the host's.
    pub(crate) devices: Option<Vec<DevicePlan>>,
    pub(crate) masked_paths: Vec<PathBuf>,
    pub(crate) readonly_paths: Vec<PathBuf>,
    pub(crate) host_name: Option<String>,
    pub(crate) domain_name: Option<String>,
    /// Path below `/proc/sys` and value.
    pub(crate) sysctls: Vec<(String, String)>,
    /// The devpts instance for the terminal.
    pub(crate) devpts: Option<Fd>,
    /// A listening socket at which the process waits before `execve`.
    pub(crate) gate: Option<Fd>,
    pub(crate) hooks: HooksPlan,
    /// The process waits until they have been moved.
    pub(crate) net_devices: Vec<NetDevicePlan>,
    pub(crate) process: ProcessPlan,
}

/// What another process in a running container needs, as [`LaunchPlan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The container's first process.
    pub(crate) pidfd: Fd,
    /// The namespaces to join, as far as they aren't the caller's already.
    pub(crate) kinds: Vec<NamespaceKind>,
    /// The container's root directory.
    pub(crate) root: Fd,
    pub(crate) cgroup: CgroupPlan,
    pub(crate) devpts: Option<Fd>,
    pub(crate) process: ProcessPlan,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NamespacePlan {
    /// Made by the clone.
    pub new: Vec<NamespaceKind>,
    /// Made by the child once it is in its cgroup, so that its root is that cgroup.
    pub new_cgroup: bool,
    /// Joined.
    pub join: Vec<(NamespaceKind, Fd)>,
    /// For a new user namespace.
    pub user_mapping: Option<UserMapping>,
    /// The text for `timens_offsets`, for a new time namespace.
    pub time_offsets: String,
}

impl NamespacePlan {
    pub fn makes(&self, kind: NamespaceKind) -> bool {
        self.new.contains(&kind) || (kind == NamespaceKind::Cgroup && self.new_cgroup)
    }

    pub fn joins(&self, kind: NamespaceKind) -> Option<Fd> {
        self.join
            .iter()
            .find(|(joined, _)| *joined == kind)
            .map(|(_, fd)| *fd)
    }

    /// Whether the process has a user namespace of its own or its pod's.
    pub fn has_user(&self) -> bool {
        self.makes(NamespaceKind::User) || self.joins(NamespaceKind::User).is_some()
    }
}

/// The text of `uid_map` and `gid_map`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserMapping {
    pub uid_map: String,
    pub gid_map: String,
    /// Whether setgroups must be denied before the group map may be written (an unprivileged caller).
    pub deny_setgroups: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RootfsPlan {
    pub mount: Fd,
    /// Where hooks find it while the host's files are still there; absent, it covers the root.
    pub place: Option<PathBuf>,
    /// Whether the mount namespace is the host's: nothing else of it changes, and its root stays.
    pub among_hosts: bool,
    pub readonly: bool,
    pub propagation: Option<(Propagation, bool)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MountPlan {
    pub destination: PathBuf,
    pub source: MountSource,
    pub target: Target,
    pub attributes: Attributes,
    /// Applied to all mounts below too.
    pub recursive_attributes: Attributes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum MountSource {
    /// A detached mount.
    Detached(Fd),
    /// A file system, made in the child since it depends on its namespaces.
    FileSystem {
        kind: String,
        source: Option<String>,
        options: Vec<FsOption>,
        copy_up: bool,
    },
    /// What an earlier mount brought into the container's tree, which is there only once that is attached. Its ids are
    /// mapped by a user namespace, for all mounts below too or not.
    Inside {
        path: PathBuf,
        recursive: bool,
        idmap: Option<(Fd, bool)>,
    },
    /// What is at the destination already: only the attributes change.
    Existing,
    /// A symbolic link, which is not a mount but belongs among them (`/sys/fs/cgroup/cpu` to `cpu,cpuacct`).
    Link(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DevicePlan {
    pub path: PathBuf,
    pub source: DeviceSource,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum DeviceSource {
    /// `mode` has the file type's bits.
    Node {
        mode: u32,
        major: u32,
        minor: u32,
        uid: u32,
        gid: u32,
    },
    /// The host's, as a detached mount: a user namespace may not make nodes.
    Bind(Fd),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub terminal_size: Option<(u16, u16)>,
    pub uid: u32,
    pub gid: u32,
    /// The user's id outside of its user namespace, if it has one and the spec says its mapping.
    pub outer_uid: Option<u32>,
    /// `None` where setgroups is denied.
    pub groups: Option<Vec<u32>>,
    pub umask: Option<u32>,
    pub capabilities: Sets,
    pub no_new_privs: bool,
    pub seccomp: Option<SeccompPlan>,
    pub rlimits: Vec<Rlimit>,
    pub scheduling: SchedulingPlan,
    pub oom_score_adj: Option<i32>,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
    pub personality: Option<u32>,
    /// The session keyring's name; `None` keeps the caller's.
    pub keyring: Option<String>,
    /// How many descriptors from 3 on the program inherits.
    pub preserve_fds: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SeccompPlan {
    pub program: Program,
    pub flags: u32,
    pub listener: Option<ListenerPlan>,
}

/// Who gets the listener's descriptor, and with which words: the container process state, but for its pid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListenerPlan {
    pub socket: Fd,
    pub state: serde_json::Value,
}
