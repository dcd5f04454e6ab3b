//! Paths inside a root that isn't trusted: resolved by descriptor, so that neither `..`, nor an absolute symbolic link,
//! nor a rename at the wrong moment leads out of it.

use crate::error::{Context, Error, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

/// As many symbolic links as the kernel follows in one lookup.
const MAX_LINKS: usize = 40;

/// Opens `path` below `root` as if `root` were `/`. Links to descriptors in `/proc` are not followed.
///
/// # Errors
/// The `openat2`'s.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename or mount somewhere at the same moment; the kernel asks to try again.
            Err(rustix::io::Errno::AGAIN) => {}
            other => return other.context("openat2", || path.display().to_string()),
        }
    }
}

/// What a mount needs to find at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A directory.
    Directory,
    /// Anything but a directory.
    File,
}

/// Opens `path` below `root` as a mount point, as an `O_PATH` descriptor, and creates what is missing of it:
/// directories with mode 0755, and at its end an empty directory or file. A dangling symbolic link's target is
/// created, inside the root.
///
/// # Errors
/// ELOOP, ENOTDIR, EROFS and so on; the path that could not be made is named.
pub fn ensure_in_root(root: impl AsFd, path: &Path, target: Target) -> Result<OwnedFd> {
    match open_in_root(&root, path, OFlags::PATH) {
        Err(error) if error.is(libc::ENOENT) => create_in_root(root, path, target),
        other => other,
    }
}

fn create_in_root(root: impl AsFd, path: &Path, target: Target) -> Result<OwnedFd> {
    let failed = |operation: &'static str, errno: rustix::io::Errno| {
        Error::new(operation, path.display().to_string(), errno.raw_os_error())
    };
    let root_fd =
        rustix::io::fcntl_dupfd_cloexec(&root, 3).map_err(|errno| failed("dup root for", errno))?;
    let mut dirs = vec![root_fd];
    let mut links = 0;
    let mut rest: VecDeque<OsString> = components(path);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            if dirs.len() > 1 {
                dirs.pop();
            }
            continue;
        }
        let Some(dir) = dirs.last() else { break };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(dir, &name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => {
                let as_dir = !rest.is_empty() || target == Target::Directory;
                make(dir, &name, as_dir).map_err(|errno| failed("create mount point", errno))?;
                rustix::fs::openat(dir, &name, flags, Mode::empty())
            }
            other => other,
        }
        .map_err(|errno| failed("open mount point", errno))?;
        let stat = rustix::fs::fstat(&found).map_err(|errno| failed("fstat mount point", errno))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(failed("resolve mount point", rustix::io::Errno::LOOP));
            }
            let text = rustix::fs::readlinkat(&found, c"", Vec::new())
                .map_err(|errno| failed("readlink of mount point", errno))?;
            let link = OsString::from_vec(text.into_bytes());
            if Path::new(&link).is_absolute() {
                dirs.truncate(1);
            }
            for part in components(Path::new(&link)).into_iter().rev() {
                rest.push_front(part);
            }
            continue;
        }
        dirs.push(found);
    }
    dirs.pop()
        .ok_or_else(|| failed("resolve mount point", rustix::io::Errno::NOENT))
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn make(dir: impl AsFd, name: &OsStr, directory: bool) -> rustix::io::Result<()> {
    let made = if directory {
        rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))
    } else {
        rustix::fs::mknodat(
            &dir,
            name,
            FileType::RegularFile,
            Mode::from_raw_mode(0o644),
            0,
        )
    };
    match made {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Whether a descriptor refers to a directory.
///
/// # Errors
/// The `fstat`'s.
pub fn is_directory(fd: impl AsFd) -> Result<bool> {
    let stat = rustix::fs::fstat(fd).context("fstat", || "")?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// The device number of a character device, `None` for anything else.
///
/// # Errors
/// The `fstat`'s.
pub fn character_device(fd: impl AsFd) -> Result<Option<(u32, u32)>> {
    let stat = rustix::fs::fstat(fd).context("fstat", || "")?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(is_device.then(|| {
        (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        )
    }))
}

/// Whether a path exists, itself and not what it links to.
///
/// # Errors
/// All but ENOENT and ENOTDIR.
pub fn exists_at(dir: impl AsFd, path: &Path) -> Result<bool> {
    match rustix::fs::statat(dir, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(Error::new(
            "stat",
            path.display().to_string(),
            errno.raw_os_error(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open_root(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn missing_parts_are_created_inside_the_root_through_dangling_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        symlink(
            "../run/systemd/resolv.conf",
            dir.path().join("etc/resolv.conf"),
        )
        .unwrap();
        symlink("/../../outside", dir.path().join("etc/up")).unwrap();
        let root = open_root(dir.path());
        ensure_in_root(&root, Path::new("/etc/resolv.conf"), Target::File).unwrap();
        assert!(dir.path().join("run/systemd/resolv.conf").is_file());
        ensure_in_root(&root, Path::new("/etc/up/x"), Target::Directory).unwrap();
        assert!(dir.path().join("outside/x").is_dir());
        assert!(!dir.path().join("../outside").exists());
        ensure_in_root(&root, Path::new("a/../../b"), Target::Directory).unwrap();
        assert!(dir.path().join("b").is_dir());
    }

    #[test]
    fn a_link_loop_ends_in_eloop() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let error =
            ensure_in_root(open_root(dir.path()), Path::new("a/x"), Target::File).unwrap_err();
        assert!(error.is(libc::ELOOP), "{error}");
    }

    #[test]
    fn an_absolute_link_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc/passwd", dir.path().join("p")).unwrap();
        let error = open_in_root(open_root(dir.path()), Path::new("p"), OFlags::PATH).unwrap_err();
        assert!(error.is(libc::ENOENT));
    }
}
