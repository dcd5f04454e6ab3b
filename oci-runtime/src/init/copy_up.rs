//! `tmpcopyup`: a new tmpfs starts with what the image has in its place.

use crate::error::{DuringLaunch, LaunchError};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// Deeper trees than this are an image's attempt at this process's stack.
const MAX_DEPTH: usize = 64;

/// Copies a directory's content: directories, files and symbolic links with owners and modes. Nothing is followed.
pub(super) fn copy(from: impl AsFd, to: impl AsFd, what: &str) -> Result<(), LaunchError> {
    let step = || format!("copy what the image has in {what}");
    let stat = rustix::fs::fstat(&from)
        .map_err(|errno| failed("fstat", c".", errno))
        .step(step)?;
    // A mount's descriptor is one for a path, which can't be changed through.
    let to = open_dir(to, c".").step(step)?;
    copy_dir(from, &to, 0).step(step)?;
    own(&to, c"", &stat, AtFlags::EMPTY_PATH).step(step)
}

fn failed(operation: &'static str, name: &CStr, errno: rustix::io::Errno) -> linux::Error {
    linux::Error::new(operation, name.to_string_lossy(), errno.raw_os_error())
}

fn open_dir(dir: impl AsFd, name: &CStr) -> linux::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|errno| failed("open", name, errno))
}

fn copy_dir(from: impl AsFd, to: impl AsFd, depth: usize) -> linux::Result<()> {
    if depth > MAX_DEPTH {
        return Err(linux::Error::new("descend", "", libc::ELOOP));
    }
    // What was opened as a path can't be listed.
    let from = open_dir(from, c".")?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&from, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|errno| failed("list", c".", errno))?;
        let name = entry.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            copy_entry(&from, &to, &name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: impl AsFd, name: &CStr, depth: usize) -> linux::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| failed("stat", name, errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(&to, name, Mode::from_raw_mode(0o700))
                .map_err(|errno| failed("mkdir", name, errno))?;
            copy_dir(open_dir(from, name)?, open_dir(&to, name)?, depth + 1)?;
        }
        FileType::RegularFile => copy_file(from, &to, name)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())
                .map_err(|errno| failed("readlink", name, errno))?;
            rustix::fs::symlinkat(&target, &to, name)
                .map_err(|errno| failed("symlink", name, errno))?;
        }
        // Devices, pipes and sockets have no content to start with.
        _ => return Ok(()),
    }
    own(&to, name, &stat, AtFlags::SYMLINK_NOFOLLOW)
}

fn copy_file(from: &OwnedFd, to: impl AsFd, name: &CStr) -> linux::Result<()> {
    let source = rustix::fs::openat(
        from,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| failed("open", name, errno))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o600))
        .map_err(|errno| failed("create", name, errno))?;
    std::io::copy(
        &mut std::fs::File::from(source),
        &mut std::fs::File::from(target),
    )
    .map(drop)
    .map_err(|error| linux::Error::io("copy", name.to_string_lossy(), &error))
}

fn own(dir: impl AsFd, name: &CStr, stat: &Stat, flags: AtFlags) -> linux::Result<()> {
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(stat.st_uid),
        rustix::fs::Gid::from_raw(stat.st_gid),
    );
    match rustix::fs::chownat(&dir, name, Some(uid), Some(gid), flags) {
        // An owner that the user namespace doesn't map can't be kept.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
        Err(errno) => return Err(failed("chown", name, errno)),
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let changed = if name.is_empty() {
        rustix::fs::fchmod(&dir, mode)
    } else {
        rustix::fs::chmodat(&dir, name, mode, AtFlags::empty())
    };
    changed.map_err(|errno| failed("chmod", name, errno))
}
