//! `process.scheduler`, `ioPriority` and `execCPUAffinity`, and `linux.memoryPolicy`.

use crate::Error;
use linux::scheduling::{Scheduler, parse_list};
use oci_spec::runtime::{self, LinuxMemoryPolicy, Process};
use serde::{Deserialize, Serialize};

/// When and where a process runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SchedulingPlan {
    pub scheduler: Option<Scheduler>,
    /// Class and level.
    pub io_priority: Option<(u32, u32)>,
    /// Processors while it is being set up, in the runtime's cgroup.
    pub initial_affinity: Option<Vec<usize>>,
    /// Processors from `execve` on.
    pub affinity: Option<Vec<usize>>,
    /// Mode with its flags, and nodes.
    pub memory_policy: Option<(u32, Vec<usize>)>,
}

/// Reads a process's; `exec` is whether it goes into a running container, as CPU affinity is for those alone.
pub(super) fn plan_scheduling(process: &Process, exec: bool) -> Result<SchedulingPlan, Error> {
    let mut plan = SchedulingPlan {
        scheduler: process
            .scheduler()
            .as_ref()
            .map(plan_scheduler)
            .transpose()?,
        io_priority: process
            .io_priority()
            .as_ref()
            .map(plan_io_priority)
            .transpose()?,
        ..SchedulingPlan::default()
    };
    if let Some(affinity) = process.exec_cpu_affinity().as_ref().filter(|_| exec) {
        let list = |name: &str, text: &Option<String>| {
            let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            let field = || {
                Error::spec(
                    format!("process.execCPUAffinity.{name}"),
                    format!("bad list {text:?}"),
                )
            };
            parse_list(text).ok_or_else(field).map(Some)
        };
        plan.initial_affinity = list("initial", affinity.initial())?;
        plan.affinity = list("final", affinity.cpu_affinity_final())?;
    }
    Ok(plan)
}

fn plan_scheduler(spec: &runtime::Scheduler) -> Result<Scheduler, Error> {
    let name = spec.policy().to_string();
    let policies = [
        ("SCHED_OTHER", 0),
        ("SCHED_FIFO", 1),
        ("SCHED_RR", 2),
        ("SCHED_BATCH", 3),
        ("SCHED_IDLE", 5),
        ("SCHED_DEADLINE", 6),
    ];
    let policy = policies
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
        .ok_or_else(|| {
            Error::unsupported("process.scheduler.policy", format!("Linux has no {name}"))
        })?;
    let mut flags = 0;
    for flag in spec.flags().iter().flatten() {
        flags |= match flag {
            runtime::LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            runtime::LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            runtime::LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            runtime::LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            runtime::LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            runtime::LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            runtime::LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        };
    }
    let priority = spec.priority().unwrap_or(0);
    let priority = u32::try_from(priority).map_err(|_| {
        Error::spec(
            "process.scheduler.priority",
            format!("{priority} is negative"),
        )
    })?;
    Ok(Scheduler {
        policy,
        flags,
        nice: spec.nice().unwrap_or(0),
        priority,
        runtime: spec.runtime().unwrap_or(0),
        deadline: spec.deadline().unwrap_or(0),
        period: spec.period().unwrap_or(0),
    })
}

fn plan_io_priority(spec: &runtime::LinuxIOPriority) -> Result<(u32, u32), Error> {
    let class = match spec.class() {
        runtime::IOPriorityClass::IoprioClassRt => 1,
        runtime::IOPriorityClass::IoprioClassBe => 2,
        runtime::IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(spec.priority())
        .ok()
        .filter(|level| *level < 8);
    let bad = || {
        Error::spec(
            "process.ioPriority.priority",
            format!("{} is not 0 to 7", spec.priority()),
        )
    };
    Ok((class, level.ok_or_else(bad)?))
}

/// `linux.memoryPolicy` (config-linux.md, "Memory Policy").
pub(super) fn plan_memory_policy(spec: &LinuxMemoryPolicy) -> Result<(u32, Vec<usize>), Error> {
    let name = spec.mode().to_string();
    let modes = [
        "MPOL_DEFAULT",
        "MPOL_PREFERRED",
        "MPOL_BIND",
        "MPOL_INTERLEAVE",
        "MPOL_LOCAL",
        "MPOL_PREFERRED_MANY",
        "MPOL_WEIGHTED_INTERLEAVE",
    ];
    let mode = modes
        .iter()
        .position(|known| *known == name)
        .ok_or_else(|| Error::spec("linux.memoryPolicy.mode", format!("unknown mode {name}")))?;
    let mut mode = mode as u32;
    for flag in spec.flags().iter().flatten() {
        mode |= match flag {
            runtime::MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            runtime::MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            runtime::MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        };
    }
    let text = spec.nodes().as_deref().unwrap_or_default();
    let nodes = parse_list(text).ok_or_else(|| {
        Error::spec(
            "linux.memoryPolicy.nodes",
            format!("invalid memory policy node list {text:?}"),
        )
    })?;
    if ["MPOL_DEFAULT", "MPOL_LOCAL"].contains(&name.as_str()) && !nodes.is_empty() {
        return Err(Error::spec(
            "linux.memoryPolicy.nodes",
            format!("{name} mode requires 0 nodes but got {}", nodes.len()),
        ));
    }
    Ok((mode, nodes))
}
