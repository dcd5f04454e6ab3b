//! Containers of a user who isn't root: everything happens as root of a user namespace.
//!
//! Mounts can be made by root of the user namespace that owns the mount namespace, so a command enters the container's
//! user namespace itself, makes a mount namespace there, and goes on as it would for root. Ids beyond the user's own
//! are mapped by `newuidmap` and `newgidmap`, which know what `/etc/subuid` and `/etc/subgid` grant.

use super::Failure;
use crate::init::{become_root, write_mapping};
use crate::plan::{UserMapping, plan_user_mapping, setgroups_allowed};
use linux::mount::{self, Propagation};
use linux::namespace::{self, NamespaceKind};
use linux::pidfd::{self, Exit};
use linux::process::{self, CloneOptions};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::pipe::PipeFlags;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where states are kept unless told otherwise: a user has no right to root's place, as root of a user namespace too.
pub(super) fn default_root() -> PathBuf {
    let user = !is_root() || namespace::in_user_namespace();
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| user && !dir.is_empty());
    own.map_or_else(|| PathBuf::from("/run"), PathBuf::from)
        .join("orlop/runtime")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// For a user who isn't root: enters the user namespace that the spec asks for, and takes it out of the spec.
pub(super) fn enter(spec: &mut Spec) -> Result<(), Failure> {
    if is_root() {
        return Ok(());
    }
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let position = namespaces
        .iter()
        .position(|entry| entry.typ() == LinuxNamespaceType::User)
        .ok_or_else(|| {
            Failure::other(
                "rootless container requires user namespaces: linux.namespaces has no \"user\"",
            )
        })?;
    let entry = namespaces.remove(position);
    match entry.path() {
        Some(path) if !path.as_os_str().is_empty() => {
            let user = namespace::open(path)?;
            namespace::join(&user, &[NamespaceKind::User])?;
        }
        _ => enter_new(&plan_user_mapping(&linux)?)?,
    }
    become_root(setgroups_allowed("self"))?;
    namespace::unshare(&[NamespaceKind::Mount])?;
    mount::set_propagation(Path::new("/"), Propagation::Slave, true)?;
    linux.set_namespaces(Some(namespaces));
    linux.set_uid_mappings(None);
    linux.set_gid_mappings(None);
    spec.set_linux(Some(linux));
    Ok(())
}

/// For a user who isn't root: enters the user namespace of a running container.
pub(super) fn join(pid: i32, pidfd: &OwnedFd) -> Result<(), Failure> {
    let kind = NamespaceKind::User;
    if is_root() || namespace::same(namespace::open_of(pid, kind)?, namespace::open_own(kind)?)? {
        return Ok(());
    }
    namespace::join(pidfd, &[kind])?;
    Ok(become_root(setgroups_allowed("self"))?)
}

fn enter_new(mapping: &UserMapping) -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    if is_single(&mapping.uid_map, uid.as_raw()) && is_single(&mapping.gid_map, gid.as_raw()) {
        namespace::unshare(&[NamespaceKind::User])?;
        return Ok(write_mapping(own, mapping)?);
    }
    // The helpers must be started outside the namespace, which is there only after that.
    let (go, go_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|errno| linux::Error::new("pipe", "", errno.raw_os_error()))?;
    let helper = process::clone_child(CloneOptions::default(), || {
        let mut byte = [0];
        let told = rustix::io::read(&go, &mut byte).is_ok_and(|count| count == 1);
        let maps = [
            ("newgidmap", &mapping.gid_map),
            ("newuidmap", &mapping.uid_map),
        ];
        i32::from(
            !told
                || !maps
                    .into_iter()
                    .all(|(program, map)| run_helper(program, own, map)),
        )
    })?;
    let unshared = namespace::unshare(&[NamespaceKind::User]);
    if unshared.is_ok() {
        let _ = rustix::io::write(&go_end, b"g");
    }
    drop(go_end);
    let exit = pidfd::reap(&helper.pidfd, true)?;
    unshared?;
    match exit {
        Some(Exit::Code(0)) => Ok(()),
        _ => Err(Failure::other(format!(
            "map ids of the user namespace: newuidmap or newgidmap failed for uids {} and gids {}; /etc/subuid and \
             /etc/subgid must grant them",
            mapping.uid_map.trim().replace('\n', ", "),
            mapping.gid_map.trim().replace('\n', ", "),
        ))),
    }
}

/// Whether a map is of the one id that a process may map without privileges.
fn is_single(map: &str, id: u32) -> bool {
    let fields: Vec<&str> = map.split_whitespace().collect();
    matches!(fields.as_slice(), [_, host, "1"] if host.parse() == Ok(id))
}

fn run_helper(program: &str, pid: i32, map: &str) -> bool {
    let status = std::process::Command::new(program)
        .arg(pid.to_string())
        .args(map.split_whitespace())
        .status();
    match status {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("{program}: {error}");
            false
        }
    }
}
