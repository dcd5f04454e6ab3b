//! What makes the keeper hard to kill and cheap to fork: a session, a cgroup and a mount table of its own.
//!
//! Each step is best effort, and says so where it fails: containers can be kept without any of them.

use linux::cgroup::{Cgroup, Hierarchies};
use linux::mount::{self, Attributes, Propagation, attr};
use linux::namespace::{self, NamespaceKind};
use rustix::fs::Mode;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Leaves the caller's session, so that a terminal's Ctrl-C is not for us.
pub(super) fn leave_session() {
    // EPERM: this process leads a session already, which is as good.
    let _ = rustix::process::setsid();
}

/// Moves this process into a cgroup of its own, so that stopping the CRI server's unit doesn't stop containers.
///
/// # Errors
/// What could not be created or joined.
pub(super) fn enter_cgroup(name: &str) -> linux::Result<()> {
    let hierarchies = Arc::new(Hierarchies::discover()?);
    let cgroup = Cgroup::at(hierarchies, &format!("/{}", name.trim_start_matches('/')))?;
    cgroup.ensure()?;
    cgroup.add_process(std::process::id() as i32)
}

/// As many descriptors as the hard limit allows: the keeper holds up to five for each container.
pub(super) fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Raising the soft limit to the hard one is always allowed.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Becomes the parent of what containers orphan, and opaque to ptrace and `/proc/<pid>` of others.
///
/// # Errors
/// `prctl`'s.
pub(super) fn become_subreaper() -> linux::Result<()> {
    linux::process::set_child_subreaper()?;
    linux::process::set_undumpable()
}

/// Replaces the mount table by one with `/proc`, `/dev` and `/sys` (with the cgroups): each clone copies the table that it starts from,
/// so a launch costs the same whatever is mounted on the host. `dir` is an existing directory that the new root may hide.
///
/// # Errors
/// The first refused step; the process may then be left in a private copy of the host's table, which works as well.
pub(super) fn leave_mount_namespace(dir: &Path) -> linux::Result<()> {
    // All of proc and sys: a user namespace may mount its own only where the whole of one is to be seen.
    let kept =
        ["proc", "dev", "sys"].map(|name| (name, mount::bind(&Path::new("/").join(name), true)));
    namespace::unshare(&[NamespaceKind::Mount])?;
    mount::set_propagation(Path::new("/"), Propagation::Private, true)?;
    // A user namespace's root, which launches as well, must find procfs.
    let options = [
        ("size".to_owned(), Some("64k".to_owned())),
        ("mode".to_owned(), Some("0711".to_owned())),
    ];
    let root = mount::new_file_system(
        "tmpfs",
        Some("orlop-keeper"),
        &options,
        attr::NOSUID | attr::NODEV,
    )?;
    mount::attach_at(&root, dir)?;
    for (name, mount) in kept {
        let Ok(mount) = mount else { continue }; // a host without cgroups mounted has none for us
        let target = dir.join(name);
        std::fs::create_dir_all(&target)
            .map_err(|cause| linux::Error::io("mkdir", target.display().to_string(), &cause))?;
        mount::attach_at(&mount, &target)?;
    }
    mount::pivot_root(&root)
}

/// A descriptor through which a program can be started and can't be written: a detached read-only mount of its file.
///
/// # Errors
/// On kernels without `open_tree` and `mount_setattr` (before 5.12), or without the privilege.
pub(super) fn read_only_program(path: &Path) -> linux::Result<OwnedFd> {
    let program = mount::bind(path, false)?;
    let read_only = Attributes {
        set: attr::RDONLY,
        ..Attributes::default()
    };
    mount::set_attributes(&program, false, &read_only)?;
    Ok(program)
}

/// Files are made with the mode that is asked for.
pub(super) fn clear_umask() {
    rustix::process::umask(Mode::empty());
}
