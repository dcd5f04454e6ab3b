//! What a successor must know of a container: one small file a container on the keeper's tmpfs, beside its FIFOs.
//!
//! It is written right after the clone. A pid alone is never trusted: it is confirmed by the process's start time and,
//! where the kernel numbers processes for good (pidfs, Linux 6.9), by that number.

use super::poll::kernel;
use super::protocol::{Exit, IoSpec};
use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

const VERSION: u32 = 1;
const NAME: &str = "record";

/// A process, told from a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since the boot.
    pub start_ticks: u64,
    /// The pidfd's inode: unique until the next boot on pidfs, the same for every process before it.
    pub inode: u64,
}

impl Identity {
    /// Of a process that can't be reaped meanwhile: a child of the caller's.
    pub(crate) fn observe(pid: i32, pidfd: impl AsFd) -> Self {
        Identity {
            pid,
            start_ticks: start_ticks(pid).unwrap_or(0),
            inode: inode(pidfd).unwrap_or(0),
        }
    }

    /// Opens the process if it still is the same one.
    pub(crate) fn confirm(&self) -> Option<OwnedFd> {
        let pidfd = linux::pidfd::open(self.pid).ok()?;
        let now = Identity::observe(self.pid, &pidfd);
        (now == *self && self.start_ticks != 0).then_some(pidfd)
    }

    /// The raw `wait(2)` status of a process that has ended and that its parent has not collected yet; `None` after that.
    pub(crate) fn zombie_status(&self) -> Option<i32> {
        let fields = stat_fields(self.pid)?;
        let is_same = field::<u64>(&fields, 22)? == self.start_ticks;
        let is_zombie = fields.first()? == "Z";
        // Field 52 is shown to those who may ptrace the process.
        (is_same && is_zombie).then(|| field(&fields, 52))?
    }
}

/// The fields of `/proc/<pid>/stat` from the third on (the state): the name before it may hold anything, also spaces and
/// parentheses.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 1..];
    Some(after_name.split_whitespace().map(str::to_owned).collect())
}

/// A field by its number in proc_pid_stat(5).
fn field<T: std::str::FromStr>(fields: &[String], number: usize) -> Option<T> {
    fields.get(number - 3)?.parse().ok()
}

fn start_ticks(pid: i32) -> Option<u64> {
    field(&stat_fields(pid)?, 22)
}

fn inode(pidfd: impl AsFd) -> Option<u64> {
    rustix::fs::fstat(pidfd).ok().map(|stat| stat.st_ino)
}

/// A container as its successor finds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub version: u32,
    pub id: String,
    pub identity: Identity,
    /// `None` for a pod's init.
    pub io: Option<IoSpec>,
    /// Where its cgroup counts kills for want of memory.
    #[serde(default)]
    pub memory_events: Option<PathBuf>,
    /// Its end, once that has been published.
    pub exit: Option<Exit>,
}

impl Record {
    pub(crate) fn new(
        id: &str,
        identity: Identity,
        io: Option<IoSpec>,
        memory_events: Option<PathBuf>,
    ) -> Self {
        Record {
            version: VERSION,
            id: id.to_owned(),
            identity,
            io,
            memory_events,
            exit: None,
        }
    }

    /// Writes it into the container's directory, whole or not at all.
    ///
    /// # Errors
    /// The write's; ENOSPC if the tmpfs is full.
    pub(crate) fn write(&self, dir: BorrowedFd<'_>) -> linux::Result<()> {
        let data = serde_json::to_vec(self).unwrap_or_default();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, "record.new", flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| kernel("create record", errno))?;
        rustix::io::write(&file, &data).map_err(|errno| kernel("write record", errno))?;
        rustix::fs::renameat(dir, "record.new", dir, NAME)
            .map_err(|errno| kernel("rename record", errno))
    }

    /// Reads it; `None` if there is none that makes sense.
    pub(crate) fn read(dir: BorrowedFd<'_>) -> Option<Record> {
        let file =
            rustix::fs::openat(dir, NAME, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let record: Record = serde_json::from_reader(std::fs::File::from(file)).ok()?;
        (record.version == VERSION).then_some(record)
    }

    /// Removes it.
    pub(crate) fn remove(dir: BorrowedFd<'_>) {
        for name in [NAME, "record.new"] {
            // It may never have been written.
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_confirmed_until_it_has_gone() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let identity = Identity::observe(pid, linux::pidfd::open(pid).unwrap());
        assert!(identity.confirm().is_some());
        let earlier = Identity {
            start_ticks: identity.start_ticks - 1,
            ..identity
        };
        assert!(
            earlier.confirm().is_none(),
            "a reused pid must not be trusted"
        );
        assert_eq!(identity.zombie_status(), None, "it runs");
        child.kill().unwrap();
        linux::pidfd::wait_exit(linux::pidfd::open(pid).unwrap(), None).unwrap();
        assert_eq!(identity.zombie_status(), Some(9));
        assert_eq!(earlier.zombie_status(), None);
        child.wait().unwrap();
        assert!(identity.confirm().is_none());
    }

    #[test]
    fn a_record_is_read_back_and_garbage_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let fd: OwnedFd = std::fs::File::open(dir.path()).unwrap().into();
        assert_eq!(Record::read(fd.as_fd()), None);
        let record = Record::new(
            "a",
            Identity {
                pid: 1,
                start_ticks: 2,
                inode: 3,
            },
            None,
            None,
        );
        record.write(fd.as_fd()).unwrap();
        assert_eq!(Record::read(fd.as_fd()), Some(record));
        std::fs::write(dir.path().join(NAME), "{").unwrap();
        assert_eq!(Record::read(fd.as_fd()), None);
    }
}
