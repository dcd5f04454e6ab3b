//! What a launch needs, resolved ahead of it: plain data, and descriptors that it refers to by index.

mod cgroup;
mod launch;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod types;

pub use cgroup::CgroupPlan;
pub use launch::{LaunchResources, Rootfs, plan_launch};
pub(crate) use mounts::MOUNT_OPTIONS;
pub use process::{ExecTarget, plan_exec};
pub use resources::{apply_resources, cgroup_resources};
pub use types::{ExecPlan, LaunchPlan};

pub(crate) use types::{
    DevicePlan, DeviceSource, Fd, MountPlan, MountSource, NamespacePlan, ProcessPlan, RootfsPlan,
    SeccompPlan, UserMapping,
};

use std::os::fd::OwnedFd;

/// The descriptors of a plan, while it is being made.
#[derive(Debug, Default)]
pub(crate) struct FdList(Vec<OwnedFd>);

impl FdList {
    pub(crate) fn push(&mut self, fd: OwnedFd) -> Fd {
        self.0.push(fd);
        Fd(self.0.len() - 1)
    }

    pub(crate) fn into_inner(self) -> Vec<OwnedFd> {
        self.0
    }
}
