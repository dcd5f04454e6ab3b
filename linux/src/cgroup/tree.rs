//! Making and removing cgroup directories, and walking them.

use super::{read_trimmed, write_file};
use crate::error::{Context, Error, Result};
use std::io;
use std::path::{Path, PathBuf};

/// Makes one directory; true if it is new.
fn make_dir(path: &Path) -> Result<bool> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io(
            "create cgroup",
            path.display().to_string(),
            &error,
        )),
    }
}

/// Makes a directory and those above it; true if it is new.
pub(super) fn ensure_v2(mount: &Path, path: &str, with_controllers: bool) -> Result<bool> {
    let (mut dir, mut new) = (mount.to_path_buf(), false);
    for part in path.trim_start_matches('/').split('/') {
        if with_controllers && (dir == mount || !holds_processes(&dir)?) {
            enable_controllers(&dir)?;
        }
        dir.push(part);
        new = make_dir(&dir)?;
    }
    Ok(new)
}

/// Whether processes are in the cgroup itself. It then hands on no controller: the kernel would take the threaded ones
/// (cpu, pids) and let no process into a child any more.
fn holds_processes(dir: &Path) -> Result<bool> {
    Ok(!read_trimmed(&dir.join("cgroup.procs"))?.is_empty())
}

/// Hands all controllers that a cgroup has on to its children.
fn enable_controllers(dir: &Path) -> Result<()> {
    let available = read_trimmed(&dir.join("cgroup.controllers"))?;
    let enabled = read_trimmed(&dir.join("cgroup.subtree_control"))?;
    let missing: Vec<String> = available
        .split_whitespace()
        .filter(|name| !enabled.split_whitespace().any(|on| on == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let control = dir.join("cgroup.subtree_control");
    if write_file(&control, &missing.join(" ")).is_ok() {
        return Ok(());
    }
    // One controller that can't be handed on (threaded, or realtime processes and cpu) must not cost the others.
    let mut result = Ok(());
    for name in &missing {
        if let Err(error) = write_file(&control, name) {
            result = Err(error);
        }
    }
    match result {
        Err(error)
            if error.is(libc::EINVAL) || error.is(libc::ENOENT) || error.is(libc::EOPNOTSUPP) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// As [`ensure_v2`].
pub(super) fn ensure_v1(mount: &Path, dir: &Path, cpuset: bool) -> Result<bool> {
    let new = match make_dir(dir) {
        Err(error) if error.is(libc::ENOENT) && dir != mount => {
            if let Some(parent) = dir.parent() {
                ensure_v1(mount, parent, cpuset)?;
            }
            make_dir(dir)?
        }
        other => other?,
    };
    // A new v1 cpuset has no processor and no memory node, and takes no process until it has.
    if cpuset && dir != mount {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = dir.join(file);
            if read_trimmed(&own)?.is_empty()
                && let Some(parent) = dir.parent()
            {
                let mut given = read_trimmed(&parent.join(file))?;
                // Somebody made the parent and left it so.
                if given.is_empty() {
                    ensure_v1(mount, parent, cpuset)?;
                    given = read_trimmed(&parent.join(file))?;
                }
                write_file(&own, &given)?;
            }
        }
    }
    Ok(new)
}

pub(super) fn collect_processes(dir: &Path, pids: &mut Vec<i32>) -> Result<()> {
    let procs = std::fs::read_to_string(dir.join("cgroup.procs"))
        .context("read", || dir.join("cgroup.procs").display().to_string())?;
    pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in child_dirs(dir) {
        match collect_processes(&child, pids) {
            Err(error) if !error.is(libc::ENOENT) && !error.is(libc::ENODEV) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn child_dirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

pub(super) fn remove_tree(dir: &Path) -> Result<()> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::BUSY) => {
            for child in child_dirs(dir) {
                remove_tree(&child)?;
            }
            match rustix::fs::rmdir(dir) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
                Err(errno) => Err(Error::new(
                    "remove cgroup",
                    dir.display().to_string(),
                    errno.raw_os_error(),
                )),
            }
        }
        Err(errno) => Err(Error::new(
            "remove cgroup",
            dir.display().to_string(),
            errno.raw_os_error(),
        )),
    }
}
