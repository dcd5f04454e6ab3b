//! The container's file systems: mounts attached inside its own mount namespace, masks, and the change of root.

use super::{Fds, copy_up, devices};
use crate::error::{DuringLaunch, LaunchError};
use crate::plan::{LaunchPlan, MountPlan, MountSource};
use linux::mount::{self, Attributes, PROC_MAGIC, Propagation, attr};
use linux::path::{self, Target};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Builds what the container sees, and makes it this process's root. What runs `before_pivot` finds the mounts where
/// the bundle has its root, and the host's files beside them (config.md, "POSIX-platform Hooks").
pub(super) fn build(
    plan: &LaunchPlan,
    fds: Fds<'_>,
    terminal: Option<&OwnedFd>,
    before_pivot: impl FnOnce() -> Result<(), LaunchError>,
) -> Result<(), LaunchError> {
    let root = fds.get(plan.rootfs.mount)?;
    // Slave and not private: what is unmounted on the host goes away here too, while it is still visible.
    if !plan.rootfs.among_hosts {
        mount::set_propagation(Path::new("/"), Propagation::Slave, true)
            .step(|| "cut mount propagation")?;
    }
    let place = plan.rootfs.place.as_deref().unwrap_or(Path::new("/"));
    mount::attach_at(root, place).step(|| "attach rootfs")?;
    let mut proc = None;
    let mut readonly_later = Vec::new();
    for entry in &plan.mounts {
        let mounted = attach(entry, root, fds)?;
        if entry.destination == Path::new("/proc") {
            proc = mounted;
        } else if waits_for_readonly(entry)
            && let Some(mounted) = mounted
        {
            readonly_later.push((entry, mounted));
        }
    }
    if let Some(list) = &plan.devices {
        devices::create(list, root, fds)?;
    }
    before_pivot()?;
    if let Some(slave) = terminal {
        devices::attach_console(slave, root)?;
    }
    write_sysctls(plan, proc.as_ref())?;
    for path in &plan.readonly_paths {
        make_readonly(path, root)?;
    }
    mask(plan, root)?;
    for (entry, mounted) in &readonly_later {
        mount::set_attributes(mounted, false, &READONLY)
            .step(|| format!("make {} read-only", entry.destination.display()))?;
    }
    if plan.rootfs.among_hosts {
        super::enter_root(root)?;
    } else {
        pivot(root)?;
    }
    finish_root(plan, root)
}

const READONLY: Attributes = Attributes {
    set: attr::RDONLY,
    clear: 0,
    propagation: None,
};

/// Whether a mount is read-only in the end and written to before: files are copied into a tmpfs, mount points are made
/// in it, and devices in `/dev`.
fn waits_for_readonly(entry: &MountPlan) -> bool {
    entry.attributes.set & attr::RDONLY != 0
        && matches!(&entry.source, MountSource::FileSystem { kind, .. } if kind == "tmpfs" || entry.destination == Path::new("/dev"))
}

/// Attaches one mount; hands back the mount's descriptor.
fn attach(
    entry: &MountPlan,
    root: BorrowedFd<'_>,
    fds: Fds<'_>,
) -> Result<Option<OwnedFd>, LaunchError> {
    let step = |what: &str| format!("mount {what} on {}", entry.destination.display());
    if let MountSource::Link(to) = &entry.source {
        return link(entry, to, root).map(|()| None);
    }
    let covered = covered_mode(entry, root);
    let inside = open_inside(entry, root, fds)?;
    let kind = match &inside {
        Some(source) if !path::is_directory(source).step(|| step("bind"))? => Target::File,
        _ => entry.target,
    };
    let mut target =
        path::ensure_in_root(root, &entry.destination, kind).step(|| step("(mount point)"))?;
    let (mounted, name) = match &entry.source {
        MountSource::Detached(fd) => {
            let detached = fds.get(*fd)?;
            spare_procfs(&entry.destination, detached, &target).step(|| step("bind"))?;
            mount::attach(detached, &target).step(|| step("bind"))?;
            // Attached, the descriptor given to us still refers to it.
            set_attributes(entry, detached)?;
            return Ok(None);
        }
        MountSource::FileSystem {
            kind,
            source,
            options,
            copy_up,
        } => {
            let hold_back = if waits_for_readonly(entry) {
                attr::RDONLY
            } else {
                0
            };
            let attributes = entry.attributes.set & !hold_back;
            let options = match covered {
                Some(mode) => &[options.as_slice(), &[("mode".to_owned(), Some(mode))]].concat(),
                None => options,
            };
            let made = mount::new_file_system(kind, source.as_deref(), options, attributes)
                .step(|| step(kind))?;
            if *copy_up {
                copy_up::copy(&target, &made, &entry.destination.to_string_lossy())?;
            }
            (made, kind.as_str())
        }
        MountSource::Existing => {
            set_attributes(entry, &target)?;
            return Ok(None);
        }
        MountSource::Inside { .. } => {
            if let Some(source) = &inside {
                spare_procfs(&entry.destination, source, &target).step(|| step("bind"))?;
                mount::attach(source, &target).step(|| step("bind"))?;
                set_attributes(entry, source)?;
            }
            return Ok(None);
        }
        MountSource::Link(_) => return Ok(None),
    };
    // procfs and sysfs go where they belong, not where a link in the image points (CVE-2019-19921).
    if matches!(name, "proc" | "sysfs") {
        target = open_without_links(&entry.destination, root)
            .step(|| step(name))
            .map_err(ordinary_directory)?;
    }
    spare_procfs(&entry.destination, &mounted, &target).step(|| step(name))?;
    mount::attach(&mounted, &target).step(|| step(name))?;
    let change = Attributes {
        set: 0,
        clear: 0,
        propagation: entry.attributes.propagation,
    };
    mount::set_attributes(&mounted, false, &change).step(|| step(name))?;
    mount::set_attributes(&mounted, true, &entry.recursive_attributes).step(|| step(name))?;
    Ok(Some(mounted))
}

/// A clone of what an earlier mount brought, if that is this one's source. A link in the image leads nowhere else than
/// into the image.
fn open_inside(
    entry: &MountPlan,
    root: BorrowedFd<'_>,
    fds: Fds<'_>,
) -> Result<Option<OwnedFd>, LaunchError> {
    let MountSource::Inside {
        path,
        recursive,
        idmap,
    } = &entry.source
    else {
        return Ok(None);
    };
    let step = || {
        format!(
            "open source {} of mount {} in the container",
            path.display(),
            entry.destination.display()
        )
    };
    let source = path::open_in_root(root, path, OFlags::PATH).step(step)?;
    let clone = mount::bind_fd(&source, *recursive).step(step)?;
    if let Some((namespace, below)) = idmap {
        mount::set_idmap(&clone, *below, fds.get(*namespace)?)
            .step(|| format!("map ids of mount {}", entry.destination.display()))?;
    }
    Ok(Some(clone))
}

/// A tmpfs without a mode of its own has that of the directory that it covers; the kernel's 1777 where there is none.
fn covered_mode(entry: &MountPlan, root: BorrowedFd<'_>) -> Option<String> {
    match &entry.source {
        MountSource::FileSystem { kind, options, .. }
            if kind == "tmpfs" && !options.iter().any(|(key, _)| key == "mode") => {}
        _ => return None,
    }
    let covered = path::open_in_root(root, &entry.destination, OFlags::PATH).ok()?;
    let mode = rustix::fs::fstat(&covered).ok()?.st_mode & 0o7777;
    Some(format!("{mode:o}"))
}

fn set_attributes(entry: &MountPlan, mounted: impl AsFd) -> Result<(), LaunchError> {
    let step = || format!("set attributes of mount {}", entry.destination.display());
    mount::set_attributes(&mounted, true, &entry.recursive_attributes).step(step)?;
    mount::set_attributes(&mounted, false, &entry.attributes).step(step)
}

fn link(entry: &MountPlan, to: &str, root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    let step = || format!("link {} to {to}", entry.destination.display());
    let (Some(parent), Some(name)) = (entry.destination.parent(), entry.destination.file_name())
    else {
        return Err(LaunchError::new(step(), "has no parent"));
    };
    let dir = path::ensure_in_root(root, parent, Target::Directory).step(step)?;
    match rustix::fs::symlinkat(to, &dir, name) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(linux::Error::new("symlink", to, errno.raw_os_error())).step(step),
    }
}

fn ordinary_directory(mut error: LaunchError) -> LaunchError {
    if error.errno == libc::ELOOP {
        error.cause = format!("must be mounted on ordinary directory: {}", error.cause);
    }
    error
}

fn open_without_links(destination: &Path, root: BorrowedFd<'_>) -> linux::Result<OwnedFd> {
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(
        root,
        destination,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )
    .map_err(|errno| {
        linux::Error::new(
            "open without links",
            destination.display().to_string(),
            errno.raw_os_error(),
        )
    })
}

/// What may be replaced inside procfs: it tells of the host, and nothing is written to it at launch.
const REPLACEABLE: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Refuses what would take the place of procfs, or of a part of it: masks would then cover something else, and what
/// the container takes for the kernel's word would be an image's (CVE-2019-16884, CVE-2023-27561).
fn spare_procfs(
    destination: &Path,
    mounted: impl AsFd,
    target: impl AsFd,
) -> Result<(), linux::Error> {
    let refuse = |operation| {
        Err(linux::Error::new(
            operation,
            destination.display().to_string(),
            libc::EPERM,
        ))
    };
    if mount::file_system_magic(mounted)? == PROC_MAGIC {
        return Ok(());
    }
    if destination == Path::new("/proc") {
        return refuse("cover procfs with what is not procfs at");
    }
    let replaceable = REPLACEABLE
        .iter()
        .any(|path| destination == Path::new(path));
    if mount::file_system_magic(target)? == PROC_MAGIC && !replaceable {
        return refuse("mount inside procfs at");
    }
    Ok(())
}

/// Written through a procfs that this process has just mounted, so nothing in the image can redirect them.
fn write_sysctls(plan: &LaunchPlan, mounted: Option<&OwnedFd>) -> Result<(), LaunchError> {
    if plan.sysctls.is_empty() {
        return Ok(());
    }
    let own;
    let proc = match mounted {
        Some(fd) if mount::file_system_magic(fd).is_ok_and(|magic| magic == PROC_MAGIC) => fd,
        _ => {
            own = mount::new_file_system("proc", None, &[], 0).step(|| "mount proc for sysctls")?;
            &own
        }
    };
    for (name, value) in &plan.sysctls {
        let path = format!("sys/{name}");
        let resolve = rustix::fs::ResolveFlags::BENEATH
            | rustix::fs::ResolveFlags::NO_SYMLINKS
            | rustix::fs::ResolveFlags::NO_XDEV;
        let written = rustix::fs::openat2(
            proc,
            &path,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
        .and_then(|file| rustix::io::write(&file, value.as_bytes()))
        .map_err(|errno| linux::Error::new("write", format!("/proc/{path}"), errno.raw_os_error()));
        written.step(|| format!("set sysctl {name}={value}"))?;
    }
    Ok(())
}

/// Opens a path for masking; `None` if it isn't there, which is fine.
fn open_existing(path: &Path, root: BorrowedFd<'_>) -> Result<Option<OwnedFd>, LaunchError> {
    match path::open_in_root(root, path, OFlags::PATH) {
        Err(error) if error.is(libc::ENOENT) || error.is(libc::ENOTDIR) => Ok(None),
        other => other.map(Some).step(|| format!("open {}", path.display())),
    }
}

fn make_readonly(path: &Path, root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    let Some(target) = open_existing(path, root)? else {
        return Ok(());
    };
    let step = || format!("make {} read-only", path.display());
    let clone = mount::bind_fd(&target, true).step(step)?;
    mount::attach(&clone, &target).step(step)?;
    mount::set_attributes(&clone, true, &READONLY).step(step)
}

/// Covers paths: directories with an empty read-only file system, files with `/dev/null`.
fn mask(plan: &LaunchPlan, root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    let (mut null, mut empty) = (None, None);
    for path in &plan.masked_paths {
        let Some(target) = open_existing(path, root)? else {
            continue;
        };
        let step = || format!("mask {}", path.display());
        if path::is_directory(&target).step(step)? {
            // One file system for all of them: it stays empty.
            let cover = match &empty {
                None => mount::new_file_system("tmpfs", Some("tmpfs"), &[], attr::RDONLY),
                Some(first) => mount::bind_fd(first, false),
            }
            .step(step)?;
            mount::attach(&cover, &target).step(step)?;
            empty.get_or_insert(cover);
        } else {
            if null.is_none() {
                null = Some(devices::open_null(root)?);
            }
            let Some(null) = &null else { continue };
            let cover = mount::bind_fd(null, false).step(step)?;
            mount::attach(&cover, &target).step(step)?;
        }
    }
    Ok(())
}

fn pivot(root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    match mount::pivot_root(root) {
        // Under the initial file system nothing can be moved: cover it, and attach there.
        Err(error) if error.is(libc::EINVAL) && error.operation == "pivot_root" => {
            mount::leave_initramfs().step(|| "leave the initial file system")?;
            mount::attach_at(root, Path::new("/")).step(|| "attach rootfs")?;
            mount::pivot_root(root).step(|| "change root")
        }
        other => other.step(|| "change root"),
    }
}

fn finish_root(plan: &LaunchPlan, root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    if plan.rootfs.readonly {
        mount::set_attributes(root, false, &READONLY).step(|| "make rootfs read-only")?;
    }
    if let Some((propagation, recursive)) = plan.rootfs.propagation {
        let change = Attributes {
            propagation: Some(propagation),
            ..Attributes::default()
        };
        mount::set_attributes(root, recursive, &change).step(|| "set rootfs propagation")?;
    }
    Ok(())
}
