//! The container's network namespace.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use linux::netlink::{Netlink, in_namespace};

use crate::protocol::{Error, Request};

/// Opens the namespace of an ADD or a CHECK.
///
/// # Errors
/// Code 4 if none was given, code 8 if there is none at the path.
pub fn open(request: &Request) -> Result<OwnedFd, Error> {
    let path = request
        .netns
        .as_deref()
        .ok_or_else(|| Error::environment("CNI_NETNS: empty"))?;
    open_path(path).map_err(|cause| not_opened(path, &cause))
}

/// Opens the namespace of a DEL; `None` if it is gone.
///
/// # Errors
/// Code 8 if there is something else at the path.
pub fn open_if_there(request: &Request) -> Result<Option<OwnedFd>, Error> {
    let Some(path) = request.netns.as_deref() else {
        return Ok(None);
    };
    match open_path(path) {
        Ok(netns) => Ok(Some(netns)),
        // A pin whose namespace was unmounted is an empty file, or none.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound || !is_namespace(path) => Ok(None),
        Err(cause) => Err(not_opened(path, &cause)),
    }
}

/// Runs `work` in the namespace with a conversation about it.
///
/// # Errors
/// Those of entering, and `work`'s own.
pub fn inside<T: Send>(
    netns: &OwnedFd,
    work: impl FnOnce(&mut Netlink) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    in_namespace(netns, || work(&mut Netlink::open()?))?
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    if is_namespace(path) {
        Ok(file.into())
    } else {
        Err(io::Error::other("not a network namespace"))
    }
}

/// Whether what is at `path` lives in the kernel's file system of namespaces.
fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    rustix::fs::statfs(path)
        .is_ok_and(|fs| [NSFS_MAGIC, PROC_SUPER_MAGIC].contains(&(fs.f_type as u64)))
}

fn not_opened(path: &Path, cause: &io::Error) -> Error {
    Error::netns(format!(
        "open network namespace {}: {cause}",
        path.display()
    ))
}
