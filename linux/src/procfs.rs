//! Writing to procfs, and to nothing that is in its place (CVE-2025-52881).

use crate::error::{Context, Error, Result};
use crate::mount::{PROC_MAGIC, file_system_magic};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;

/// Opens `/proc/<path>` for writing.
///
/// # Errors
/// The `open`'s; EXDEV if what is there isn't procfs's.
pub fn open_for_write(path: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{path}");
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(path.as_str(), flags, Mode::empty()).context("open", || path.clone())?;
    if file_system_magic(&file)? != PROC_MAGIC {
        return Err(Error::new("open (it is not procfs's)", path, libc::EXDEV));
    }
    Ok(file)
}

/// Writes to `/proc/<path>`, in one call.
///
/// # Errors
/// Those of [`open_for_write`], and the `write`'s.
pub fn write(path: &str, text: &str) -> Result<()> {
    let file = open_for_write(path)?;
    rustix::io::write(&file, text.as_bytes())
        .map(drop)
        .context("write", || {
            format!("/proc/{path}: {}", text.trim().replace('\n', ", "))
        })
}
