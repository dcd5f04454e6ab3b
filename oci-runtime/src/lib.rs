//! OCI container launch: create, start, exec, kill and delete, after runtime-spec 1.3, and runc's command line over it.
//!
//! A launch has two halves. [`plan_launch`] runs in the daemon, which is threaded: it opens mount sources as detached
//! mounts, compiles seccomp and resolves the spec, and its result is plain data plus descriptors. [`launch`] runs in a
//! single-threaded process, clones the container's first process, and looks nothing up. The command line does both in
//! one process.

pub mod cli;
mod document;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod hooks;
mod init;
mod launch;
mod net_devices;
mod plan;
pub mod seccomp;
mod state;
mod systemd;

pub use error::{Error, LaunchError, read_status};
pub use launch::{Launched, Stdio, exec, launch, launch_pod_init};
pub use plan::{
    CgroupPlan, ExecPlan, ExecTarget, LaunchPlan, LaunchResources, Rootfs, apply_resources,
    cgroup_resources, plan_exec, plan_launch, session_keyring,
};
