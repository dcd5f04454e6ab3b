//! Mounts as descriptors: made detached, given their attributes, and attached where they belong.
//!
//! A mount that isn't attached is invisible to everyone, and goes away with its last descriptor.

use crate::error::{Context, Error, Result, check};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// `MOUNT_ATTR_*` bits (mount_setattr(2)).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Ignore set-user-id and set-group-id bits.
    pub const NOSUID: u64 = 0x2;
    /// No device nodes.
    pub const NODEV: u64 = 0x4;
    /// No execution.
    pub const NOEXEC: u64 = 0x8;
    /// All bits of the access-time setting; clear these to change it.
    pub const ATIME: u64 = 0x70;
    /// Don't update access times.
    pub const NOATIME: u64 = 0x10;
    /// Update access times always.
    pub const STRICTATIME: u64 = 0x20;
    /// Don't update directories' access times.
    pub const NODIRATIME: u64 = 0x80;
    /// Map ids by a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
    /// Don't follow symbolic links.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// How mount events spread between mounts (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// Both ways, within the peer group.
    Shared,
    /// From the peer group, not to it.
    Slave,
    /// Not at all.
    Private,
    /// Not at all, and it can't be bound.
    Unbindable,
}

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// A change of a mount's attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// [`attr`] bits to set.
    pub set: u64,
    /// [`attr`] bits to clear first.
    pub clear: u64,
    /// The new propagation.
    pub propagation: Option<Propagation>,
}

impl Attributes {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Attributes::default()
    }
}

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> nix::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid empty C string, and `attr` points to a struct mount_attr of the size that is
    // passed, which lives through the call and is only read.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Changes a mount's attributes; `recursive` takes those below it too.
///
/// # Errors
/// EPERM for clearing a locked flag, EINVAL for an unknown one or a descriptor that isn't a mount's root.
pub fn set_attributes(mount: impl AsFd, recursive: bool, change: &Attributes) -> Result<()> {
    if change.is_empty() {
        return Ok(());
    }
    let raw = MountAttr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation.map_or(0, Propagation::bits),
        userns_fd: 0,
    };
    mount_setattr(mount.as_fd(), recursive, &raw).context("mount_setattr", || format!("{change:?}"))
}

/// Maps a detached mount's ids by a user namespace (mount_setattr(2), "ID-mapped mounts").
///
/// # Errors
/// EINVAL where the file system can't do it, EPERM where it is mapped already.
pub fn set_idmap(mount: impl AsFd, recursive: bool, user_namespace: impl AsFd) -> Result<()> {
    let raw = MountAttr {
        attr_set: attr::IDMAP,
        userns_fd: user_namespace.as_fd().as_raw_fd() as u64,
        ..MountAttr::default()
    };
    mount_setattr(mount.as_fd(), recursive, &raw).context("mount_setattr", || "idmap")
}

/// A detached bind mount of `path` (relative to `dir`; symbolic links are followed).
///
/// # Errors
/// The `open_tree`'s.
pub fn bind_at(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(dir.as_fd(), path, flags)
        .context("open_tree", || path.display().to_string())
}

/// As [`bind_at`], from the current directory or an absolute path.
///
/// # Errors
/// The `open_tree`'s.
pub fn bind(path: &Path, recursive: bool) -> Result<OwnedFd> {
    bind_at(CWD, path, recursive)
}

/// A detached bind mount of what a descriptor refers to.
///
/// # Errors
/// The `open_tree`'s.
pub fn bind_fd(fd: impl AsFd, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(fd.as_fd(), c"", flags).context("open_tree", || "")
}

/// Attaches a detached mount onto what `target` (an `O_PATH` descriptor) refers to.
///
/// # Errors
/// ENOTDIR if one is a directory and the other isn't, ELOOP, EINVAL.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), c"", target.as_fd(), c"", flags)
        .context("move_mount", || "")
}

/// Attaches a detached mount at a path.
///
/// # Errors
/// As [`attach`].
pub fn attach_at(mount: impl AsFd, path: &Path) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), c"", CWD, path, flags)
        .context("move_mount", || path.display().to_string())
}

/// One option of a file system: `size=64k`, or a flag without a value.
pub type FsOption = (String, Option<String>);

/// A new file system instance, as a detached mount with these [`attr`] bits.
///
/// # Errors
/// ENODEV for a kernel without it; else with the kernel's own words, where it has some.
pub fn new_file_system(
    kind: &str,
    source: Option<&str>,
    options: &[FsOption],
    attributes: u64,
) -> Result<OwnedFd> {
    let context = open_context(kind)?;
    let built = (|| {
        if let Some(source) = source {
            rustix::mount::fsconfig_set_string(&context, "source", source)?;
        }
        for (key, value) in options {
            match value {
                Some(value) => {
                    rustix::mount::fsconfig_set_string(&context, key.as_str(), value.as_str())?
                }
                None => rustix::mount::fsconfig_set_flag(&context, key.as_str())?,
            }
        }
        rustix::mount::fsconfig_create(&context)
    })();
    built.map_err(|errno| context_error("configure", kind, &context, errno))?;
    mount_context(kind, &context, attributes)
}

fn open_context(kind: &str) -> Result<OwnedFd> {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", || kind)
}

fn mount_context(kind: &str, context: &OwnedFd, attributes: u64) -> Result<OwnedFd> {
    let bits = MountAttrFlags::from_bits_retain(attributes as u32);
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, bits)
        .map_err(|errno| context_error("fsmount", kind, context, errno))
}

/// The errno with what the kernel wrote into the context's log.
fn context_error(
    operation: &'static str,
    kind: &str,
    context: &OwnedFd,
    errno: rustix::io::Errno,
) -> Error {
    let mut log = Vec::new();
    let mut buffer = [0u8; 512];
    while let Ok(count @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..count]);
        log.push(
            line.trim_start_matches(['e', 'w', 'i', ' '])
                .trim()
                .to_owned(),
        );
    }
    let object = if log.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind} ({})", log.join("; "))
    };
    Error::new(operation, object, errno.raw_os_error())
}

/// What an overlay is made of.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// The read-only layers, topmost first; at least one.
    pub lowers: &'a [&'a Path],
    /// The writable layer and its work directory on the same file system; without them the overlay is read-only.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// Skip all syncs: the upper layer is void after a crash of the machine.
    pub volatile: bool,
}

/// A detached overlay mount.
///
/// # Errors
/// EINVAL for no lower layer; ENODEV; the kernel's with its words.
pub fn overlay(layers: Overlay<'_>) -> Result<OwnedFd> {
    overlay_of(layers, None)
}

/// As [`overlay`], with the lower layers' ids mapped by a user namespace, so that what is root's on disk is its root's
/// (Linux 5.19). The writable layer isn't mapped: it must belong to that root on disk.
///
/// # Errors
/// As [`overlay`]; EINVAL where a lower layer's file system can't map ids.
pub fn overlay_mapped(layers: Overlay<'_>, user_namespace: impl AsFd) -> Result<OwnedFd> {
    overlay_of(layers, Some(user_namespace.as_fd()))
}

fn overlay_of(layers: Overlay<'_>, mapping: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    if layers.lowers.is_empty() {
        return Err(Error::new(
            "mount overlay",
            "without a lower layer",
            libc::EINVAL,
        ));
    }
    // A parameter is at most 255 bytes long: layers are named through descriptors, which also keeps the host's paths
    // out of the container's mount table.
    let lowers = layers
        .lowers
        .iter()
        .map(|path| open_layer(path, mapping))
        .collect::<Result<Vec<_>>>()?;
    let writable = match layers.upper {
        Some((upper, work)) => Some((open_layer(upper, None)?, open_layer(work, None)?)),
        None => None,
    };
    let mut options: Vec<FsOption> = Vec::new();
    if let Some((upper, work)) = &writable {
        options.push(("upperdir".to_owned(), Some(fd_path(upper))));
        options.push(("workdir".to_owned(), Some(fd_path(work))));
    }
    if layers.volatile {
        options.push(("volatile".to_owned(), None));
    }
    let one_by_one = lowers
        .iter()
        .map(|lower| ("lowerdir+".to_owned(), Some(fd_path(lower))));
    match new_file_system(
        "overlay",
        Some("overlay"),
        &one_by_one
            .chain(options.iter().cloned())
            .collect::<Vec<_>>(),
        0,
    ) {
        Err(error) if error.is(libc::EINVAL) => {}
        other => return other,
    }
    // Before Linux 6.5: all lower layers in one parameter.
    let joined = lowers.iter().map(fd_path).collect::<Vec<_>>().join(":");
    if joined.len() <= 255 {
        options.insert(0, ("lowerdir".to_owned(), Some(joined)));
        return new_file_system("overlay", Some("overlay"), &options, 0);
    }
    overlay_by_mount(&joined, &options, layers)
}

/// By mount(2), which takes a page of options: attached over the work directory for as long as it takes to clone it.
fn overlay_by_mount(lowers: &str, writable: &[FsOption], layers: Overlay<'_>) -> Result<OwnedFd> {
    let target = layers.upper.map_or(layers.lowers[0], |(_, work)| work);
    let mut data = format!("lowerdir={lowers}");
    for (key, value) in writable {
        data.push(',');
        data.push_str(key);
        if let Some(value) = value {
            data.push('=');
            data.push_str(value);
        }
    }
    let data = std::ffi::CString::new(data)
        .map_err(|_| Error::new("mount overlay", target.display().to_string(), libc::EINVAL))?;
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        rustix::mount::MountFlags::empty(),
        Some(data.as_c_str()),
    )
    .context("mount overlay", || target.display().to_string())?;
    let detached = bind(target, false);
    rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH)
        .context("umount overlay", || target.display().to_string())?;
    detached
}

/// Opens a directory, as a mount of its own where its ids are mapped.
fn open_layer(path: &Path, mapping: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    if let Some(user_namespace) = mapping {
        let mapped = bind(path, false)?;
        set_idmap(&mapped, false, user_namespace)?;
        return Ok(mapped);
    }
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("open layer", || path.display().to_string())
}

fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Changes the propagation of the mount at `path`.
///
/// # Errors
/// EINVAL if it isn't a mount.
pub fn set_propagation(path: &Path, propagation: Propagation, recursive: bool) -> Result<()> {
    let mut flags = MountPropagationFlags::from_bits_retain(propagation.bits() as u32);
    flags.set(MountPropagationFlags::REC, recursive);
    rustix::mount::mount_change(path, flags).context("mount (propagation)", || {
        format!("{propagation:?} on {}", path.display())
    })
}

/// Takes the mount at `path`, and all below it, out of the tree; it ends when nobody uses it any more.
///
/// # Errors
/// EINVAL if it isn't a mount.
pub fn detach(path: &Path) -> Result<()> {
    rustix::mount::unmount(
        path,
        rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW,
    )
    .context("umount", || path.display().to_string())
}

/// The id of the mount that is on top at `path`; it changes with what is mounted there.
///
/// # Errors
/// ENOENT; ENOSYS from a kernel that doesn't tell (before 5.8).
pub fn id_at(path: &Path) -> Result<u64> {
    use rustix::fs::StatxFlags;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID)
        .context("statx", || path.display().to_string())?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(Error::new(
            "statx",
            path.display().to_string(),
            libc::ENOSYS,
        ));
    }
    Ok(stat.stx_mnt_id)
}

/// Makes the attached mount `root` this process's root and current directory, and drops the old root.
///
/// The process must be alone in its mount namespace's use of the old root.
///
/// # Errors
/// EINVAL where the old root is the initial file system, under which nothing can be moved; see [`leave_initramfs`].
pub fn pivot_root(root: impl AsFd) -> Result<()> {
    let old = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("open", || "/")?;
    rustix::process::fchdir(root).context("fchdir", || "new root")?;
    rustix::process::pivot_root(".", ".").context("pivot_root", || "")?;
    // The old root is on top of the new one now. From here "." is the old one: the new one's mounts keep their
    // propagation.
    rustix::process::fchdir(&old).context("fchdir", || "old root")?;
    set_propagation(Path::new("."), Propagation::Slave, true)?;
    detach(Path::new("."))?;
    rustix::process::chdir("/").context("chdir", || "/")
}

/// Puts an empty file system over the initial one, so that the root is one that [`pivot_root`] can replace.
///
/// # Errors
/// The mount's or `chroot`'s.
pub fn leave_initramfs() -> Result<()> {
    let cover = new_file_system("tmpfs", Some("none"), &[], 0)?;
    attach_at(&cover, Path::new("/"))?;
    rustix::process::fchdir(&cover).context("fchdir", || "cover of the initial root")?;
    rustix::process::chroot(".").context("chroot", || "cover of the initial root")
}

/// The file system that a descriptor is on, by its magic number (statfs(2)).
///
/// # Errors
/// The `fstatfs`'s.
pub fn file_system_magic(fd: impl AsFd) -> Result<i64> {
    rustix::fs::fstatfs(fd)
        .context("fstatfs", || "")
        .map(|stat| stat.f_type)
}

/// procfs's magic number.
pub const PROC_MAGIC: i64 = 0x9fa0;
/// sysfs's magic number.
pub const SYSFS_MAGIC: i64 = 0x6265_6572;
/// devpts's magic number.
pub const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Whether a descriptor refers to the root of a mount.
///
/// # Errors
/// The `statx`'s.
pub fn is_mount_root(fd: impl AsFd) -> Result<bool> {
    let stat = rustix::fs::statx(
        fd,
        c"",
        AtFlags::EMPTY_PATH,
        rustix::fs::StatxFlags::BASIC_STATS,
    )
    .context("statx", || "")?;
    Ok(stat
        .stx_attributes
        .contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

/// A C string from text that may come from outside.
///
/// # Errors
/// EINVAL if it has a NUL byte in it.
pub fn c_string(text: impl Into<Vec<u8>>) -> Result<std::ffi::CString> {
    let text = text.into();
    std::ffi::CString::new(text).map_err(|error| {
        Error::new(
            "use (NUL byte inside)",
            String::from_utf8_lossy(&error.into_vec()),
            libc::EINVAL,
        )
    })
}

/// Whether the kernel has a file system, or can load its module; `None` where this process may not ask.
pub fn has_file_system(kind: &str) -> Option<bool> {
    match rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Some(true),
        Err(rustix::io::Errno::NODEV) => Some(false),
        Err(_) => None,
    }
}
