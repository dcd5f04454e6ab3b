//! Control groups, v2, v1 and hybrid, behind one type.
//!
//! A cgroup is a container's identity: it is killed and observed through it, and no process list is scanned for a
//! decision. On a hybrid host the v2 hierarchy (which has no controllers there) holds that identity, and the v1
//! hierarchies hold the limits.

mod device;
mod hierarchy;
mod resources;
mod stats;
mod tree;

pub use device::{DeviceKind, DeviceRule};
pub use hierarchy::{Hierarchies, Layout, V1Hierarchy, own_path, own_v1_path};
pub use resources::{
    IoLimit, NoSuchLimit, Resources, Setting, cpu_weight_from_shares, io_weight_from_blkio,
};
pub use stats::{Stats, StatsReader};

use crate::error::{Context, Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A cgroup by its path, in every hierarchy of the host. Cheap to clone; holds no descriptor.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchies: Arc<Hierarchies>,
    path: String,
}

/// What v1 holds against another file at every moment: memory against memory with swap, a period against its quota and
/// the parent's. Which one goes first depends on the direction.
const FIRST_OR_SECOND: [&str; 3] = [
    "memory.limit_in_bytes",
    "cpu.cfs_period_us",
    "cpu.rt_period_us",
];

/// The descriptors through which a process joins a cgroup.
#[derive(Debug)]
pub struct Join {
    /// The v2 directory, for `CLONE_INTO_CGROUP`.
    pub unified: Option<OwnedFd>,
    /// The v1 `tasks` files; a single-threaded child writes `0` to each itself, since a parent's write waits for RCU.
    pub tasks: Vec<OwnedFd>,
}

impl Cgroup {
    /// The cgroup at `path`, absolute as in `/kubepods/pod1`; nothing is created.
    ///
    /// # Errors
    /// EINVAL for a path that is relative, is the root, or has an empty, `.` or `..` part.
    pub fn at(hierarchies: Arc<Hierarchies>, path: &str) -> Result<Self> {
        let parts_ok = path.strip_prefix('/').is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .split('/')
                    .all(|part| !matches!(part, "" | "." | "..") && !part.contains('\n'))
        });
        if !parts_ok {
            return Err(Error::new("use cgroup path", path, libc::EINVAL));
        }
        Ok(Cgroup {
            hierarchies,
            path: path.to_owned(),
        })
    }

    /// A child of this one.
    ///
    /// # Errors
    /// As [`Cgroup::at`].
    pub fn child(&self, name: &str) -> Result<Self> {
        Cgroup::at(self.hierarchies.clone(), &format!("{}/{name}", self.path))
    }

    /// Its path, from the hierarchies' roots.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The hierarchies that it is in.
    pub fn hierarchies(&self) -> &Arc<Hierarchies> {
        &self.hierarchies
    }

    /// Its v2 directory.
    pub fn unified_dir(&self) -> Option<PathBuf> {
        self.hierarchies
            .unified
            .as_ref()
            .map(|mount| self.under(mount))
    }

    /// Its directory in the v1 hierarchy with this controller.
    pub fn v1_dir(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchies
            .v1_mount(controller)
            .map(|mount| self.under(mount))
    }

    /// Where a controller's files are: the v1 directory, or on a host without v1 the v2 one.
    pub fn controller_dir(&self, controller: &str) -> Option<PathBuf> {
        match self.hierarchies.layout() {
            Layout::Unified => self.unified_dir(),
            Layout::Hybrid | Layout::Legacy => self.v1_dir(controller),
        }
    }

    fn under(&self, mount: &Path) -> PathBuf {
        mount.join(self.path.trim_start_matches('/'))
    }

    /// All of its directories; the v2 one first.
    fn dirs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let mounts = self
            .hierarchies
            .unified
            .iter()
            .chain(self.hierarchies.v1.iter().map(|v1| &v1.mount));
        mounts.map(|mount| self.under(mount))
    }

    /// Creates it, and its ancestors with all controllers on. An existing one is kept; true if it was there already, in
    /// any hierarchy.
    ///
    /// # Errors
    /// The `mkdir`'s, or that of enabling controllers; EBUSY or EOPNOTSUPP if an ancestor holds processes.
    pub fn ensure(&self) -> Result<bool> {
        let mut found = false;
        if let Some(mount) = &self.hierarchies.unified {
            let with_controllers = self.hierarchies.layout() == Layout::Unified;
            found |= !tree::ensure_v2(mount, &self.path, with_controllers)?;
        }
        for v1 in &self.hierarchies.v1 {
            let cpuset = v1.controllers.iter().any(|name| name == "cpuset");
            found |= !tree::ensure_v1(&v1.mount, &self.under(&v1.mount), cpuset)?;
        }
        Ok(found)
    }

    /// Whether it exists, in the hierarchy that holds identity.
    pub fn exists(&self) -> bool {
        self.dirs().next().is_some_and(|dir| dir.is_dir())
    }

    /// Sets limits.
    ///
    /// # Errors
    /// The write's, named by the file; EOPNOTSUPP for a limit that this host's layout doesn't have.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        let layout = self.hierarchies.layout();
        let settings = resources.settings(layout).map_err(|NoSuchLimit(reason)| {
            Error::new("set cgroup limit:", reason, libc::EOPNOTSUPP)
        })?;
        let mut retry = Vec::new();
        for setting in &settings {
            match self.apply_one(setting) {
                Err(error)
                    if FIRST_OR_SECOND.contains(&setting.file.as_str())
                        && error.is(libc::EINVAL) =>
                {
                    retry.push(setting)
                }
                other => other?,
            }
        }
        retry
            .into_iter()
            .try_for_each(|setting| self.apply_one(setting))
    }

    fn apply_one(&self, setting: &Setting) -> Result<()> {
        let dir = match setting.controller {
            Some(controller) => self
                .v1_dir(controller)
                .or_else(|| self.unified_controller_dir(controller)),
            None => self.unified_dir(),
        };
        let Some(dir) = dir else {
            let text = format!("{}={} in {}", setting.file, setting.value, self.path);
            return if setting.optional {
                Ok(())
            } else {
                Err(Error::new(
                    "set cgroup limit (no such controller)",
                    text,
                    libc::ENOENT,
                ))
            };
        };
        let mut written = write_file(&dir.join(&setting.file), &setting.value);
        // Where BFQ is the only scheduler with weights, v1 has them under its name.
        if let (Err(error), Some(kind)) = (&written, setting.file.strip_prefix("blkio.weight"))
            && error.is(libc::ENOENT)
        {
            written = write_file(&dir.join(format!("blkio.bfq.weight{kind}")), &setting.value);
        }
        match written {
            Err(error) if setting.optional && error.is(libc::ENOENT) => Ok(()),
            Err(mut error) => {
                error.object = format!("{}={}", error.object, setting.value);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// On a hybrid host a controller may live on the v2 side; it is used only if it is enabled there.
    fn unified_controller_dir(&self, controller: &str) -> Option<PathBuf> {
        let dir = self.unified_dir()?;
        let enabled = std::fs::read_to_string(dir.join("cgroup.controllers")).ok()?;
        enabled
            .split_whitespace()
            .any(|name| name == controller)
            .then_some(dir)
    }

    /// The CPU quota (`None` for none) and the period in force, in microseconds; `None` without the controller.
    pub fn cpu_bandwidth(&self) -> Option<(Option<i64>, u64)> {
        let dir = self.controller_dir("cpu")?;
        let text = match self.hierarchies.layout() {
            Layout::Unified => read_trimmed(&dir.join("cpu.max")).ok()?,
            Layout::Hybrid | Layout::Legacy => {
                let read = |file: &str| read_trimmed(&dir.join(file)).ok();
                format!(
                    "{} {}",
                    read("cpu.cfs_quota_us")?,
                    read("cpu.cfs_period_us")?
                )
            }
        };
        let (quota, period) = text.split_once(' ')?;
        let quota = quota.parse().ok().filter(|quota| *quota > 0);
        Some((quota, period.parse().ok()?))
    }

    /// Opens what a process needs to join it.
    ///
    /// # Errors
    /// The `open`'s, ENOENT if it doesn't exist.
    pub fn join(&self) -> Result<Join> {
        let unified = self.unified_dir().map(|dir| open_dir(&dir)).transpose()?;
        let tasks = self
            .hierarchies
            .v1
            .iter()
            .map(|v1| open_for_write(&self.under(&v1.mount).join("tasks")))
            .collect::<Result<_>>()?;
        Ok(Join { unified, tasks })
    }

    /// Moves a running process, with all its threads, into it.
    ///
    /// # Errors
    /// The write's; ESRCH if the process has ended.
    pub fn add_process(&self, pid: i32) -> Result<()> {
        self.dirs()
            .try_for_each(|dir| write_file(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// The pids in it and in its descendants, in the caller's pid namespace. Not for decisions.
    ///
    /// # Errors
    /// The read's, ENOENT if it doesn't exist.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        if let Some(dir) = self.dirs().next() {
            tree::collect_processes(&dir, &mut pids)?;
        }
        Ok(pids)
    }

    /// Kills every process in it and in its descendants with SIGKILL. They end soon after; see [`Cgroup::wait_empty`].
    ///
    /// # Errors
    /// The kill's. One that doesn't exist has nothing to kill.
    pub fn kill(&self) -> Result<()> {
        if let Some(dir) = self.unified_dir() {
            match write_file(&dir.join("cgroup.kill"), "1") {
                Err(error) if error.is(libc::ENOENT) && dir.is_dir() => {} // before Linux 5.14
                Err(error) if error.is(libc::ENOENT) || error.is(libc::ENODEV) => return Ok(()),
                other => return other,
            }
        }
        self.kill_each()
    }

    /// Without `cgroup.kill`: freeze so that nothing forks, signal each, thaw.
    fn kill_each(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        let frozen = self.write_freezer(true).is_ok();
        for pid in self.processes()? {
            match crate::signal::kill(pid, libc::SIGKILL) {
                Err(error) if !error.is(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
        if frozen {
            self.write_freezer(false)
        } else {
            Ok(())
        }
    }

    /// Opens the file that tells when it becomes empty: poll it for `POLLPRI`, then ask [`populated`]. Not on hosts
    /// without a v2 hierarchy.
    ///
    /// # Errors
    /// The `open`'s; EOPNOTSUPP without a v2 hierarchy.
    pub fn events(&self) -> Result<OwnedFd> {
        let dir = self.unified_dir().ok_or_else(|| {
            Error::new(
                "watch cgroup (no v2 hierarchy)",
                self.path.as_str(),
                libc::EOPNOTSUPP,
            )
        })?;
        open_for_read(&dir.join("cgroup.events"))
    }

    /// Waits until no process is in it or below.
    ///
    /// # Errors
    /// ETIMEDOUT, or the read's. One that doesn't exist is empty.
    pub fn wait_empty(&self, timeout: Duration) -> Result<()> {
        self.wait_for(
            timeout,
            "wait for the end of all processes in cgroup",
            |cgroup| match cgroup.events() {
                Ok(events) => match event_flag(&events, "populated") {
                    Ok(populated) => Ok((!populated, Some(events))),
                    // Removed since by somebody else, as systemd does with a unit that has ended.
                    Err(error) if error.is(libc::ENODEV) => Ok((true, None)),
                    Err(error) => Err(error),
                },
                Err(error) if error.is(libc::ENOENT) => Ok((true, None)),
                Err(error) if error.is(libc::EOPNOTSUPP) => match cgroup.processes() {
                    Ok(pids) => Ok((pids.is_empty(), None)),
                    Err(error) if error.is(libc::ENOENT) => Ok((true, None)),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
        )
    }

    /// Stops all processes in it, and waits until they have stopped.
    ///
    /// # Errors
    /// The write's, or ETIMEDOUT, after which it is thawed again.
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        self.write_freezer(true)?;
        let frozen = self.wait_for(
            timeout,
            "wait for all processes to stop in cgroup",
            |cgroup| {
                if let Ok(events) = cgroup.events() {
                    return Ok((event_flag(&events, "frozen")?, Some(events)));
                }
                let dir = cgroup.v1_dir("freezer").unwrap_or_default();
                let state = std::fs::read_to_string(dir.join("freezer.state")).unwrap_or_default();
                Ok((state.trim() == "FROZEN", None))
            },
        );
        if frozen.is_err() {
            self.write_freezer(false)?;
        }
        frozen
    }

    /// Lets its processes go on.
    ///
    /// # Errors
    /// The write's.
    pub fn thaw(&self) -> Result<()> {
        self.write_freezer(false)
    }

    /// Whether it is frozen or freezing by its own freezer; on a hybrid host by either, since others use v1's.
    ///
    /// # Errors
    /// The read's.
    pub fn is_frozen(&self) -> Result<bool> {
        match (self.unified_dir(), self.v1_dir("freezer")) {
            (Some(dir), v1) => {
                let frozen = |path: PathBuf| read_trimmed(&path).map(|text| text == "1");
                Ok(frozen(dir.join("cgroup.freeze"))?
                    || match v1 {
                        Some(v1) => frozen(v1.join("freezer.self_freezing"))?,
                        None => false,
                    })
            }
            (None, Some(dir)) => {
                read_trimmed(&dir.join("freezer.state")).map(|text| text != "THAWED")
            }
            (None, None) => Ok(false),
        }
    }

    fn write_freezer(&self, frozen: bool) -> Result<()> {
        match (self.unified_dir(), self.v1_dir("freezer")) {
            (Some(dir), v1) => {
                if let (false, Some(v1)) = (frozen, v1) {
                    write_file(&v1.join("freezer.state"), "THAWED")?;
                }
                write_file(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })
            }
            (None, Some(dir)) => write_file(
                &dir.join("freezer.state"),
                if frozen { "FROZEN" } else { "THAWED" },
            ),
            (None, None) => Err(Error::new(
                "freeze cgroup (no freezer)",
                self.path.as_str(),
                libc::EOPNOTSUPP,
            )),
        }
    }

    /// Evaluates `probe` until it is true: after each change of the file that it hands out, or without one every
    /// few milliseconds (v1 alone, which has no event for this).
    fn wait_for(
        &self,
        timeout: Duration,
        what: &'static str,
        probe: impl Fn(&Self) -> Result<(bool, Option<OwnedFd>)>,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let (done, events) = probe(self)?;
            if done {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(what, self.path.as_str(), libc::ETIMEDOUT));
            }
            match events {
                Some(events) => {
                    let wait = rustix::fs::Timespec::try_from(left).unwrap_or_default();
                    let mut polled = [PollFd::new(&events, PollFlags::PRI)];
                    match poll(&mut polled, Some(&wait)) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(errno) => {
                            return Err(Error::new(
                                "poll cgroup.events of",
                                &*self.path,
                                errno.raw_os_error(),
                            ));
                        }
                    }
                }
                None => std::thread::sleep(left.min(Duration::from_millis(2))),
            }
        }
    }

    /// Removes it and its descendants. One that doesn't exist is removed.
    ///
    /// # Errors
    /// EBUSY while processes are in it. The other hierarchies are still tried.
    pub fn delete(&self) -> Result<()> {
        let mut first = Ok(());
        for dir in self.dirs() {
            let removed = tree::remove_tree(&dir);
            if first.is_ok() {
                first = removed;
            }
        }
        first
    }

    /// Opens the file that counts the kills by the kernel's OOM killer; read it with [`oom_kills`].
    ///
    /// # Errors
    /// The `open`'s; ENOENT without a memory controller.
    pub fn oom_counter(&self) -> Result<OwnedFd> {
        let dir = self.controller_dir("memory").ok_or_else(|| {
            Error::new(
                "open memory controller of",
                self.path.as_str(),
                libc::ENOENT,
            )
        })?;
        let file = if self.hierarchies.layout() == Layout::Unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        open_for_read(&dir.join(file))
    }
}

/// Reads an [`Cgroup::events`] descriptor: whether a process is in the cgroup or below.
///
/// # Errors
/// The read's; ENODEV if the cgroup was removed.
pub fn populated(events: impl AsFd) -> Result<bool> {
    event_flag(events, "populated")
}

/// Reads a [`Cgroup::oom_counter`] descriptor.
///
/// # Errors
/// The read's; ENODEV if the cgroup was removed.
pub fn oom_kills(counter: impl AsFd) -> Result<u64> {
    let text = read_at_start(counter)?;
    Ok(flat_value(&text, "oom_kill").unwrap_or(0))
}

fn event_flag(events: impl AsFd, key: &str) -> Result<bool> {
    let text = read_at_start(events)?;
    Ok(flat_value(&text, key).unwrap_or(0) != 0)
}

/// A value of a flat keyed file: lines of `key value`.
fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

/// Reads a file that is held open from its start.
fn read_at_start(fd: impl AsFd) -> Result<String> {
    let mut buffer = vec![0; 4096];
    let mut filled = 0;
    loop {
        let count = rustix::io::pread(&fd, &mut buffer[filled..], filled as u64)
            .context("read cgroup file", || "")?;
        filled += count;
        if count == 0 {
            break;
        }
        if filled == buffer.len() {
            buffer.resize(buffer.len() * 2, 0);
        }
    }
    buffer.truncate(filled);
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

fn read_trimmed(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .context("read", || path.display().to_string())
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("open", || path.display().to_string())
}

fn open_for_read(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open", || path.display().to_string())
}

fn open_for_write(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open", || path.display().to_string())
}

/// One `write`, as cgroup files take their value in one piece.
fn write_file(path: &Path, value: &str) -> Result<()> {
    let fd = open_for_write(path)?;
    rustix::io::write(&fd, value.as_bytes()).context("write", || path.display().to_string())?;
    Ok(())
}
