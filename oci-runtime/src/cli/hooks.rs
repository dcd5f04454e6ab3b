//! The hooks that the runtime runs itself (config.md, "POSIX-platform Hooks").

use super::Failure;
use crate::hooks::run_all;
use crate::plan::{HookPlan, hook_state, plan_hooks};
use crate::state::Container;
use linux::pidfd;
use oci_spec::runtime::Spec;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde_json::Value;
use std::os::fd::OwnedFd;

/// The hooks around a container's life, and the state that they read.
pub(super) struct RuntimeHooks {
    prestart: Vec<HookPlan>,
    create_runtime: Vec<HookPlan>,
    poststart: Vec<HookPlan>,
    poststop: Vec<HookPlan>,
    state: Value,
}

impl RuntimeHooks {
    pub(super) fn read(container: &Container, spec: &Spec) -> Result<Self, Failure> {
        let hooks = spec.hooks().clone().unwrap_or_default();
        #[allow(deprecated)] // the specification deprecates prestart, and still has it
        let prestart = plan_hooks("prestart", hooks.prestart())?;
        Ok(RuntimeHooks {
            prestart,
            create_runtime: plan_hooks("createRuntime", hooks.create_runtime())?,
            poststart: plan_hooks("poststart", hooks.poststart())?,
            poststop: plan_hooks("poststop", hooks.poststop())?,
            state: hook_state(spec, &container.record.id, &container.record.bundle),
        })
    }

    /// The two ends on which the container's process waits for [`RuntimeHooks::created`]: its, and ours.
    pub(super) fn gate(&self) -> Result<Option<(OwnedFd, OwnedFd)>, Failure> {
        if self.prestart.is_empty() && self.create_runtime.is_empty() {
            return Ok(None);
        }
        rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map(Some)
        .map_err(|errno| Failure::Kernel(linux::Error::new("socketpair", "", errno.raw_os_error())))
    }

    /// Runs what comes between the mounts and the change of root. False if the process ended before that; its
    /// status tells why.
    pub(super) fn created(&self, ours: &OwnedFd, pid: i32) -> Result<bool, Failure> {
        let failed = |operation, errno: rustix::io::Errno| {
            Failure::Kernel(linux::Error::new(
                operation,
                "the waiting process",
                errno.raw_os_error(),
            ))
        };
        let mut word = [0];
        if rustix::io::read(ours, &mut word).map_err(|errno| failed("read from", errno))? == 0 {
            return Ok(false);
        }
        run_all(
            "prestart",
            &self.prestart,
            &self.state,
            pid,
            "creating",
            None,
        )?;
        run_all(
            "createRuntime",
            &self.create_runtime,
            &self.state,
            pid,
            "creating",
            None,
        )?;
        rustix::io::write(ours, b"g").map_err(|errno| failed("write to", errno))?;
        Ok(true)
    }

    /// The program runs; the first hook that fails is its end.
    pub(super) fn started(&self, pid: i32, process: Option<&OwnedFd>) -> Result<(), Failure> {
        let ran = run_all(
            "poststart",
            &self.poststart,
            &self.state,
            pid,
            "running",
            None,
        );
        if ran.is_err()
            && let Some(process) = process
        {
            pidfd::kill(process)?;
        }
        Ok(ran?)
    }

    /// The container is gone: a failure is told, and changes nothing any more.
    pub(super) fn deleted(&self) {
        for hook in &self.poststop {
            if let Err(error) = run_all(
                "poststop",
                std::slice::from_ref(hook),
                &self.state,
                0,
                "stopped",
                None,
            ) {
                tracing::warn!("{error}");
            }
        }
    }
}
