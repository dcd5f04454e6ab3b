//! What a launch needs, resolved ahead of it: plain data, and descriptors that it refers to by index.

mod bind_flags;
mod cgroup;
mod cgroup_mounts;
mod devices;
mod hooks;
mod launch;
mod mount_options;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod scheduling;
mod types;

pub use cgroup::CgroupPlan;
pub use launch::{LaunchResources, Rootfs, plan_launch};
pub(crate) use mount_options::MOUNT_OPTIONS;
pub(crate) use namespaces::plan_user_mapping;
pub(crate) use process::plan_exec_below;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use process::plan_process;
pub(crate) use process::setgroups_allowed;
pub use process::{ExecTarget, plan_exec, session_keyring};
pub(crate) use resources::{apply_devices, spec_device_rules};
pub use resources::{apply_resources, cgroup_resources};
pub use types::{ExecPlan, LaunchPlan};

pub(crate) use types::{
    DevicePlan, DeviceSource, Fd, ListenerPlan, MountPlan, MountSource, NamespacePlan, ProcessPlan,
    RootfsPlan, SeccompPlan, UserMapping,
};

pub(crate) use hooks::{HookPlan, HooksPlan, hook_state, plan_hooks};
pub(crate) use scheduling::SchedulingPlan;

use std::os::fd::OwnedFd;

/// The descriptors of a plan, while it is being made.
#[derive(Debug, Default)]
pub(crate) struct FdList(Vec<OwnedFd>);

impl FdList {
    pub(crate) fn push(&mut self, fd: OwnedFd) -> Fd {
        self.0.push(fd);
        Fd(self.0.len() - 1)
    }

    /// Another descriptor for the same thing.
    pub(crate) fn duplicate(&self, fd: Fd) -> Result<OwnedFd, crate::Error> {
        let found = self
            .0
            .get(fd.0)
            .ok_or_else(|| crate::Error::spec("plan", "a descriptor is missing"))?;
        found.try_clone().map_err(|error| crate::Error::Kernel {
            step: "prepare descriptors".to_owned(),
            cause: linux::Error::io("dup", "", &error),
        })
    }

    pub(crate) fn into_inner(self) -> Vec<OwnedFd> {
        self.0
    }
}
