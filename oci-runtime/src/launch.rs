//! Starting a planned process: the parent's side.

use crate::error::{DuringLaunch, LaunchError, read_status};
use crate::init::{self, ChildStdio, Fds, Reporter};
use crate::net_devices::move_all;
use crate::plan::{CgroupPlan, ExecPlan, LaunchPlan, NamespacePlan, ProcessPlan};
use linux::namespace::{self, NamespaceKind};
use linux::process::{self, CloneOptions};
use linux::{pidfd, socket, terminal};
use rustix::pipe::PipeFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the first process has as descriptors 0, 1 and 2.
#[derive(Debug)]
pub enum Stdio {
    /// These three; they are owned by the container's user afterwards, so that it can reopen them.
    Fds {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
    /// A new terminal of the container's own devpts; its master is [`Launched::terminal`]. The plan must be one for a
    /// process with `terminal`.
    Terminal {
        /// Columns and rows; absent, the spec's `consoleSize`, or the kernel's 0 by 0.
        size: Option<(u16, u16)>,
        /// Whether line feeds leave it as they are: for a caller that relays to a terminal that makes line ends of
        /// them itself, or to what is none.
        relayed: bool,
    },
}

/// A process on its way to `execve`.
#[derive(Debug)]
pub struct Launched {
    /// Its pid in the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// End of file means that `execve` succeeded; bytes before it are for [`crate::read_status`], with a gate also if the
    /// process waits there. Poll it.
    pub status: OwnedFd,
    /// The master of the terminal, with [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
}

/// Starts a container's first process.
///
/// The caller must have a single thread (checked), and becomes the parent of the process. `/proc` must be mounted in
/// its mount namespace, with nothing over it, or a container with a user namespace can't mount its own. Returns right
/// after the clone and does not wait for `execve`.
///
/// # Errors
/// If the process could not be cloned; later failures arrive through [`Launched::status`].
pub fn launch(plan: &LaunchPlan, fds: Vec<OwnedFd>, stdio: Stdio) -> Result<Launched, LaunchError> {
    let table = Fds(&fds);
    let devpts = plan.devpts.map(|fd| table.get(fd)).transpose()?;
    let streams = Streams::open(stdio, devpts, &plan.process)?;
    let (status, status_end) = status_pipe()?;
    let mut reporter = Reporter::new(status_end);
    let devices = match plan.net_devices.is_empty() {
        true => None,
        false => Some(status_pipe()?),
    };
    let wait = || match &devices {
        Some((go, _)) => await_word(go, "wait for network devices"),
        None => Ok(()),
    };
    let child = if needs_intermediate(&plan.namespaces) {
        by_intermediate(&plan.cgroup, table, reporter, &status, |reporter| {
            intermediate(plan, table, &streams, &wait, reporter)
        })?
    } else {
        let options = CloneOptions {
            namespaces: clone_flags(&plan.namespaces),
            cgroup: unified(&plan.cgroup, table)?,
            sibling: false,
        };
        let join_pid = plan
            .namespaces
            .joins(NamespaceKind::Pid)
            .map(|fd| table.get(fd))
            .transpose()?;
        in_pid_namespace(join_pid, || {
            process::clone_child(options, || {
                init::finish(&mut reporter, |reporter| {
                    init::join_cgroup(&plan.cgroup, table)?;
                    init::set_limits(&plan.process)?;
                    init::join_namespaces(&plan.namespaces, table)?;
                    wait()?;
                    init::run_launch(plan, table, &streams.child(), reporter)
                })
            })
        })?
    };
    if let Some((_, go)) = &devices {
        let moved = move_devices(plan, table, child.pid).and_then(|()| tell(go));
        if let Err(error) = moved {
            let _ = pidfd::kill(&child.pidfd);
            let _ = pidfd::reap(&child.pidfd, true);
            return Err(error);
        }
    }
    Ok(Launched {
        pid: child.pid,
        pidfd: child.pidfd,
        status,
        terminal: streams.into_master(),
    })
}

/// Starts another process in a running container; otherwise as [`launch`].
///
/// # Errors
/// As [`launch`].
pub fn exec(plan: &ExecPlan, fds: Vec<OwnedFd>, stdio: Stdio) -> Result<Launched, LaunchError> {
    let table = Fds(&fds);
    let devpts = plan.devpts.map(|fd| table.get(fd)).transpose()?;
    let streams = Streams::open(stdio, devpts, &plan.process)?;
    let (status, status_end) = status_pipe()?;
    let mut reporter = Reporter::new(status_end);
    let options = CloneOptions {
        namespaces: 0,
        cgroup: unified(&plan.cgroup, table)?,
        sibling: false,
    };
    let target = table.get(plan.pidfd)?;
    let join_pid = plan.kinds.contains(&NamespaceKind::Pid).then_some(target);
    let child = in_pid_namespace(join_pid, || {
        process::clone_child(options, || {
            init::finish(&mut reporter, |reporter| {
                init::set_limits(&plan.process)?;
                init::join_cgroup(&plan.cgroup, table)?;
                init::run_exec(plan, table, &streams.child(), reporter)
            })
        })
    })?;
    Ok(Launched {
        pid: child.pid,
        pidfd: child.pidfd,
        status,
        terminal: streams.into_master(),
    })
}

/// Where the parent keeps the streams while the child gets hold of them.
struct Streams {
    ends: [Option<OwnedFd>; 3],
    terminal: Option<(OwnedFd, OwnedFd)>,
}

impl Streams {
    fn open(
        stdio: Stdio,
        devpts: Option<BorrowedFd<'_>>,
        plan: &ProcessPlan,
    ) -> Result<Self, LaunchError> {
        match stdio {
            Stdio::Fds {
                stdin,
                stdout,
                stderr,
            } => Ok(Streams {
                ends: [Some(stdin), Some(stdout), Some(stderr)],
                terminal: None,
            }),
            Stdio::Terminal { size, relayed } => {
                let devpts = devpts.ok_or_else(|| {
                    LaunchError::new(
                        "open terminal",
                        "the process was planned without a terminal",
                    )
                })?;
                let (master, slave) = terminal::open(devpts).step(|| "open terminal")?;
                if relayed {
                    terminal::leave_line_feeds(&master).step(|| "set up terminal")?;
                }
                if let Some((columns, rows)) = size.or(plan.terminal_size) {
                    terminal::resize(&master, columns, rows).step(|| "size terminal")?;
                }
                Ok(Streams {
                    ends: [None, None, None],
                    terminal: Some((master, slave)),
                })
            }
        }
    }

    fn child(&self) -> ChildStdio<'_> {
        match (&self.ends, &self.terminal) {
            ([Some(stdin), Some(stdout), Some(stderr)], _) => {
                ChildStdio::Fds([stdin, stdout, stderr])
            }
            (_, Some((_, slave))) => ChildStdio::Terminal(slave),
            _ => ChildStdio::None,
        }
    }

    fn into_master(self) -> Option<OwnedFd> {
        self.terminal.map(|(master, _)| master)
    }
}

fn status_pipe() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|errno| linux::Error::new("pipe", "", errno.raw_os_error()))
        .step(|| "prepare the status pipe")
}

fn unified<'a>(plan: &CgroupPlan, table: Fds<'a>) -> Result<Option<BorrowedFd<'a>>, LaunchError> {
    plan.unified.map(|fd| table.get(fd)).transpose()
}

fn clone_flags(plan: &NamespacePlan) -> u64 {
    let at_clone = plan.new.iter().filter(|kind| **kind != NamespaceKind::Time);
    at_clone.fold(0, |flags, kind| flags | kind.clone_flag())
}

/// With a pid namespace to join: clones from inside it, since one can't move there oneself.
fn in_pid_namespace(
    namespace: Option<BorrowedFd<'_>>,
    clone: impl FnOnce() -> linux::Result<process::Child>,
) -> Result<process::Child, LaunchError> {
    let step = || "start the process";
    let Some(namespace) = namespace else {
        return clone().step(step);
    };
    let own = namespace::open_own(NamespaceKind::Pid).step(|| "join pid namespace")?;
    namespace::join(namespace, &[NamespaceKind::Pid]).step(|| "join pid namespace")?;
    let child = clone();
    match namespace::join(&own, &[NamespaceKind::Pid]) {
        // Root of a user namespace may not go back to the host's; it is a command that starts no other child.
        Err(error) if error.is(libc::EPERM) && namespace::in_user_namespace() => {}
        other => other.step(|| "leave pid namespace")?,
    }
    child.step(step)
}

/// Starts the init of a pod that shares a pid namespace: a child that only reaps. Nothing is executed; its memory is
/// shared with the caller's until either writes to it.
///
/// It is in a new pid namespace, which belongs to `user_namespace` (the caller's with `None`), and ends on SIGTERM or
/// SIGKILL, with which everything in the namespace ends; it is gone once each of these has been reaped, the containers
/// by the caller. [`Launched::status`] ends when it is ready.
///
/// # Errors
/// As [`launch`].
pub fn launch_pod_init(
    cgroup: &CgroupPlan,
    fds: Vec<OwnedFd>,
    user_namespace: Option<OwnedFd>,
) -> Result<Launched, LaunchError> {
    let table = Fds(&fds);
    let (status, status_end) = status_pipe()?;
    let reporter = Reporter::new(status_end);
    let namespaces = NamespaceKind::Pid.clone_flag();
    let child = match user_namespace {
        None => {
            let options = CloneOptions {
                namespaces,
                cgroup: unified(cgroup, table)?,
                sibling: false,
            };
            process::clone_child(options, || match init::join_cgroup(cgroup, table) {
                Ok(()) => init::run_pod_init(),
                Err(error) => {
                    reporter.report(&error);
                    1
                }
            })
            .step(|| "start pod init")?
        }
        Some(user) => by_intermediate(cgroup, table, reporter, &status, |_reporter| {
            init::join_cgroup(cgroup, table)?;
            namespace::join(&user, &[NamespaceKind::User]).step(|| "join user namespace")?;
            init::become_root(true)?;
            let options = CloneOptions {
                namespaces,
                cgroup: None,
                sibling: true,
            };
            process::clone_child(options, init::run_pod_init).step(|| "start pod init")
        })?,
    };
    Ok(Launched {
        pid: child.pid,
        pidfd: child.pidfd,
        status,
        terminal: None,
    })
}

/// A user namespace must be joined, or its mapping written, before the namespaces that it is to own are made; a new
/// time namespace takes its offsets before anybody is in it. All of that happens in a process in between.
fn needs_intermediate(plan: &NamespacePlan) -> bool {
    plan.has_user() || plan.makes(NamespaceKind::Time)
}

/// The process in between does what takes the host's privileges, clones the container's process as its own sibling,
/// hands its pidfd over, and ends.
fn by_intermediate(
    cgroup: &CgroupPlan,
    table: Fds<'_>,
    mut reporter: Reporter,
    status: &OwnedFd,
    clone: impl FnOnce(&mut Reporter) -> Result<process::Child, LaunchError>,
) -> Result<process::Child, LaunchError> {
    let (ours, theirs) = socket::pair().step(|| "start the intermediate process")?;
    let options = CloneOptions {
        namespaces: 0,
        cgroup: unified(cgroup, table)?,
        sibling: false,
    };
    let between = process::clone_child(options, || match clone(&mut reporter) {
        Ok(child) => {
            match socket::send(&theirs, &child.pid.to_le_bytes(), &[child.pidfd.as_fd()]) {
                Ok(()) => 0,
                Err(_) => 1,
            }
        }
        Err(error) => {
            reporter.report(&error);
            1
        }
    })
    .step(|| "start the intermediate process")?;
    drop(theirs);
    drop(reporter);
    receive_child(&ours, &between.pidfd, status)
}

fn receive_child(
    from: &OwnedFd,
    between: &OwnedFd,
    status: &OwnedFd,
) -> Result<process::Child, LaunchError> {
    let step = || "start the process";
    let _ = pidfd::reap(between, true).step(step)?;
    let mut buffer = vec![0; 16];
    let message = socket::recv(from, &mut buffer).step(step)?;
    let received = message.and_then(|mut message| {
        let pid = i32::from_le_bytes(message.data.get(..4)?.try_into().ok()?);
        Some(process::Child {
            pid,
            pidfd: message.fds.pop()?,
        })
    });
    let Some(child) = received else {
        // The status pipe's writers have ended, so this doesn't wait.
        let mut told = vec![0; 64 * 1024];
        let count = rustix::io::read(status, &mut told).unwrap_or(0);
        read_status(told.get(..count).unwrap_or_default())?;
        return Err(LaunchError::new(
            step(),
            "the intermediate process failed without a word",
        ));
    };
    Ok(child)
}

fn intermediate(
    plan: &LaunchPlan,
    table: Fds<'_>,
    streams: &Streams,
    wait: &impl Fn() -> Result<(), LaunchError>,
    reporter: &mut Reporter,
) -> Result<process::Child, LaunchError> {
    init::join_cgroup(&plan.cgroup, table)?;
    init::set_limits(&plan.process)?;
    if plan.namespaces.has_user() {
        init::own_streams_outside(&plan.process, &streams.child())?;
    }
    init::join_namespaces(&plan.namespaces, table)?;
    if plan.namespaces.joins(NamespaceKind::User).is_some() {
        init::become_root(plan.process.groups.is_some())?;
    }
    if plan.namespaces.makes(NamespaceKind::Time) {
        init::make_time_namespace(&plan.namespaces)?;
    }
    let step = || "start the process";
    let (go, go_end) = status_pipe()?;
    let options = CloneOptions {
        namespaces: clone_flags(&plan.namespaces),
        cgroup: None,
        sibling: true,
    };
    let child = process::clone_child(options, || {
        init::finish(reporter, |reporter| {
            await_word(&go, step())?;
            wait()?;
            init::run_launch(plan, table, &streams.child(), reporter)
        })
    })
    .step(step)?;
    if let Some(mapping) = &plan.namespaces.user_mapping
        && let Err(error) = init::write_mapping(child.pid, mapping)
    {
        let _ = pidfd::kill(&child.pidfd);
        return Err(error);
    }
    tell(&go_end)?;
    Ok(child)
}

/// Before its program runs, which finds them there.
fn move_devices(plan: &LaunchPlan, table: Fds<'_>, pid: i32) -> Result<(), LaunchError> {
    // A joined one by its own descriptor: the process may be on its way there still.
    if let Some(joined) = plan.namespaces.joins(NamespaceKind::Network) {
        return move_all(&plan.net_devices, table.get(joined)?);
    }
    let made = namespace::open_of(pid, NamespaceKind::Network)
        .step(|| "open the container's network namespace")?;
    move_all(&plan.net_devices, made.as_fd())
}

/// Lets a process go on that is in [`await_word`].
fn tell(go: &OwnedFd) -> Result<(), LaunchError> {
    rustix::io::write(go, b"g")
        .map(drop)
        .map_err(|errno| linux::Error::new("write", "", errno.raw_os_error()))
        .step(|| "start the process")
}

fn await_word(go: &OwnedFd, step: &str) -> Result<(), LaunchError> {
    let mut byte = [0];
    if rustix::io::read(go, &mut byte).is_ok_and(|count| count == 1) {
        return Ok(());
    }
    Err(LaunchError::new(step, "the launching process ended"))
}
