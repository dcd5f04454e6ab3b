//! Who runs when and where: scheduling policy, processor affinity, I/O priority, memory policy.

use crate::error::{Context, Error, Result, check};
use serde::{Deserialize, Serialize};

/// `struct sched_attr` (sched_setattr(2)), as far as a specification sets it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, for SCHED_DEADLINE.
    pub period: u64,
}

/// Sets this thread's scheduling policy.
///
/// # Errors
/// EPERM without CAP_SYS_NICE, EINVAL for values that the policy doesn't take.
pub fn set_scheduler(scheduler: &Scheduler) -> Result<()> {
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attr = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    // SAFETY: the pointer is to a struct sched_attr that states its own size and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attr), 0u32) })
        .context("sched_setattr", || format!("{scheduler:?}"))?;
    Ok(())
}

/// Sets this thread's I/O priority: `class` is `IOPRIO_CLASS_*`, `level` 0 to 7.
///
/// # Errors
/// EPERM for the real-time class without CAP_SYS_ADMIN, EINVAL.
pub fn set_io_priority(class: u32, level: u32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: ioprio_set takes integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            class << 13 | (level & 0x1fff),
        )
    })
    .context("ioprio_set", || format!("class {class} level {level}"))?;
    Ok(())
}

/// Keeps this thread to these processors.
///
/// # Errors
/// EINVAL if none of them is there and allowed.
pub fn set_affinity(processors: &[usize]) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    for processor in processors {
        if *processor >= rustix::thread::CpuSet::MAX_CPU {
            return Err(Error::new(
                "sched_setaffinity",
                format!("processor {processor}"),
                libc::EINVAL,
            ));
        }
        set.set(*processor);
    }
    rustix::thread::sched_setaffinity(None, &set)
        .context("sched_setaffinity", || format!("{processors:?}"))
}

/// Lets this thread run on every processor that its cgroup allows.
///
/// # Errors
/// The system call's.
pub fn reset_affinity() -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|processor| set.set(processor));
    rustix::thread::sched_setaffinity(None, &set).context("sched_setaffinity", || "all")
}

/// Sets from which nodes this thread's memory comes: `mode` is `MPOL_*` with its flags.
///
/// # Errors
/// EINVAL for nodes that aren't there, or a mode without or with nodes against its kind.
pub fn set_memory_policy(mode: u32, nodes: &[usize]) -> Result<()> {
    let mut mask = [0u64; 16];
    for node in nodes {
        let word = mask
            .get_mut(node / 64)
            .ok_or_else(|| Error::new("set_mempolicy", format!("node {node}"), libc::EINVAL))?;
        *word |= 1 << (node % 64);
    }
    let (pointer, bits) = if nodes.is_empty() {
        (std::ptr::null(), 0)
    } else {
        (mask.as_ptr(), mask.len() * 64 + 1)
    };
    // SAFETY: the mask is null, or has at least the number of bits that is passed less one, as set_mempolicy counts,
    // and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })
        .context("set_mempolicy", || {
            format!("mode {mode:#x} nodes {nodes:?}")
        })?;
    Ok(())
}

/// Reads a list such as `0-3,7` (cpuset(7), "List format"); `None` if it is malformed or absurdly large.
pub fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut out = Vec::new();
    for part in text
        .trim()
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= 1024 {
            return None;
        }
        out.extend(first..=last);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_nonsense_is_not() {
        assert_eq!(parse_list("0-2, 7"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_list(""), Some(vec![]));
        for text in ["a", "3-1", "0-99999", "1-"] {
            assert_eq!(parse_list(text), None, "{text}");
        }
    }
}
