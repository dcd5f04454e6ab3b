//! Resource limits of a process (getrlimit(2)).

use crate::error::{Context, Result, check};
use serde::{Deserialize, Serialize};

/// One limit. `u64::MAX` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*`'s number.
    pub resource: u32,
    /// What counts.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

const NAMES: [(&str, u32); 16] = [
    ("RLIMIT_CPU", 0),
    ("RLIMIT_FSIZE", 1),
    ("RLIMIT_DATA", 2),
    ("RLIMIT_STACK", 3),
    ("RLIMIT_CORE", 4),
    ("RLIMIT_RSS", 5),
    ("RLIMIT_NPROC", 6),
    ("RLIMIT_NOFILE", 7),
    ("RLIMIT_MEMLOCK", 8),
    ("RLIMIT_AS", 9),
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
];

/// The number of `RLIMIT_NOFILE` and its like, as on x86 and ARM.
pub fn resource_named(name: &str) -> Option<u32> {
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

fn prlimit(resource: u32, new: Option<&libc::rlimit64>) -> nix::Result<libc::rlimit64> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both pointers are to live structures of the type that the call takes, or null.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            new,
            std::ptr::from_mut(&mut old),
        )
    })?;
    Ok(old)
}

/// This process's limit.
///
/// # Errors
/// EINVAL for an unknown resource.
pub fn get(resource: u32) -> Result<Rlimit> {
    let old = prlimit(resource, None).context("prlimit", || resource.to_string())?;
    Ok(Rlimit {
        resource,
        soft: old.rlim_cur,
        hard: old.rlim_max,
    })
}

/// Sets this process's limit, or without CAP_SYS_RESOURCE the nearest that the kernel allows: the present hard limit.
/// Returns what was set.
///
/// # Errors
/// EINVAL for a soft limit above the hard one.
pub fn set(limit: Rlimit) -> Result<Rlimit> {
    let as_raw = |limit: Rlimit| libc::rlimit64 {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    match prlimit(limit.resource, Some(&as_raw(limit))) {
        Err(nix::errno::Errno::EPERM) => {
            let present = get(limit.resource)?;
            let hard = limit.hard.min(present.hard);
            let nearest = Rlimit {
                soft: limit.soft.min(hard),
                hard,
                ..limit
            };
            prlimit(limit.resource, Some(&as_raw(nearest)))
                .context("prlimit", || format!("{nearest:?}"))?;
            Ok(nearest)
        }
        other => other
            .map(|_| limit)
            .context("prlimit", || format!("{limit:?}")),
    }
}
