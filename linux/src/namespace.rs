//! Namespaces: their kinds, and joining them.

use crate::error::{Context, Result, check};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// A kind of namespace, in runtime-spec's words (config-linux.md, Namespaces).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// User and group ids, capabilities.
    User,
    /// Process ids.
    Pid,
    /// The mount table.
    Mount,
    /// Links, addresses, rules, sockets.
    Network,
    /// System V IPC and POSIX queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// The cgroup tree's visible root.
    Cgroup,
    /// Offsets of the monotonic and boot-time clocks.
    Time,
}

impl NamespaceKind {
    /// All kinds; the user namespace first, as it must be joined first.
    pub const ALL: [NamespaceKind; 8] = [
        NamespaceKind::User,
        NamespaceKind::Pid,
        NamespaceKind::Mount,
        NamespaceKind::Network,
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Cgroup,
        NamespaceKind::Time,
    ];

    /// The `CLONE_NEW*` flag.
    pub fn clone_flag(self) -> u64 {
        let flag = match self {
            NamespaceKind::User => libc::CLONE_NEWUSER,
            NamespaceKind::Pid => libc::CLONE_NEWPID,
            NamespaceKind::Mount => libc::CLONE_NEWNS,
            NamespaceKind::Network => libc::CLONE_NEWNET,
            NamespaceKind::Ipc => libc::CLONE_NEWIPC,
            NamespaceKind::Uts => libc::CLONE_NEWUTS,
            NamespaceKind::Cgroup => libc::CLONE_NEWCGROUP,
            NamespaceKind::Time => libc::CLONE_NEWTIME,
        };
        flag as u64
    }

    /// The file's name under `/proc/<pid>/ns/`.
    pub fn proc_name(self) -> &'static str {
        match self {
            NamespaceKind::User => "user",
            NamespaceKind::Pid => "pid",
            NamespaceKind::Mount => "mnt",
            NamespaceKind::Network => "net",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::Uts => "uts",
            NamespaceKind::Cgroup => "cgroup",
            NamespaceKind::Time => "time",
        }
    }
}

/// Opens a namespace file (`/proc/<pid>/ns/net`, or a pin of one).
///
/// # Errors
/// The `open`'s.
pub fn open(path: &Path) -> Result<OwnedFd> {
    File::open(path)
        .map(OwnedFd::from)
        .context("open namespace", || path.display().to_string())
}

/// Opens a namespace of a process.
///
/// # Errors
/// The `open`'s; ENOENT if the process has ended or the kernel lacks the kind.
pub fn open_of(pid: i32, kind: NamespaceKind) -> Result<OwnedFd> {
    open(Path::new(&format!("/proc/{pid}/ns/{}", kind.proc_name())))
}

/// Opens a namespace of this thread.
///
/// # Errors
/// As [`open_of`].
pub fn open_own(kind: NamespaceKind) -> Result<OwnedFd> {
    open(Path::new(&format!(
        "/proc/thread-self/ns/{}",
        kind.proc_name()
    )))
}

/// Moves this thread into the namespaces `kinds` of what `fd` refers to, in one call: a pidfd (any kinds) or a
/// namespace file (that one kind, or none to accept any). For the pid and time namespaces this counts for children.
///
/// # Errors
/// EINVAL for a user namespace that the caller is already in, or for a threaded caller with user or mount namespaces.
pub fn join(fd: impl AsFd, kinds: &[NamespaceKind]) -> Result<()> {
    let flags = kinds
        .iter()
        .fold(0, |flags, kind| flags | kind.clone_flag());
    // SAFETY: setns takes two integers and touches no memory of ours.
    check(unsafe {
        libc::syscall(
            libc::SYS_setns,
            fd.as_fd().as_raw_fd(),
            flags as libc::c_int,
        )
    })
    .context("setns", || format!("{kinds:?}"))?;
    Ok(())
}

/// Gives this thread new namespaces of these kinds. For the pid and time namespaces this counts for children.
///
/// # Errors
/// EINVAL for a threaded caller where the kind forbids it, ENOSPC over a limit on namespaces.
pub fn unshare(kinds: &[NamespaceKind]) -> Result<()> {
    let flags = kinds
        .iter()
        .fold(0, |flags, kind| flags | kind.clone_flag());
    // SAFETY: unshare takes an integer. It never includes CLONE_FILES or CLONE_FS, which no kind maps to, so the
    // descriptor table that std assumes to be shared by threads stays shared.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags as libc::c_int) })
        .context("unshare", || format!("{kinds:?}"))?;
    Ok(())
}

/// Whether this process is in a user namespace other than the first: its root is then somebody else to the host, and
/// may make no device nodes, for instance.
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let all: Vec<&str> = map.split_whitespace().collect();
    !map.is_empty() && all != ["0", "0", "4294967295"]
}

/// A new user namespace with these maps (the text of `uid_map` and `gid_map`), in which nobody is: for id-mapped
/// mounts. The caller may be threaded.
///
/// # Errors
/// As [`owned_by_new_user`].
pub fn user_with_mapping(uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    owned_by_new_user(uid_map, gid_map, &[]).map(|(user, _)| user)
}

/// A new user namespace with these maps, and new namespaces of these kinds that it owns, in their order; nobody is in
/// any. The caller may be threaded.
///
/// # Errors
/// The `clone3`'s (ENOSPC over a limit on namespaces) or the maps' (EPERM, EINVAL).
pub fn owned_by_new_user(
    uid_map: &str,
    gid_map: &str,
    kinds: &[NamespaceKind],
) -> Result<(OwnedFd, Vec<OwnedFd>)> {
    let flags = kinds
        .iter()
        .fold(NamespaceKind::User.clone_flag(), |flags, kind| {
            flags | kind.clone_flag()
        });
    let holder = crate::process::clone_sleeper(flags)?;
    let write = |file: &str, text: &str| {
        let path = format!("/proc/{}/{file}", holder.pid);
        std::fs::write(&path, text).context("write", || format!("{path}: {}", text.trim()))
    };
    let opened = write("uid_map", uid_map)
        .and_then(|()| write("gid_map", gid_map))
        .and_then(|()| {
            let owned = kinds.iter().map(|kind| open_of(holder.pid, *kind));
            Ok((
                open_of(holder.pid, NamespaceKind::User)?,
                owned.collect::<Result<_>>()?,
            ))
        });
    crate::process::end_sleeper(&holder)?;
    opened
}

/// The user namespace that owns a namespace (ioctl_nsfs(2)).
///
/// # Errors
/// EPERM if it is not this process's and none below.
pub fn owner(namespace: impl AsFd) -> Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: this ioctl takes no argument and touches no memory of ours.
    let fd = check(libc::c_long::from(unsafe {
        libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS)
    }))
    .context("ioctl", || "NS_GET_USERNS")?;
    // SAFETY: the call succeeded, so its value is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Whether two descriptors refer to the same namespace.
///
/// # Errors
/// The `fstat`'s.
pub fn same(a: impl AsFd, b: impl AsFd) -> Result<bool> {
    let a = rustix::fs::fstat(a).context("fstat namespace", || "")?;
    let b = rustix::fs::fstat(b).context("fstat namespace", || "")?;
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
