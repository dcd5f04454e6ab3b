//! The child's side of a launch: everything between the clone and `execve`.
//!
//! It runs in a copy of a single-threaded process, so it may allocate; it takes no lock that outlives it, follows no
//! path of the host's, and its only way to speak is the status descriptor.

mod copy_up;
mod devices;
mod filesystem;
mod gate;
mod process;

use crate::error::{DuringLaunch, LaunchError, WAITS_AT_GATE};
use crate::plan::{CgroupPlan, ExecPlan, Fd, LaunchPlan, NamespacePlan, UserMapping};
use linux::namespace::{self, NamespaceKind};
use linux::process::set_undumpable;
use linux::{credential, keyring, procfs};
use process::Early;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(crate) use process::{own_streams_outside, set_limits};

/// The descriptors of a plan, as they arrived.
#[derive(Clone, Copy)]
pub(crate) struct Fds<'a>(pub &'a [OwnedFd]);

impl<'a> Fds<'a> {
    /// The descriptor that a plan refers to.
    pub(crate) fn get(self, fd: Fd) -> Result<BorrowedFd<'a>, LaunchError> {
        self.0.get(fd.0).map(AsFd::as_fd).ok_or_else(|| {
            LaunchError::new(
                "read the launch plan",
                format!("descriptor {} of {} is missing", fd.0, self.0.len()),
            )
        })
    }
}

/// The first process's descriptors 0, 1 and 2 as the child gets them.
pub(crate) enum ChildStdio<'a> {
    Fds([&'a OwnedFd; 3]),
    Terminal(&'a OwnedFd),
    None,
}

impl<'a> ChildStdio<'a> {
    fn streams(&self) -> Option<[&'a OwnedFd; 3]> {
        match self {
            ChildStdio::Fds(fds) => Some(*fds),
            ChildStdio::Terminal(slave) => Some([slave, slave, slave]),
            ChildStdio::None => None,
        }
    }
}

/// Where a failure is told: the launching process, and after the gate whoever opened it.
#[derive(Debug)]
pub(crate) struct Reporter(Option<OwnedFd>);

impl Reporter {
    pub(crate) fn new(status: OwnedFd) -> Self {
        Reporter(Some(status))
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// Says that the process waits at its gate; errors go elsewhere from now on.
    fn close_at_gate(&mut self) {
        if let Some(status) = self.0.take() {
            // Nobody to hear it is nobody to open the gate.
            let _ = rustix::io::write(status, WAITS_AT_GATE);
        }
    }

    fn replace(&mut self, status: OwnedFd) {
        self.0 = Some(status);
    }

    pub(crate) fn report(&self, error: &LaunchError) {
        let Some(status) = &self.0 else { return };
        let bytes = error.encode();
        let mut rest = bytes.as_slice();
        while let Ok(count @ 1..) = rustix::io::write(status, rest) {
            rest = rest.get(count..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
    }
}

/// Runs a child to its `execve`; its failure is reported, and is the exit code that is returned.
pub(crate) fn finish(
    reporter: &mut Reporter,
    run: impl FnOnce(&mut Reporter) -> Result<Infallible, LaunchError>,
) -> i32 {
    match run(reporter) {
        Ok(never) => match never {},
        Err(error) => {
            reporter.report(&error);
            error.exit_code
        }
    }
}

/// Makes the time namespace that this process's next child is in.
pub(crate) fn make_time_namespace(plan: &NamespacePlan) -> Result<(), LaunchError> {
    namespace::unshare(&[NamespaceKind::Time]).step(|| "make time namespace")?;
    if plan.time_offsets.is_empty() {
        return Ok(());
    }
    procfs::write("self/timens_offsets", &plan.time_offsets).step(|| "set time offsets")
}

/// Writes the mapping of a new user namespace, from outside.
pub(crate) fn write_mapping(pid: i32, mapping: &UserMapping) -> Result<(), LaunchError> {
    let write = |file: &str, text: &str| {
        procfs::write(&format!("{pid}/{file}"), text).step(|| "map ids of the user namespace")
    };
    if mapping.deny_setgroups {
        write("setgroups", "deny")?;
    }
    write("gid_map", &mapping.gid_map)?;
    write("uid_map", &mapping.uid_map)
}

/// Joins the v1 hierarchies by this process's own hand: writing `0` to `tasks` means the writer.
pub(crate) fn join_cgroup(plan: &CgroupPlan, fds: Fds<'_>) -> Result<(), LaunchError> {
    for fd in &plan.tasks {
        let written = rustix::io::write(fds.get(*fd)?, b"0")
            .map_err(|errno| linux::Error::new("write", "tasks", errno.raw_os_error()));
        written.step(|| "join cgroup")?;
    }
    Ok(())
}

/// Joins namespaces: the user namespace last, since until then this process may still join those of others.
pub(crate) fn join_namespaces(plan: &NamespacePlan, fds: Fds<'_>) -> Result<(), LaunchError> {
    let (user, others): (Vec<_>, Vec<_>) = plan
        .join
        .iter()
        .partition(|(kind, _)| *kind == NamespaceKind::User);
    for (kind, fd) in others.into_iter().chain(user) {
        namespace::join(fds.get(fd)?, &[kind])
            .step(|| format!("join {} namespace", kind.proc_name()))?;
    }
    Ok(())
}

/// Becomes the user namespace's root, which all of the set-up is done as.
pub(crate) fn become_root(groups: bool) -> Result<(), LaunchError> {
    credential::become_user(0, 0, groups.then_some(&[]))
        .step(|| "become root of the user namespace")
}

/// The whole life of a pod's init.
pub(crate) fn run_pod_init() -> i32 {
    // Its program is the caller's, and others in its pid namespace must not get at that.
    if set_undumpable().is_err() || credential::new_session().is_err() {
        return 1;
    }
    // It must keep no directory of the host's busy.
    let _ = rustix::process::chdir("/");
    let _ = rustix::thread::set_name(c"orlop-pod-init");
    linux::process::run_pid_namespace_init()
}

/// Brings a container's first process to its `execve`. Returns only on failure.
///
/// Joined namespaces are entered already, and a new user namespace's mapping is written.
pub(crate) fn run_launch(
    plan: &LaunchPlan,
    fds: Fds<'_>,
    stdio: &ChildStdio<'_>,
    reporter: &mut Reporter,
) -> Result<Infallible, LaunchError> {
    // Others in a pid namespace that this one joins must not get at it before its program runs.
    set_undumpable().step(|| "forbid tracing")?;
    let early = Early::open(&plan.process, fds)?;
    if plan.namespaces.has_user() {
        become_root(plan.process.groups.is_some())?;
    }
    if plan.namespaces.new_cgroup {
        namespace::unshare(&[NamespaceKind::Cgroup]).step(|| "make cgroup namespace")?;
    }
    credential::new_session().step(|| "start session")?;
    join_keyring(plan.process.keyring.as_deref())?;
    if let Some(name) = &plan.host_name {
        credential::set_host_name(name).step(|| "set host name")?;
    }
    if let Some(name) = &plan.domain_name {
        credential::set_domain_name(name).step(|| "set domain name")?;
    }
    // By the host's procfs, which is still there: hooks are told the pid that the runtime knows.
    let pid = own_pid();
    let before_pivot = || {
        if let Some(fd) = plan.hooks.runtime {
            wait_for_runtime_hooks(fds.get(fd)?)?;
        }
        crate::hooks::run_all(
            "createContainer",
            &plan.hooks.create_container,
            &plan.hooks.state,
            pid,
            "creating",
            None,
        )
    };
    let slave = match stdio {
        ChildStdio::Terminal(slave) => Some(*slave),
        ChildStdio::Fds(_) | ChildStdio::None => None,
    };
    filesystem::build(plan, fds, slave, before_pivot)?;
    let gate = plan.gate.map(|fd| fds.get(fd)).transpose()?;
    let before_program = |env: &[CString]| {
        crate::hooks::run_all(
            "startContainer",
            &plan.hooks.start_container,
            &plan.hooks.state,
            pid,
            "created",
            Some(env),
        )
    };
    process::become_program(&plan.process, stdio, &early, gate, before_program, reporter)
}

fn join_keyring(name: Option<&str>) -> Result<(), LaunchError> {
    let Some(name) = name else { return Ok(()) };
    match keyring::join_session(name) {
        // A kernel without keys, or a user over its quota, isn't a reason to not run.
        Err(error) if error.is(libc::ENOSYS) || error.is(libc::EDQUOT) => Ok(()),
        other => other.step(|| "join session keyring"),
    }
}

/// This process's pid in the mount namespace's procfs.
fn own_pid() -> i32 {
    let link = std::fs::read_link("/proc/self").ok();
    link.and_then(|pid| pid.to_str()?.parse().ok()).unwrap_or(0)
}

/// Tells the runtime that the namespaces and mounts are there, and waits for its word.
fn wait_for_runtime_hooks(socket: BorrowedFd<'_>) -> Result<(), LaunchError> {
    let step = || "wait for the runtime's hooks";
    let failed = |operation, errno: rustix::io::Errno| {
        linux::Error::new(operation, "", errno.raw_os_error())
    };
    rustix::io::write(socket, b"r")
        .map_err(|errno| failed("write", errno))
        .step(step)?;
    let mut word = [0];
    match rustix::io::read(socket, &mut word)
        .map_err(|errno| failed("read", errno))
        .step(step)?
    {
        1 => Ok(()),
        _ => Err(LaunchError::new(step(), "the runtime ended")),
    }
}

/// Brings another process into a running container and to its `execve`. Returns only on failure.
pub(crate) fn run_exec(
    plan: &ExecPlan,
    fds: Fds<'_>,
    stdio: &ChildStdio<'_>,
    reporter: &mut Reporter,
) -> Result<Infallible, LaunchError> {
    // The container's processes can see this one as soon as it is in their pid namespace (CVE-2016-9962).
    set_undumpable().step(|| "forbid tracing")?;
    let early = Early::open(&plan.process, fds)?;
    // The pid namespace was joined before the clone: for oneself it can't be.
    let kinds: Vec<_> = plan
        .kinds
        .iter()
        .copied()
        .filter(|kind| *kind != NamespaceKind::Pid)
        .collect();
    if plan.kinds.contains(&NamespaceKind::User) {
        own_streams_outside(&plan.process, stdio)?;
    }
    if !kinds.is_empty() {
        namespace::join(fds.get(plan.pidfd)?, &kinds).step(|| "join the container's namespaces")?;
    }
    if plan.kinds.contains(&NamespaceKind::User) {
        become_root(plan.process.groups.is_some())?;
    }
    enter_root(fds.get(plan.root)?)?;
    credential::new_session().step(|| "start session")?;
    join_keyring(plan.process.keyring.as_deref())?;
    process::become_program(&plan.process, stdio, &early, None, |_| Ok(()), reporter)
}

/// The container's root need not be its mount namespace's.
fn enter_root(root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    let failed = |operation, errno: rustix::io::Errno| {
        linux::Error::new(operation, "the container's root", errno.raw_os_error())
    };
    rustix::process::fchdir(root)
        .map_err(|errno| failed("fchdir", errno))
        .step(|| "enter the container's root")?;
    rustix::process::chroot(".")
        .map_err(|errno| failed("chroot", errno))
        .step(|| "enter the container's root")?;
    rustix::process::chdir("/")
        .map_err(|errno| failed("chdir", errno))
        .step(|| "enter the container's root")
}
