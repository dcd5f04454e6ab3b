//! A container's state on disk, for the command line, whose every run is another process.
//!
//! A directory for each container holds `state.json` (this record), `config.json` (the spec it was made from), and
//! between create and start the socket at which its first process waits.

use crate::document::parse_spec;
use crate::systemd::Owner;
use linux::cgroup::{Cgroup, Hierarchies};
use linux::pidfd;
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The version of [`Record`]'s form.
const VERSION: u32 = 1;

/// The state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("container {0:?}: not a valid id")]
    BadId(String),
    #[error("container with id exists: {0:?}")]
    Exists(String),
    #[error("container does not exist: {0:?}")]
    NotFound(String),
    #[error("{operation} {}: {cause}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("read {}: {cause}", path.display())]
    Malformed {
        path: PathBuf,
        cause: serde_json::Error,
    },
    #[error("read {}: made by another version of this program (form {version})", path.display())]
    Version { path: PathBuf, version: u32 },
}

/// What is recorded when a container is created; nothing of it changes afterwards but the pid's coming.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub version: u32,
    pub id: String,
    pub oci_version: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// 0 until the first process is there.
    pub pid: i32,
    /// In clock ticks since boot; with the pid it names the process.
    pub start_time: u64,
    /// RFC 3339.
    pub created: String,
    pub cgroup_path: String,
    pub annotations: BTreeMap<String, String>,
    /// Whether it is in another user namespace than the creator.
    pub user_namespaced: bool,
    /// Made with `--no-new-keyring`: its processes have their callers' session keyrings.
    #[serde(default)]
    pub keeps_keyring: bool,
    /// The mount that was at `rootfs` before, of a container among the host's mounts: what is above it is the container's.
    #[serde(default)]
    pub below: Option<u64>,
    /// Groups of the `resctrl` file system that are the container's own.
    #[serde(default)]
    pub resctrl: Vec<PathBuf>,
    /// With `--systemd-cgroup`: the unit whose cgroup it is.
    #[serde(default)]
    pub unit: Option<UnitRecord>,
    pub owner: u32,
}

/// A container's unit of systemd's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct UnitRecord {
    pub name: String,
    /// Whose manager has it.
    pub owner: Owner,
}

/// The states of runtime-spec runtime.md ("State"), and `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// A container's directory.
#[derive(Debug)]
pub(crate) struct Container {
    dir: PathBuf,
    /// Held for its lock: one command at a time changes a container.
    handle: OwnedFd,
    pub record: Record,
    /// Found once: the mount table that tells may be long.
    hierarchies: OnceCell<Arc<Hierarchies>>,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |cause| StateError::Io {
        operation,
        path,
        cause,
    }
}

/// As runc: letters, digits, `_`, `+`, `-` and `.`.
fn check_id(id: &str) -> Result<(), StateError> {
    let ok = !id.is_empty()
        && id != "."
        && id != ".."
        && id.len() <= 1024
        && id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_+-.".contains(c));
    if ok {
        Ok(())
    } else {
        Err(StateError::BadId(id.to_owned()))
    }
}

impl Container {
    /// Makes a container's directory; the record is written by [`Container::save`].
    pub fn create(root: &Path, record: Record) -> Result<Self, StateError> {
        check_id(&record.id)?;
        std::fs::create_dir_all(root).map_err(failed("create", root))?;
        let dir = root.join(&record.id);
        match std::fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StateError::Exists(record.id));
            }
            other => other.map_err(failed("create", &dir))?,
        }
        let handle = open_locked(&dir, false)?;
        Ok(Container {
            dir,
            handle,
            record,
            hierarchies: OnceCell::new(),
        })
    }

    /// Reads a container and locks it for a change; waits while another command changes it.
    pub fn lock(root: &Path, id: &str) -> Result<Self, StateError> {
        Self::load(root, id, true)
    }

    /// Reads a container.
    pub fn open(root: &Path, id: &str) -> Result<Self, StateError> {
        Self::load(root, id, false)
    }

    fn load(root: &Path, id: &str, lock: bool) -> Result<Self, StateError> {
        check_id(id)?;
        let dir = root.join(id);
        let missing = |error: StateError| match error {
            StateError::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                StateError::NotFound(id.to_owned())
            }
            other => other,
        };
        let handle = open_locked(&dir, lock).map_err(missing)?;
        let path = dir.join("state.json");
        let record = match std::fs::read(&path) {
            // Its creation was cut short: there is nothing to know, and delete removes it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.is_dir() => {
                Record::new(id)
            }
            other => {
                let text = other.map_err(failed("read", &path)).map_err(missing)?;
                serde_json::from_slice::<Record>(&text).map_err(|cause| StateError::Malformed {
                    path: path.clone(),
                    cause,
                })?
            }
        };
        if record.version != VERSION {
            return Err(StateError::Version {
                path,
                version: record.version,
            });
        }
        Ok(Container {
            dir,
            handle,
            record,
            hierarchies: OnceCell::new(),
        })
    }

    /// The ids of all containers.
    pub fn ids(root: &Path) -> Result<Vec<String>, StateError> {
        let entries = match std::fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("read", root))?,
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| check_id(name).is_ok())
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// Writes the record, whole or not at all.
    pub fn save(&self) -> Result<(), StateError> {
        let text = serde_json::to_vec(&self.record).map_err(|cause| StateError::Malformed {
            path: self.dir.join("state.json"),
            cause,
        })?;
        write_whole(&self.dir.join("state.json"), &text)
    }

    /// Keeps the spec that it was made from, for later execs. Before the record, without which nothing reads it.
    pub fn save_spec(&self, text: &[u8]) -> Result<(), StateError> {
        let path = self.dir.join("config.json");
        std::fs::write(&path, text).map_err(failed("write", &path))
    }

    /// The spec that it was made from.
    pub fn spec(&self) -> Result<Spec, StateError> {
        let path = self.dir.join("config.json");
        let text = std::fs::read(&path).map_err(failed("read", &path))?;
        parse_spec(&text).map_err(|cause| StateError::Malformed { path, cause })
    }

    /// A short path to a file of the directory, for a socket's address.
    pub fn short_path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The first process, if it is still that one and alive.
    pub fn process(&self) -> Option<OwnedFd> {
        if self.record.pid <= 0 {
            return None;
        }
        let pidfd = pidfd::open(self.record.pid).ok()?;
        let stat = ProcessStat::read(self.record.pid)?;
        (stat.start_time == self.record.start_time && !stat.ended).then_some(pidfd)
    }

    pub fn status(&self) -> Status {
        if self.record.pid == 0 {
            return if self.path("state.json").exists() {
                Status::Creating
            } else {
                Status::Stopped
            };
        }
        if self.process().is_none() {
            return Status::Stopped;
        }
        if self.path("start.sock").exists() {
            return Status::Created;
        }
        match self.cgroup() {
            Ok(Some(cgroup)) if cgroup.is_frozen().unwrap_or(false) => Status::Paused,
            _ => Status::Running,
        }
    }

    pub fn cgroup(&self) -> linux::Result<Option<Cgroup>> {
        if self.record.cgroup_path.is_empty() {
            return Ok(None);
        }
        Cgroup::at(self.hierarchies()?, &self.record.cgroup_path).map(Some)
    }

    pub fn hierarchies(&self) -> linux::Result<Arc<Hierarchies>> {
        if let Some(found) = self.hierarchies.get() {
            return Ok(found.clone());
        }
        // On v1 systemd knows its units' processes by a hierarchy of its own.
        let found = Arc::new(match self.record.unit {
            Some(_) => Hierarchies::discover_with("systemd")?,
            None => Hierarchies::discover()?,
        });
        Ok(self.hierarchies.get_or_init(|| found).clone())
    }

    /// Removes the directory.
    pub fn remove(self) -> Result<(), StateError> {
        std::fs::remove_dir_all(&self.dir).map_err(failed("remove", &self.dir))
    }
}

impl Record {
    pub fn new(id: &str) -> Self {
        Record {
            version: VERSION,
            id: id.to_owned(),
            oci_version: String::new(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            pid: 0,
            start_time: 0,
            created: now_rfc3339(),
            cgroup_path: String::new(),
            annotations: BTreeMap::new(),
            user_namespaced: false,
            below: None,
            resctrl: Vec::new(),
            keeps_keyring: false,
            unit: None,
            owner: rustix::process::getuid().as_raw(),
        }
    }
}

fn open_locked(dir: &Path, lock: bool) -> Result<OwnedFd, StateError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())
        .map_err(|errno| failed("open", dir)(errno.into()))?;
    if lock {
        rustix::fs::flock(&fd, FlockOperation::LockExclusive)
            .map_err(|errno| failed("lock", dir)(errno.into()))?;
    }
    Ok(fd)
}

/// By way of a new file that changes places with the old one. (A rename over it would do, but makes ext4 write the new
/// one's data to the disk first.)
pub(crate) fn write_whole(path: &Path, text: &[u8]) -> Result<(), StateError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    std::fs::write(&new, text).map_err(failed("write", &new))?;
    match rustix::fs::renameat_with(CWD, &new, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => std::fs::remove_file(&new).map_err(failed("remove", &new)),
        // There is no old one, or the file system can't.
        Err(_) => std::fs::rename(&new, path).map_err(failed("write", path)),
    }
}

/// What `/proc/<pid>/stat` says of a process.
pub(crate) struct ProcessStat {
    /// In clock ticks since boot.
    pub start_time: u64,
    /// Ended, whether or not it has been reaped.
    pub ended: bool,
}

impl ProcessStat {
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The program's name is in parentheses and may hold any character, closing ones too.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
        let state = fields.next()?;
        Some(ProcessStat {
            start_time: fields.nth(18)?.parse().ok()?,
            ended: matches!(state, "Z" | "X"),
        })
    }
}

/// The time now, in UTC.
pub(crate) fn now_rfc3339() -> String {
    jiff::Timestamp::now().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_paths_are_refused() {
        for id in ["", ".", "..", "a/b", "a b", "ü"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id("web_1.a-b+c").is_ok());
    }

    #[test]
    fn a_process_named_like_a_stat_line_is_read() {
        let fields: Vec<String> = (3..=52)
            .map(|n| if n == 22 { "777".into() } else { n.to_string() })
            .collect();
        let line = format!("12 (a) S 1 (b)) Z {}", fields[1..].join(" "));
        let stat = ProcessStat::parse(&line).unwrap();
        assert_eq!(stat.start_time, 777);
        assert!(stat.ended);
    }

    #[test]
    fn a_container_whose_creation_was_cut_short_is_found_stopped() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("half")).unwrap();
        let container = Container::lock(dir.path(), "half").unwrap();
        assert_eq!(container.status(), Status::Stopped);
        container.remove().unwrap();
        assert!(matches!(
            Container::open(dir.path(), "half"),
            Err(StateError::NotFound(_))
        ));
    }
}
