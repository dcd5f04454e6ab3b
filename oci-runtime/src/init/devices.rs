//! `/dev`: nodes, the usual links, and the console.

use super::Fds;
use crate::error::{DuringLaunch, LaunchError};
use crate::plan::{DevicePlan, DeviceSource};
use linux::mount;
use linux::path::{self, Target};
use rustix::fs::{Dev, FileType, Mode, OFlags};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Links that runtime-spec config-linux.md ("Default Devices") asks for.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Creates the nodes and links.
pub(super) fn create(
    list: &[DevicePlan],
    root: BorrowedFd<'_>,
    fds: Fds<'_>,
) -> Result<(), LaunchError> {
    linux::credential::set_umask(0);
    let created = list
        .iter()
        .try_for_each(|device| create_one(device, root, fds));
    linux::credential::set_umask(0o022);
    created?;
    let dev =
        path::ensure_in_root(root, Path::new("/dev"), Target::Directory).step(|| "open /dev")?;
    for (name, to) in LINKS {
        match rustix::fs::symlinkat(to, &dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => {
                let error = linux::Error::new("symlink", to, errno.raw_os_error());
                return Err(error).step(|| format!("link /dev/{name}"));
            }
        }
    }
    Ok(())
}

fn create_one(device: &DevicePlan, root: BorrowedFd<'_>, fds: Fds<'_>) -> Result<(), LaunchError> {
    let step = || format!("create device {}", device.path.display());
    let failed = |operation, errno: rustix::io::Errno| {
        linux::Error::new(operation, "", errno.raw_os_error())
    };
    match &device.source {
        DeviceSource::Bind(fd) => {
            let target = path::ensure_in_root(root, &device.path, Target::File).step(step)?;
            mount::attach(fds.get(*fd)?, &target).step(step)
        }
        DeviceSource::Node {
            mode,
            major,
            minor,
            uid,
            gid,
        } => {
            let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
                return Err(LaunchError::new(step(), "has no parent directory"));
            };
            let dir = path::ensure_in_root(root, parent, Target::Directory).step(step)?;
            let number: Dev = rustix::fs::makedev(*major, *minor);
            let kind = FileType::from_raw_mode(*mode);
            let made = rustix::fs::mknodat(&dir, name, kind, Mode::from_raw_mode(*mode), number);
            match made {
                // An image may bring its own; it serves if it is the same device.
                Err(rustix::io::Errno::EXIST) => {
                    let stat =
                        rustix::fs::statat(&dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                            .map_err(|errno| failed("stat", errno))
                            .step(step)?;
                    if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
                        return Err(LaunchError::new(
                            step(),
                            "the image has something else there",
                        ));
                    }
                }
                other => other.map_err(|errno| failed("mknod", errno)).step(step)?,
            }
            if (*uid, *gid) != (0, 0) {
                let (uid, gid) = (
                    rustix::fs::Uid::from_raw(*uid),
                    rustix::fs::Gid::from_raw(*gid),
                );
                rustix::fs::chownat(
                    &dir,
                    name,
                    Some(uid),
                    Some(gid),
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                )
                .map_err(|errno| failed("chown", errno))
                .step(step)?;
            }
            Ok(())
        }
    }
}

/// Opens the container's `/dev/null`, and makes sure that it is (CVE-2025-31133).
pub(super) fn open_null(root: BorrowedFd<'_>) -> Result<OwnedFd, LaunchError> {
    let step = || "open /dev/null for masking";
    let null = path::open_in_root(
        root,
        Path::new("/dev/null"),
        OFlags::PATH | OFlags::NOFOLLOW,
    )
    .step(step)?;
    if path::character_device(&null).step(step)? != Some((1, 3)) {
        return Err(LaunchError::new(step(), "is not the null device"));
    }
    Ok(null)
}

/// Binds the terminal to `/dev/console`.
pub(super) fn attach_console(slave: &OwnedFd, root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    let step = || "mount the terminal on /dev/console";
    let clone = match mount::bind_fd(slave, false) {
        // A terminal of the host's devpts can't be bound from another mount namespace.
        Err(error) if error.is(libc::EINVAL) => return Ok(()),
        other => other.step(step)?,
    };
    // Opened without following links: where the image has one, it must not be followed out of /dev (CVE-2025-52565).
    let dev = path::ensure_in_root(root, Path::new("/dev"), Target::Directory).step(step)?;
    let made = rustix::fs::mknodat(
        &dev,
        "console",
        FileType::RegularFile,
        Mode::from_raw_mode(0o600),
        0,
    );
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(linux::Error::new("mknod", "", errno.raw_os_error())).step(step),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(&dev, "console", flags, Mode::empty())
        .map_err(|errno| linux::Error::new("open", "", errno.raw_os_error()))
        .step(step)?;
    mount::attach(&clone, &target).step(step)
}
