//! `start`, `kill`, `delete`, `pause`, `resume`.

use super::args::KillArgs;
use super::hooks::RuntimeHooks;
use super::{Context, Failure, Outcome, create, resctrl, scope};
use crate::state::{Container, Status};
use linux::{mount, pidfd, signal};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How long the kernel may take to end what was killed, or to stop what is paused.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn start(context: &Context, id: &str) -> Outcome {
    let container = Container::lock(&context.root, id)?;
    match container.status() {
        Status::Created => {}
        Status::Stopped => return Err(Failure::other("cannot start a container that has stopped")),
        Status::Running | Status::Paused => {
            return Err(Failure::other("cannot start an already running container"));
        }
        Status::Creating => {
            return Err(Failure::other(
                "cannot start a container that is being created",
            ));
        }
    }
    // The rename is what makes the container a started one, whatever becomes of this command.
    let (name, taken) = ("start.sock", "starting.sock");
    std::fs::rename(container.path(name), container.path(taken))
        .map_err(|error| Failure::other(format!("start container {id}: {error}")))?;
    let connection = connect(&container, taken);
    let _ = std::fs::remove_file(container.path(taken));
    create::wait_status(&connection?)?;
    RuntimeHooks::read(&container, &container.spec()?)?
        .started(container.record.pid, container.process().as_ref())?;
    Ok(0)
}

fn connect(container: &Container, name: &str) -> Result<OwnedFd, Failure> {
    let failed = |operation, errno: rustix::io::Errno| {
        Failure::Kernel(linux::Error::new(
            operation,
            "the waiting container",
            errno.raw_os_error(),
        ))
    };
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed("make socket for", errno))?;
    let address =
        SocketAddrUnix::new(container.short_path(name)).map_err(|errno| failed("name", errno))?;
    rustix::net::connect(&socket, &address).map_err(|errno| failed("connect to", errno))?;
    Ok(socket)
}

pub(super) fn kill(context: &Context, args: &KillArgs) -> Outcome {
    let number = signal::parse(&args.signal)
        .ok_or_else(|| Failure::other(format!("unknown signal {:?}", args.signal)))?;
    let container = Container::open(&context.root, &args.id)?;
    if args.all || (number == libc::SIGKILL && !has_own_pids(&container)) {
        return kill_all(&container, number);
    }
    let Some(process) = container.process() else {
        return Err(Failure::other("container not running"));
    };
    match pidfd::send_signal(&process, number) {
        Err(error) if error.is(libc::ESRCH) => return Err(Failure::other("container not running")),
        other => other?,
    }
    // A paused container gets its death only when it goes on.
    if number == libc::SIGKILL && container.status() == Status::Paused {
        resume_cgroup(&container)?;
    }
    Ok(0)
}

/// Whether the death of the first process is that of all: it is the init of a pid namespace of the container's own.
fn has_own_pids(container: &Container) -> bool {
    let Ok(spec) = container.spec() else {
        return true;
    };
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces());
    namespaces
        .flatten()
        .any(|entry| entry.typ() == LinuxNamespaceType::Pid && entry.path().is_none())
}

fn kill_all(container: &Container, number: i32) -> Outcome {
    let Some(cgroup) = container.cgroup()? else {
        return Err(Failure::other("container has no cgroup"));
    };
    // systemd removes a unit's cgroup with its last process.
    if container.process().is_none() && !cgroup.exists() {
        return Err(Failure::other("container not running"));
    }
    if number == libc::SIGKILL {
        if container.process().is_none() && cgroup.processes()?.is_empty() {
            return Err(Failure::other("container not running"));
        }
        cgroup.kill()?;
        return Ok(0);
    }
    for pid in cgroup.processes()? {
        match signal::kill(pid, number) {
            Err(error) if !error.is(libc::ESRCH) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(0)
}

pub(super) fn delete(context: &Context, id: &str, force: bool) -> Outcome {
    let container = match Container::lock(&context.root, id) {
        Err(crate::state::StateError::NotFound(_)) if force => return Ok(0),
        other => other?,
    };
    let status = container.status();
    if status != Status::Stopped && status != Status::Creating && !force {
        // As runc: a container that was never started may go.
        if status != Status::Created {
            return Err(Failure::other(format!(
                "cannot delete container {id} that is not stopped: {status}"
            )));
        }
    }
    destroy(container, None)?;
    Ok(0)
}

/// Ends and removes all that is there of a container. Goes on past an error; the first is returned.
/// `spec` is the container's, where it was read already.
pub(super) fn destroy(container: Container, spec: Option<&Spec>) -> Result<(), Failure> {
    let mut first: Option<Failure> = None;
    let mut note = |result: Result<(), Failure>| {
        if let Err(failure) = result {
            first.get_or_insert(failure);
        }
    };
    let process = container.process();
    if let Some(process) = &process {
        note(pidfd::kill(process).map_err(Failure::from));
    }
    match container.cgroup() {
        Ok(Some(cgroup)) => {
            note(cgroup.kill().map_err(Failure::from));
            note(await_end(process.as_ref()));
            note(cgroup.wait_empty(PATIENCE).map_err(Failure::from));
            if let Some(unit) = &container.record.unit {
                scope::stop(unit);
            }
            note(cgroup.delete().map_err(Failure::from));
        }
        Ok(None) => note(await_end(process.as_ref())),
        Err(error) => note(Err(error.into())),
    }
    note(resctrl::remove(&container.record.resctrl));
    if let Some(below) = container.record.below {
        note(unmount_above(below, &container.record.rootfs).map_err(Failure::from));
    }
    // One whose creation was cut short has no spec, and had no hooks run.
    let read = match spec {
        Some(_) => None,
        None => container.spec().ok(),
    };
    let hooks = spec
        .or(read.as_ref())
        .and_then(|spec| RuntimeHooks::read(&container, spec).ok());
    match first {
        None => {
            container.remove()?;
            if let Some(hooks) = hooks {
                hooks.deleted();
            }
            Ok(())
        }
        Some(failure) => Err(failure),
    }
}

/// Takes away what a container without a mount namespace of its own mounted on its root.
fn unmount_above(below: u64, rootfs: &Path) -> linux::Result<()> {
    match mount::id_at(rootfs) {
        Ok(top) if top != below => mount::detach(rootfs),
        // The bundle went first.
        Err(error) if error.is(libc::ENOENT) => Ok(()),
        other => other.map(drop),
    }
}

fn await_end(process: Option<&OwnedFd>) -> Result<(), Failure> {
    let Some(process) = process else {
        return Ok(());
    };
    pidfd::wait_exit(process, Some(PATIENCE))?;
    // It is this process's child in `run`, and somebody else's otherwise.
    let _ = pidfd::reap(process, false);
    Ok(())
}

pub(super) fn pause(context: &Context, id: &str) -> Outcome {
    let container = Container::lock(&context.root, id)?;
    match container.status() {
        Status::Running | Status::Created => {}
        status => return Err(Failure::other(format!("container not running: {status}"))),
    }
    let Some(cgroup) = container.cgroup()? else {
        return Err(Failure::other("container has no cgroup"));
    };
    cgroup.freeze(PATIENCE)?;
    Ok(0)
}

pub(super) fn resume(context: &Context, id: &str) -> Outcome {
    let container = Container::lock(&context.root, id)?;
    if container.status() != Status::Paused {
        return Err(Failure::other("container not paused"));
    }
    resume_cgroup(&container)?;
    Ok(0)
}

fn resume_cgroup(container: &Container) -> Result<(), Failure> {
    if let Some(cgroup) = container.cgroup()? {
        cgroup.thaw()?;
    }
    Ok(())
}
