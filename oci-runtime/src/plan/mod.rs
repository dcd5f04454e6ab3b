//! What a launch needs, resolved ahead of it.

use crate::Error;
use linux::{cgroup::Cgroup, namespace::NamespaceKind};
use oci_spec::runtime::{Process, Spec};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What a container's first process needs, all resolved: after this no path is looked up on the host and no file is
/// parsed. Refers to descriptors by index into the list that travels with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchPlan {}

/// The same for another process in a running container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecPlan {}

/// How a process joins its cgroup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CgroupPlan {}

/// Where the container's root file system is.
#[derive(Debug)]
pub enum Rootfs {
    /// A detached mount, as [`linux::mount::overlay`] makes; `root.path` of the spec is not looked at.
    Detached(OwnedFd),
    /// A directory on the host; it is bound (recursively) first.
    Path(PathBuf),
}

/// What the spec does not hold, or what the caller holds already and better than by path.
#[derive(Debug)]
pub struct LaunchResources {
    /// The container's id; names its session keyring.
    pub id: String,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Relative mount sources are looked up from here.
    pub bundle: PathBuf,
    /// The container's cgroup, which exists and has its limits; with `None` it stays in the caller's.
    pub cgroup: Option<Cgroup>,
    /// Namespaces to join, by descriptor: they take the place of the spec's entry of the same kind.
    pub namespaces: Vec<(NamespaceKind, OwnedFd)>,
    /// Detached mounts by the spec's `destination`: they take the place of opening that entry's `source`; its
    /// attribute options (`ro`, `nosuid`, propagation) are still applied.
    pub mounts: Vec<(PathBuf, OwnedFd)>,
    /// With a listening unix socket, the process waits before `execve` until somebody connects, and reports to them
    /// whether `execve` worked (`create` and `start`).
    pub gate: Option<OwnedFd>,
}

/// The running container that an exec goes into.
#[derive(Debug)]
pub struct ExecTarget {
    /// Its first process in the caller's pid namespace.
    pub pid: i32,
    /// That process's pidfd: the namespaces are joined through it, so a reused pid can't be entered.
    pub pidfd: OwnedFd,
    /// The cgroup for the process: the container's, or a child made for this exec.
    pub cgroup: Option<Cgroup>,
}

/// Prepares a container's launch: opens its mounts, compiles its seccomp profile, and resolves all the rest.
///
/// The caller may be threaded. Follows runtime-spec 1.3, `config.md` and `config-linux.md`.
///
/// # Errors
/// [`Error::Spec`] for a spec that can't be followed, [`Error::Unsupported`] for what the host lacks, and
/// [`Error::Kernel`] where a source can't be opened.
pub fn plan_launch(spec: &Spec, resources: LaunchResources) -> Result<(LaunchPlan, Vec<OwnedFd>), Error> {
    let _ = (spec, resources);
    Err(Error::unsupported("launch", "this build has only the signatures"))
}

/// Prepares another process in a running container.
///
/// # Errors
/// As [`plan_launch`].
pub fn plan_exec(process: &Process, target: ExecTarget) -> Result<(ExecPlan, Vec<OwnedFd>), Error> {
    let _ = (process, target);
    Err(Error::unsupported("exec", "this build has only the signatures"))
}
