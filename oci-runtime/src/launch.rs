//! Starting a planned process: the parent's side.

use crate::{ExecPlan, LaunchError, LaunchPlan};
use std::os::fd::OwnedFd;

/// What the first process has as descriptors 0, 1 and 2.
#[derive(Debug)]
pub enum Stdio {
    /// These three; they are owned by the container's user afterwards, so that it can reopen them.
    Fds {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
    /// A new terminal of the container's own devpts; its master is [`Launched::terminal`].
    Terminal {
        /// Columns and rows; the kernel's 0 by 0 where absent (or the spec's `consoleSize`).
        size: Option<(u16, u16)>,
    },
}

/// A process on its way to `execve`.
#[derive(Debug)]
pub struct Launched {
    /// Its pid in the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// End of file means that `execve` succeeded; bytes before it are for [`crate::read_status`]. Poll it.
    pub status: OwnedFd,
    /// The master of the terminal, with [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
}

/// Starts a container's first process.
///
/// The caller must have a single thread (checked), and is the parent of the process. Returns right after the clone
/// and does not wait for `execve`.
///
/// # Errors
/// If the process could not be cloned; later failures arrive through [`Launched::status`].
pub fn launch(plan: &LaunchPlan, fds: Vec<OwnedFd>, stdio: Stdio) -> Result<Launched, LaunchError> {
    let _ = (plan, fds, stdio);
    Err(LaunchError::new("launch", "this build has only the signatures"))
}

/// Starts another process in a running container; otherwise as [`launch`].
///
/// # Errors
/// As [`launch`].
pub fn exec(plan: &ExecPlan, fds: Vec<OwnedFd>, stdio: Stdio) -> Result<Launched, LaunchError> {
    let _ = (plan, fds, stdio);
    Err(LaunchError::new("exec", "this build has only the signatures"))
}

/// Starts the init of a pod that shares a pid namespace: a process of a few kilobytes that reaps and forwards nothing,
/// and ends on SIGTERM. Its [`Launched::status`] ends as soon as it is ready.
///
/// `namespaces` are joined first (by descriptor, as the pod's `user` namespace must own the new pid namespace).
///
/// # Errors
/// As [`launch`].
pub fn launch_pod_init(
    cgroup: Option<(&crate::CgroupPlan, Vec<OwnedFd>)>,
    user_namespace: Option<OwnedFd>,
) -> Result<Launched, LaunchError> {
    let _ = (cgroup, user_namespace);
    Err(LaunchError::new("launch pod init", "this build has only the signatures"))
}
