//! The tmpfs mounts that the kubelet makes: one for all secrets, tokens and ConfigMaps, and one for each emptyDir
//! in memory.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// `statfs` of a tmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Makes `path` the shared tmpfs; one that a kubelet before left there is used again.
pub fn mount_shared_tmpfs(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    mount_tmpfs(path, "mode=0750")
}

/// Unmounts the shared tmpfs, if it is mounted.
pub fn unmount_shared_tmpfs(path: &Path) -> io::Result<()> {
    unmount_if_tmpfs(path)
}

/// Makes `path` a tmpfs of `limit_bytes` (none: the kernel's default, half of the memory).
pub fn ensure_tmpfs(path: &Path, limit_bytes: Option<u64>) -> io::Result<()> {
    let options = match limit_bytes {
        Some(bytes) => format!("mode=0777,size={bytes}"),
        None => "mode=0777".to_owned(),
    };
    mount_tmpfs(path, &options)
}

fn mount_tmpfs(path: &Path, options: &str) -> io::Result<()> {
    if is_tmpfs_root(path)? {
        return Ok(());
    }
    let options = CString::new(options)?;
    mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )?;
    Ok(())
}

/// Unmounts `path` if a tmpfs is mounted on it.
pub fn unmount_if_tmpfs(path: &Path) -> io::Result<()> {
    match is_tmpfs_root(path) {
        Ok(true) => unmount(path, UnmountFlags::DETACH).map_err(Into::into),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a tmpfs is mounted exactly here: a tmpfs, and another device than the folder above.
fn is_tmpfs_root(path: &Path) -> io::Result<bool> {
    let here = std::fs::symlink_metadata(path)?;
    let above = match path.parent() {
        Some(parent) => std::fs::metadata(parent)?.dev(),
        None => return Ok(false),
    };
    let kind = rustix::fs::statfs(path)?.f_type;
    Ok(here.dev() != above && kind as u64 == TMPFS_MAGIC)
}
