//! Capabilities (capabilities(7)): names, and the five sets of a process.

use crate::error::{Context, Error, Result, check};
use serde::{Deserialize, Serialize};

/// A set of capabilities; bit n is capability number n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set(pub u64);

/// Names by number, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// `CAP_SETGID`.
pub const SETGID: Set = Set(1 << 6);
/// `CAP_SYS_RESOURCE`.
pub const SYS_RESOURCE: Set = Set(1 << 24);
/// `CAP_SYS_ADMIN`.
pub const SYS_ADMIN: Set = Set(1 << 21);

impl Set {
    /// The set of the one capability with this name (`CAP_CHOWN` or `CHOWN`, in any case).
    pub fn named(name: &str) -> Option<Set> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES
            .iter()
            .position(|known| *known == bare)
            .map(|number| Set(1 << number))
    }

    /// All capabilities that this build knows.
    pub fn all_known() -> Set {
        Set((1 << NAMES.len()) - 1)
    }

    /// Both sets' members.
    #[must_use]
    pub fn union(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    /// What both sets have.
    #[must_use]
    pub fn intersection(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    /// Whether `other` is in it.
    pub fn contains(self, other: Set) -> bool {
        self.0 & other.0 == other.0
    }

    /// The members' names, with `CAP_`, by number.
    pub fn names(self) -> impl Iterator<Item = String> {
        NAMES
            .iter()
            .enumerate()
            .filter(move |(number, _)| self.0 & (1 << number) != 0)
            .map(|(_, name)| format!("CAP_{name}"))
    }
}

/// A process's five sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sets {
    /// The limit for what can ever be gained.
    pub bounding: Set,
    /// What is checked.
    pub effective: Set,
    /// What may be effective.
    pub permitted: Set,
    /// What survives `execve` through file capabilities.
    pub inheritable: Set,
    /// What survives `execve` without them.
    pub ambient: Set,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// This thread's effective, permitted and inheritable sets (the others empty).
///
/// # Errors
/// The `capget`'s.
pub fn current() -> Result<Sets> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 takes a header and an array of two data structures, which both live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_capget,
            std::ptr::from_mut(&mut header),
            data.as_mut_ptr(),
        )
    })
    .context("capget", || "")?;
    let join = |low: u32, high: u32| Set(u64::from(low) | u64::from(high) << 32);
    Ok(Sets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
        ..Sets::default()
    })
}

/// Drops all but these from the bounding set. What the kernel has and this build doesn't know is dropped too.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn limit_bounding(keep: Set) -> Result<()> {
    for number in 0..64 {
        if keep.0 & (1 << number) != 0 {
            continue;
        }
        // SAFETY: PR_CAPBSET_DROP takes an integer.
        match check(unsafe {
            libc::c_long::from(libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0))
        }) {
            // Past the kernel's last capability.
            Err(nix::errno::Errno::EINVAL) => break,
            other => other.context("prctl", || format!("PR_CAPBSET_DROP {number}"))?,
        };
    }
    Ok(())
}

/// Sets effective, permitted and inheritable, in one call.
///
/// # Errors
/// EPERM for raising what isn't permitted.
pub fn set(sets: &Sets) -> Result<()> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Data {
        effective: (sets.effective.0 >> shift) as u32,
        permitted: (sets.permitted.0 >> shift) as u32,
        inheritable: (sets.inheritable.0 >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes a header and an array of two data structures, which both live through the call.
    check(unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), data.as_ptr()) })
        .context("capset", || format!("{sets:x?}"))?;
    Ok(())
}

/// Makes all that is permitted effective: what a change of user id took away comes back.
///
/// # Errors
/// The `capget`'s or `capset`'s.
pub fn raise_permitted() -> Result<()> {
    let own = current()?;
    set(&Sets {
        effective: own.permitted,
        ..own
    })
}

/// Sets the ambient set; what is not both permitted and inheritable is left out, as runc does.
///
/// # Errors
/// The `prctl`'s.
pub fn set_ambient(ambient: Set) -> Result<()> {
    rustix::thread::clear_ambient_capability_set()
        .context("prctl", || "PR_CAP_AMBIENT_CLEAR_ALL")?;
    for number in 0..64u32 {
        if ambient.0 & (1 << number) == 0 {
            continue;
        }
        // SAFETY: PR_CAP_AMBIENT takes integers.
        let raised = check(unsafe {
            libc::c_long::from(libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                number,
                0,
                0,
            ))
        });
        match raised {
            Ok(_) | Err(nix::errno::Errno::EPERM) => {}
            Err(errno) => {
                return Err(Error::new(
                    "prctl",
                    format!("PR_CAP_AMBIENT {number}"),
                    errno as i32,
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_kernel_headers() {
        assert_eq!(Set::named("CAP_SYS_ADMIN"), Some(SYS_ADMIN));
        assert_eq!(Set::named("checkpoint_restore"), Some(Set(1 << 40)));
        assert_eq!(Set::named("CAP_NOTHING"), None);
        assert_eq!(
            Set(0b101).names().collect::<Vec<_>>(),
            ["CAP_CHOWN", "CAP_DAC_READ_SEARCH"]
        );
    }
}
