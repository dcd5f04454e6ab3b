//! The flags of a bind mount, as other runtimes take them: they are the whole set and no change of the source's.
//!
//! Without any, the source's stay. With one, those that aren't asked for are cleared, but for the times of access, which
//! stay unless one of theirs is asked for. In a user namespace the kernel locks the source's flags: those that are not
//! spoken of stay then, and to ask for their opposite is an error.

use linux::mount::{Attributes, attr};
use std::os::fd::AsFd;

/// Flags in statvfs's and mount(2)'s bits, which agree for those that are here.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct BindFlags {
    set: u64,
    cleared: u64,
}

const PLAIN: [(u64, u64); 5] = [
    (libc::MS_RDONLY, attr::RDONLY),
    (libc::MS_NOSUID, attr::NOSUID),
    (libc::MS_NODEV, attr::NODEV),
    (libc::MS_NOEXEC, attr::NOEXEC),
    (NOSYMFOLLOW, attr::NOSYMFOLLOW),
];
const NOSYMFOLLOW: u64 = 256;
const TIMES: u64 =
    libc::MS_NOATIME | libc::MS_RELATIME | libc::MS_STRICTATIME | libc::MS_NODIRATIME;
/// What a mount has of [`TIMES`]: strict is the absence of the others.
const MOUNT_TIMES: u64 = TIMES & !libc::MS_STRICTATIME;
/// nosymfollow is not among what the kernel locks.
const LOCKED: u64 =
    libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | MOUNT_TIMES;

impl BindFlags {
    /// Takes an option if it is about these flags.
    pub(super) fn read(&mut self, option: &str) {
        let (bit, set) = match option {
            "ro" => (libc::MS_RDONLY, true),
            "rw" => (libc::MS_RDONLY, false),
            "nosuid" => (libc::MS_NOSUID, true),
            "suid" => (libc::MS_NOSUID, false),
            "nodev" => (libc::MS_NODEV, true),
            "dev" => (libc::MS_NODEV, false),
            "noexec" => (libc::MS_NOEXEC, true),
            "exec" => (libc::MS_NOEXEC, false),
            "nosymfollow" => (NOSYMFOLLOW, true),
            "symfollow" => (NOSYMFOLLOW, false),
            "nodiratime" => (libc::MS_NODIRATIME, true),
            "diratime" => (libc::MS_NODIRATIME, false),
            "noatime" => (libc::MS_NOATIME, true),
            "atime" => (libc::MS_NOATIME, false),
            "relatime" => (libc::MS_RELATIME, true),
            "norelatime" => (libc::MS_RELATIME, false),
            "strictatime" => (libc::MS_STRICTATIME, true),
            "nostrictatime" => (libc::MS_STRICTATIME, false),
            _ => return,
        };
        self.set &= !bit;
        self.cleared &= !bit;
        if set {
            self.set |= bit;
        } else {
            self.cleared |= bit;
        }
    }

    pub(super) fn is_empty(self) -> bool {
        self == BindFlags::default()
    }

    /// The change that a mount with the flags `source` takes; `locked` is whether the kernel would hold on to them.
    ///
    /// # Errors
    /// The names of those that are locked and were asked to go.
    pub(super) fn over(self, source: u64, locked: bool) -> Result<Attributes, String> {
        let mut wanted = self.set;
        let times = match self.set & TIMES {
            0 => source & MOUNT_TIMES,
            // The kernel's own order: strict over none, none over relative, relative where nothing is said.
            asked if asked & libc::MS_STRICTATIME != 0 => asked & libc::MS_NODIRATIME,
            asked if asked & libc::MS_NOATIME != 0 => asked & !libc::MS_RELATIME,
            asked => asked | libc::MS_RELATIME,
        };
        if locked {
            let taken = source & LOCKED & !MOUNT_TIMES & !wanted;
            if taken != 0 || times != source & MOUNT_TIMES {
                let mut refused = source & self.cleared & LOCKED;
                if times != source & MOUNT_TIMES {
                    refused |= (source | times) & MOUNT_TIMES;
                }
                if refused != 0 {
                    return Err(names(refused));
                }
                wanted |= taken;
            }
        }
        let mut change = Attributes::default();
        for (flag, attribute) in PLAIN {
            if wanted & flag != 0 {
                change.set |= attribute;
            } else {
                change.clear |= attribute;
            }
        }
        if times != source & MOUNT_TIMES {
            change.clear |= attr::ATIME | attr::NODIRATIME;
            if times & libc::MS_NODIRATIME != 0 {
                change.set |= attr::NODIRATIME;
            }
            change.set |= match times & !libc::MS_NODIRATIME {
                libc::MS_NOATIME => attr::NOATIME,
                libc::MS_RELATIME => 0,
                _ => attr::STRICTATIME,
            };
        }
        Ok(change)
    }
}

fn names(flags: u64) -> String {
    let known = [
        (libc::MS_RDONLY, "ro"),
        (libc::MS_NOSUID, "nosuid"),
        (libc::MS_NODEV, "nodev"),
        (libc::MS_NOEXEC, "noexec"),
        (libc::MS_NOATIME, "noatime"),
        (libc::MS_NODIRATIME, "nodiratime"),
        (libc::MS_RELATIME, "relatime"),
    ];
    let set: Vec<&str> = known
        .iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, name)| *name)
        .collect();
    set.join(",")
}

/// A mount's flags as statvfs(3) tells them, in mount(2)'s bits.
pub(super) fn mount_flags(mount: impl AsFd) -> linux::Result<u64> {
    // The two that have another bit in statvfs.
    const ST_RELATIME: u64 = 4096;
    const ST_NOSYMFOLLOW: u64 = 8192;
    let told = rustix::fs::fstatvfs(mount)
        .map_err(|errno| linux::Error::new("fstatvfs", "mount source", errno.raw_os_error()))?
        .f_flag
        .bits();
    let mut flags = told & (LOCKED & !libc::MS_RELATIME);
    if told & ST_RELATIME != 0 {
        flags |= libc::MS_RELATIME;
    }
    if told & ST_NOSYMFOLLOW != 0 {
        flags |= NOSYMFOLLOW;
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(options: &str) -> BindFlags {
        let mut out = BindFlags::default();
        options.split(',').for_each(|option| out.read(option));
        out
    }

    #[test]
    fn what_is_not_asked_for_is_cleared_but_for_the_times_of_access() {
        let source = libc::MS_RDONLY | libc::MS_NOEXEC | libc::MS_NOATIME;
        let change = flags("dev,nosuid").over(source, false).unwrap();
        assert_eq!(change.set, attr::NOSUID);
        assert_eq!(
            change.clear,
            attr::RDONLY | attr::NOEXEC | attr::NODEV | attr::NOSYMFOLLOW
        );
        // Naively cleared, the time of access stays; asked for by name, it changes.
        assert_eq!(
            flags("atime").over(source, false).unwrap().clear & attr::ATIME,
            0
        );
        let change = flags("relatime").over(source, false).unwrap();
        assert_eq!((change.set, change.clear & attr::ATIME), (0, attr::ATIME));
        let change = flags("nodiratime,strictatime").over(source, false).unwrap();
        assert_eq!(change.set, attr::NODIRATIME | attr::STRICTATIME);
    }

    #[test]
    fn locked_flags_stay_unless_their_opposite_is_asked_for() {
        let source = libc::MS_RDONLY | libc::MS_NODEV | NOSYMFOLLOW | libc::MS_RELATIME;
        let change = flags("nosuid").over(source, true).unwrap();
        assert_eq!(change.set, attr::NOSUID | attr::RDONLY | attr::NODEV);
        assert!(
            change.clear & attr::NOSYMFOLLOW != 0,
            "the kernel doesn't lock it"
        );
        assert_eq!(flags("rw,nodev").over(source, true).unwrap_err(), "ro");
        assert_eq!(
            flags("ro,nodev,noatime").over(source, true).unwrap_err(),
            "noatime,relatime"
        );
        assert!(flags("ro,nodev,norelatime").over(source, true).is_ok());
    }
}
