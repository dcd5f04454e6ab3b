//! Work inside another network namespace, and its sysctls.

use std::fs;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;

use super::Result;
use super::error::Error;
use crate::namespace::{NamespaceKind, join};

/// Runs `work` in the network namespace `netns`, on a thread of its own that ends afterwards, so that no thread that
/// serves others is ever in a foreign namespace. A panic of `work` goes on in the caller.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, EINVAL if `netns` is not a network namespace, EAGAIN if there can be no more threads.
pub fn in_namespace<T: Send>(
    netns: impl AsFd + Sync,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let inside = || join(&netns, &[NamespaceKind::Network]).map(|()| work());
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, inside);
        let worker = worker.map_err(|cause| Error::io("start thread", "netns", &cause))?;
        worker
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
            .map_err(Error::from)
    })
}

/// Reads a sysctl, for networking that of the calling thread's namespace; `path` as in `["net", "ipv4", "ip_forward"]`,
/// because an interface's name may hold a dot. The value comes without its newline.
///
/// # Errors
/// ENOENT where the kernel or the interface has no such sysctl.
pub fn read_sysctl(path: &[&str]) -> Result<String> {
    match fs::read_to_string(sysctl_file(path)) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(cause) => Err(Error::io("read sysctl", path.join("/"), &cause)),
    }
}

/// Writes a sysctl, if it doesn't have the value already: on a host that is set up, nothing needs to be writable.
///
/// # Errors
/// ENOENT as for [`read_sysctl`], EINVAL for a value out of range, EROFS where `/proc/sys` is read-only.
pub fn write_sysctl(path: &[&str], value: &str) -> Result<()> {
    if read_sysctl(path).is_ok_and(|present| present == value) {
        return Ok(());
    }
    fs::write(sysctl_file(path), value)
        .map_err(|cause| Error::io("write sysctl", path.join("/"), &cause))
}

fn sysctl_file(path: &[&str]) -> PathBuf {
    ["/proc/sys"].iter().chain(path).collect()
}
