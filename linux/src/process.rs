//! Making processes, and becoming programs.

use crate::error::{Context, Error, Result};
use crate::signal;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// libc's constant of this name is too narrow for its value.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How a child is cloned.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneOptions<'a> {
    /// `CLONE_NEW*` flags ([`crate::namespace::NamespaceKind::clone_flag`]).
    pub namespaces: u64,
    /// The v2 cgroup directory that it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it becomes the child of this process's parent.
    pub sibling: bool,
}

/// A new child.
#[derive(Debug)]
pub struct Child {
    /// Its pid in this process's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// How many threads this process has.
///
/// # Errors
/// The `stat`'s of `/proc/self/task`.
pub fn thread_count() -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let task = std::fs::metadata("/proc/self/task").context("stat", || "/proc/self/task")?;
    Ok(task.nlink().saturating_sub(2))
}

/// Clones a child, which runs `child` with all signals at their defaults and none blocked, and ends with the exit code
/// that it returns (101 after a panic).
///
/// # Errors
/// EDEADLK if this process has more than one thread: another could hold a lock at that moment (the allocator's, say)
/// that the child would wait for, for ever. Else the `clone3`'s.
pub fn clone_child(options: CloneOptions<'_>, child: impl FnOnce() -> i32) -> Result<Child> {
    if thread_count()? != 1 {
        return Err(Error::new(
            "clone from a process with several threads",
            "",
            libc::EDEADLK,
        ));
    }
    let mut pidfd: RawFd = -1;
    let mut flags = options.namespaces | libc::CLONE_PIDFD as u64;
    let mut cgroup = 0;
    if let Some(fd) = options.cgroup {
        flags |= CLONE_INTO_CGROUP;
        cgroup = fd.as_raw_fd() as u64;
    }
    if options.sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    let args = CloneArgs {
        flags,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        // With CLONE_PARENT the kernel takes the parent's own exit signal and insists on none here.
        exit_signal: if options.sibling {
            0
        } else {
            libc::SIGCHLD as u64
        },
        cgroup,
        ..CloneArgs::default()
    };
    // No handler of this process may run in the child before its signals are reset.
    let mask = signal::block_all()?;
    // SAFETY: without CLONE_VM the child gets a copy of this address space and goes on from here on a copy of this
    // stack, as after fork. This process has one thread (checked above), so no lock is held by a thread that the
    // child doesn't have, and the child may run any code. `args` is a struct clone_args of the size that is passed;
    // its only pointer is to `pidfd`, which lives through the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(&args),
            size_of::<CloneArgs>(),
        )
    };
    if pid == 0 {
        let code = catch_unwind(AssertUnwindSafe(|| {
            let _ = signal::reset();
            child()
        }))
        .unwrap_or(101);
        exit_now(code);
    }
    let failure = Error::last("clone3", format!("flags {flags:#x}"));
    signal::restore(&mask)?;
    if pid < 0 {
        return Err(failure);
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child {
        pid: pid as i32,
        pidfd,
    })
}

/// Clones a child that does nothing but sleep, to hold new namespaces until they are opened. The caller may be
/// threaded. It has no exit signal: nobody's loop over children sees it, and [`end_sleeper`] reaps it.
pub(crate) fn clone_sleeper(namespaces: u64) -> Result<Child> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        ..CloneArgs::default()
    };
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    let mask = signal::block_all()?;
    // SAFETY: as in `clone_child`, but with threads about: so the child allocates nothing, takes no lock and calls
    // nothing but the kernel, with all signals blocked, until it is killed.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(&args),
            size_of::<CloneArgs>(),
        )
    };
    if pid == 0 {
        // It ends with the thread that cloned it: what is killed meanwhile leaves no sleeper behind.
        // SAFETY: these take integers, and nothing else happens in the child.
        unsafe {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::syscall(libc::SYS_getppid) != libc::c_long::from(parent) {
                libc::_exit(0);
            }
        }
        loop {
            // SAFETY: a null set of descriptors and no timeout: it sleeps for ever.
            unsafe {
                libc::syscall(
                    libc::SYS_ppoll,
                    std::ptr::null::<u8>(),
                    0,
                    std::ptr::null::<u8>(),
                    std::ptr::null::<u8>(),
                    0,
                )
            };
        }
    }
    let failure = Error::last("clone3", format!("flags {namespaces:#x}"));
    signal::restore(&mask)?;
    if pid < 0 {
        return Err(failure);
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child {
        pid: pid as i32,
        pidfd,
    })
}

/// Ends and reaps a child of [`clone_sleeper`].
pub(crate) fn end_sleeper(child: &Child) -> Result<()> {
    crate::pidfd::kill(&child.pidfd)?;
    // SAFETY: the siginfo is a live zeroed structure for the kernel to fill in. Children without an exit signal are
    // seen with __WALL only, which rustix's waitid doesn't offer.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    check_wait(unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            child.pidfd.as_raw_fd(),
            std::ptr::from_mut(&mut info),
            libc::WEXITED | libc::__WALL,
            std::ptr::null::<u8>(),
        )
    })
}

fn check_wait(value: libc::c_long) -> Result<()> {
    crate::error::check(value)
        .map(drop)
        .context("waitid", || "namespace holder")
}

/// Ends this process at once, without running destructors or exit handlers: for a child of [`clone_child`].
pub fn exit_now(code: i32) -> ! {
    // SAFETY: exit_group takes an integer and doesn't return.
    unsafe { libc::_exit(code) }
}

/// Becomes the program at `path`; returns only on failure.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Error {
    match nix::unistd::execve(path, args, env) {
        Err(errno) => Error::new("execve", path.to_string_lossy(), errno as i32),
        Ok(never) => match never {},
    }
}

/// Becomes the program that a descriptor refers to; returns only on failure.
pub fn execve_fd(program: impl AsFd, args: &[CString], env: &[CString]) -> Error {
    match nix::unistd::execveat(program, c"", args, env, nix::fcntl::AtFlags::AT_EMPTY_PATH) {
        Err(errno) => Error::new("execveat", "", errno as i32),
        Ok(never) => match never {},
    }
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// ENOSYS before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed now, so no owned descriptor becomes invalid.
    crate::error::check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .context("close_range", || format!("from {first}"))?;
    Ok(())
}

/// Closes every descriptor from `first` on but these, at once and not at `execve`: until then a path of the container's
/// choice could lead through them, by `/proc/self/fd`.
///
/// For a child of [`clone_child`], which uses and drops no other descriptor afterwards.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_all_but(first: u32, keep: &[RawFd]) -> Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|number| *number as u32).collect();
    kept.retain(|number| *number >= first);
    kept.sort_unstable();
    let mut next = first;
    for last in kept.into_iter().map(Some).chain([None]) {
        let end = last.map_or(u32::MAX, |number| number.saturating_sub(1));
        if next <= end {
            // SAFETY: descriptors that values of the cloned program own are closed under them. The caller is a child
            // about to exec (see above): none of these values is used again, and none is dropped, since it ends by
            // `execve` or `_exit`.
            crate::error::check(unsafe { libc::syscall(libc::SYS_close_range, next, end, 0u32) })
                .context("close_range", || format!("{next} to {end}"))?;
        }
        next = last.map_or(u32::MAX, |number| number + 1).max(next);
    }
    Ok(())
}

/// Makes `fd` this process's descriptor number `number`, open across `execve`. What was there is closed.
///
/// # Errors
/// The `dup2`'s.
pub fn install_fd(fd: impl AsFd, number: RawFd) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    if raw == number {
        return clear_close_on_exec(fd);
    }
    // SAFETY: dup2 takes integers. `number` is 0, 1 or 2 (std's streams, which nothing owns exclusively), or in a
    // child about to exec, whose other descriptors are not used again.
    crate::error::check(unsafe { libc::c_long::from(libc::dup2(raw, number)) })
        .context("dup2", || format!("{raw} to {number}"))?;
    Ok(())
}

/// Keeps a descriptor open across `execve`.
///
/// # Errors
/// The `fcntl`'s.
pub fn clear_close_on_exec(fd: impl AsFd) -> Result<()> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).context("fcntl", || "F_SETFD")
}

/// Takes over a descriptor number that this process was started with (`--preserve-fds`, `LISTEN_FDS`).
///
/// # Errors
/// EBADF if it isn't open.
pub fn inherited_fd(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: only borrowed for the one call, which fails with EBADF if it isn't open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3)
        .context("dup inherited descriptor", || number.to_string())
}

/// Whether a descriptor is open and stays so across `execve`, as those do that this process was started with.
pub fn stays_open_on_exec(number: RawFd) -> bool {
    // SAFETY: only borrowed for the one call, which fails with EBADF if it isn't open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed)
        .is_ok_and(|flags| !flags.contains(rustix::io::FdFlags::CLOEXEC))
}

/// Forbids tracing, `/proc/<pid>/mem` and core dumps of this process to others without CAP_SYS_PTRACE over the user
/// namespace in which its program was started.
///
/// # Errors
/// The `prctl`'s.
pub fn set_undumpable() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).context("prctl", || "PR_SET_DUMPABLE")
}

/// Makes orphaned descendants children of this process rather than of pid 1.
///
/// # Errors
/// The `prctl`'s.
pub fn set_child_subreaper() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("prctl", || "PR_SET_CHILD_SUBREAPER")
}

/// Has the kernel send this process `signal` when its parent ends.
///
/// # Errors
/// The `prctl`'s.
pub fn set_parent_death_signal(signal: i32) -> Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes an integer.
    crate::error::check(unsafe { libc::c_long::from(libc::prctl(libc::PR_SET_PDEATHSIG, signal)) })
        .context("prctl", || "PR_SET_PDEATHSIG")?;
    Ok(())
}

/// Sets the execution domain (personality(2)).
///
/// # Errors
/// EINVAL.
pub fn set_personality(persona: u32) -> Result<()> {
    // SAFETY: personality takes an integer.
    crate::error::check(unsafe {
        libc::c_long::from(libc::personality(libc::c_ulong::from(persona)))
    })
    .context("personality", || format!("{persona:#x}"))?;
    Ok(())
}

/// Is the init of a pid namespace: closes every descriptor, reaps what is orphaned, and returns after SIGTERM or
/// SIGINT, whereupon the kernel kills the rest of the namespace.
///
/// For a child of [`clone_child`], which returns the code at once.
pub fn run_pid_namespace_init() -> i32 {
    use nix::sys::signal::{SigSet, Signal};
    let set: SigSet = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]
        .into_iter()
        .collect();
    if set.thread_block().is_err() {
        return 1;
    }
    // SAFETY: descriptors that values of the cloned program own are closed under them; none of these values is used
    // or dropped again, since this process only waits for signals below and then ends by `_exit`.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
    loop {
        match set.wait() {
            Ok(Signal::SIGCHLD) => {
                use rustix::process::{WaitOptions, wait};
                while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
            }
            Ok(_) => return 0,
            Err(_) => {}
        }
    }
}
