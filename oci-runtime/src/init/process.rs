//! Becoming the program: limits, terminal, ids, capabilities, seccomp, `execve`.

use super::{ChildStdio, Fds, Reporter, gate, own_pid};
use crate::error::{DuringLaunch, LaunchError};
use crate::plan::ProcessPlan;
use linux::{
    capability, credential, mount, process, procfs, rlimit, scheduling, seccomp, terminal,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::convert::Infallible;
use std::ffi::CString;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Sets the limits that take the host's privileges.
pub(crate) fn set_limits(plan: &ProcessPlan) -> Result<(), LaunchError> {
    if let Some(processors) = &plan.scheduling.initial_affinity {
        scheduling::set_affinity(processors).step(|| "set initial CPU affinity")?;
    } else {
        // The launching process's own is no limit on what it launches.
        scheduling::reset_affinity().step(|| "reset CPU affinity")?;
    }
    if let Some(value) = plan.oom_score_adj {
        set_oom_score_adj(value)?;
    }
    plan.rlimits
        .iter()
        .try_for_each(|limit| rlimit::set(*limit).map(drop).step(|| "set resource limit"))
}

/// What is opened or asked before the process leaves the host's file systems, since the container's `/proc` need not be
/// procfs: the files for its security labels, and what a seccomp listener is told.
pub(super) struct Early<'a> {
    apparmor: Option<OwnedFd>,
    selinux: Option<OwnedFd>,
    notifier: Option<(BorrowedFd<'a>, Vec<u8>)>,
}

impl<'a> Early<'a> {
    pub(super) fn open(plan: &ProcessPlan, fds: Fds<'a>) -> Result<Self, LaunchError> {
        let open = |name: &str| procfs::open_for_write(&format!("self/attr/{name}"));
        let apparmor = match &plan.apparmor_profile {
            Some(_) => Some(
                open("apparmor/exec")
                    .or_else(|_| open("exec"))
                    .step(|| "prepare AppArmor profile")?,
            ),
            None => None,
        };
        let selinux = match &plan.selinux_label {
            Some(_) => Some(open("exec").step(|| "prepare SELinux label")?),
            None => None,
        };
        let listener = plan
            .seccomp
            .as_ref()
            .and_then(|seccomp| seccomp.listener.as_ref());
        let notifier = match listener {
            Some(listener) => {
                let mut state = listener.state.clone();
                state["pid"] = serde_json::json!(own_pid());
                if state["state"].get("pid").is_none() {
                    state["state"]["pid"] = state["pid"].clone();
                }
                Some((fds.get(listener.socket)?, state.to_string().into_bytes()))
            }
            None => None,
        };
        Ok(Early {
            apparmor,
            selinux,
            notifier,
        })
    }

    /// Its descriptors.
    fn kept(&self) -> Vec<BorrowedFd<'_>> {
        let files = [&self.apparmor, &self.selinux].into_iter().flatten();
        let mut kept: Vec<_> = files.map(AsFd::as_fd).collect();
        kept.extend(self.notifier.as_ref().map(|(socket, _)| *socket));
        kept
    }
}

fn set_oom_score_adj(value: i32) -> Result<(), LaunchError> {
    match procfs::write("self/oom_score_adj", &value.to_string()) {
        // Without CAP_SYS_RESOURCE it can't be lowered: the present value is then the nearest that is allowed.
        Err(error) if error.is(libc::EACCES) || error.is(libc::EPERM) => Ok(()),
        other => other.step(|| format!("set oom_score_adj to {value}")),
    }
}

/// Becomes the program. Returns only on failure; after the gate, a failure is reported to whoever opened it.
///
/// `before_program` gets the program's environment, and runs with the program's rights and under its filter: it is the
/// startContainer hooks, whose code is the image's.
pub(super) fn become_program(
    plan: &ProcessPlan,
    stdio: &ChildStdio<'_>,
    early: &Early<'_>,
    gate: Option<BorrowedFd<'_>>,
    before_program: impl FnOnce(&[CString]) -> Result<(), LaunchError>,
    reporter: &mut Reporter,
) -> Result<Infallible, LaunchError> {
    attach_stdio(plan, stdio)?;
    let mut keep = early.kept();
    keep.extend(gate);
    keep.extend(reporter.as_fd());
    close_inherited(plan, &keep)?;
    if let Some(persona) = plan.personality {
        process::set_personality(persona).step(|| "set personality")?;
    }
    let program = Program::prepare(plan)?;
    if let Some(gate) = gate {
        reporter.close_at_gate();
        reporter.replace(gate::wait(gate)?);
    }
    set_scheduling(plan)?;
    restrict(plan, early)?;
    before_program(&program.env)?;
    Err(program.exec(plan))
}

/// Closes what is the runtime's. From here on paths are the container's, and could lead through it to the host
/// (CVE-2024-21626).
fn close_inherited(plan: &ProcessPlan, keep: &[BorrowedFd<'_>]) -> Result<(), LaunchError> {
    let mut keep: Vec<_> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    let handed_on = (3..).take(plan.preserve_fds as usize);
    keep.extend(handed_on.filter(|number| process::stays_open_on_exec(*number)));
    process::close_all_but(3, &keep).step(|| "close the runtime's descriptors")
}

/// What is the program's and not the set-up's.
fn set_scheduling(plan: &ProcessPlan) -> Result<(), LaunchError> {
    let wanted = &plan.scheduling;
    if let Some(scheduler) = &wanted.scheduler {
        scheduling::set_scheduler(scheduler).step(|| "set scheduler")?;
    }
    if let Some((class, level)) = wanted.io_priority {
        scheduling::set_io_priority(class, level).step(|| "set I/O priority")?;
    }
    if let Some((mode, nodes)) = &wanted.memory_policy {
        scheduling::set_memory_policy(*mode, nodes).step(|| "set memory policy")?;
    }
    if let Some(processors) = &wanted.affinity {
        scheduling::set_affinity(processors).step(|| "set CPU affinity")?;
    }
    Ok(())
}

/// Puts the streams in place and hands them to the container's user, so that it can reopen them by `/dev/stdout`.
fn attach_stdio(plan: &ProcessPlan, stdio: &ChildStdio<'_>) -> Result<(), LaunchError> {
    let Some(streams) = stdio.streams() else {
        return Ok(());
    };
    if let ChildStdio::Terminal(slave) = stdio {
        terminal::control(slave).step(|| "take the terminal")?;
    }
    for (number, stream) in streams.into_iter().enumerate() {
        own_stream(stream, plan.uid).step(|| "hand the standard streams to the user")?;
        process::install_fd(stream, number as i32).step(|| "install the standard streams")?;
    }
    Ok(())
}

/// Hands pipes, and a terminal that was made for this process, to the container's user while that can be done from
/// outside of its user namespace, which need not map their present owner.
pub(crate) fn own_streams_outside(
    plan: &ProcessPlan,
    stdio: &ChildStdio<'_>,
) -> Result<(), LaunchError> {
    let (Some(uid), Some(streams)) = (plan.outer_uid, stdio.streams()) else {
        return Ok(());
    };
    let made_here = matches!(stdio, ChildStdio::Terminal(_));
    for stream in streams {
        let pipe = rustix::fs::fstat(stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if made_here || pipe {
            own_stream(stream, uid).step(|| "hand the standard streams to the user")?;
        }
    }
    Ok(())
}

fn own_stream(stream: &OwnedFd, uid: u32) -> linux::Result<()> {
    let failed = |operation, errno: rustix::io::Errno| {
        linux::Error::new(operation, "stream", errno.raw_os_error())
    };
    let stat = rustix::fs::fstat(stream).map_err(|errno| failed("fstat", errno))?;
    // Everybody's null device stays everybody's.
    if stat.st_uid == uid
        || path_is_null(&stat)
        || FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
    {
        return Ok(());
    }
    match rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None) {
        // An owner that the user namespace doesn't map, a read-only file system, a socket: they stay as they are.
        Ok(())
        | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM | rustix::io::Errno::ROFS) => {
            Ok(())
        }
        Err(errno) => Err(failed("fchown", errno)),
    }
}

fn path_is_null(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        ) == (1, 3)
}

/// Gives up privileges, in the one order that works: the bounding set needs CAP_SETPCAP, ids need CAP_SETUID, and
/// seccomp without no_new_privs needs CAP_SYS_ADMIN, which is kept until then. The filter is the program's: as little as
/// can be of what comes before is under it.
fn restrict(plan: &ProcessPlan, early: &Early<'_>) -> Result<(), LaunchError> {
    write_label(
        early.apparmor.as_ref(),
        plan.apparmor_profile.as_deref(),
        "exec ",
        "AppArmor profile",
    )?;
    write_label(
        early.selinux.as_ref(),
        plan.selinux_label.as_deref(),
        "",
        "SELinux label",
    )?;
    // Before the filter, which need not know a call that is as new as this.
    process::close_on_exec_from(3 + plan.preserve_fds).step(|| "close descriptors")?;
    if plan.no_new_privs {
        credential::set_no_new_privs().step(|| "set no_new_privs")?;
    }
    capability::limit_bounding(plan.capabilities.bounding).step(|| "limit capabilities")?;
    credential::keep_capabilities(true).step(|| "keep capabilities")?;
    credential::become_user(plan.uid, plan.gid, plan.groups.as_deref())
        .step(|| format!("become user {}:{}", plan.uid, plan.gid))?;
    credential::set_umask(plan.umask.unwrap_or(0o022));
    // Again as the user: a directory that only root may enter is no working directory for it.
    enter_cwd(&plan.cwd)?;
    if !plan.no_new_privs && plan.seccomp.is_some() {
        capability::raise_permitted().step(|| "keep capabilities")?;
        load_seccomp(plan, early)?;
    }
    capability::set(&plan.capabilities).step(|| "set capabilities")?;
    capability::set_ambient(plan.capabilities.ambient).step(|| "set ambient capabilities")?;
    if plan.no_new_privs {
        load_seccomp(plan, early)?;
    }
    Ok(())
}

fn write_label(
    file: Option<&OwnedFd>,
    label: Option<&str>,
    prefix: &str,
    what: &str,
) -> Result<(), LaunchError> {
    let (Some(file), Some(label)) = (file, label) else {
        return Ok(());
    };
    rustix::io::write(file, format!("{prefix}{label}").as_bytes())
        .map(drop)
        .map_err(|errno| linux::Error::new("write", label, errno.raw_os_error()))
        .step(|| format!("set {what}"))
}

fn load_seccomp(plan: &ProcessPlan, early: &Early<'_>) -> Result<(), LaunchError> {
    let Some(filter) = &plan.seccomp else {
        return Ok(());
    };
    let listener = seccomp::load(&filter.program, filter.flags).step(|| "load seccomp filter")?;
    let (Some(listener), Some((socket, state))) = (listener, &early.notifier) else {
        return Ok(());
    };
    // At once: until the other side has it, every call that it is asked about waits.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [listener.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(state)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(|errno| linux::Error::new("sendmsg", "", errno.raw_os_error()))
    .step(|| "hand over the seccomp listener")
}

/// Changes to the working directory and makes sure that it is inside the container: through a descriptor of the host's
/// it could be outside (CVE-2024-21626).
fn enter_cwd(cwd: &str) -> Result<(), LaunchError> {
    let step = || format!("change to working directory {cwd}");
    rustix::process::chdir(cwd)
        .map_err(|errno| linux::Error::new("chdir", cwd, errno.raw_os_error()))
        .step(step)?;
    match rustix::process::getcwd(Vec::new()) {
        // The kernel answers "(unreachable)/…" or fails for a directory outside the root.
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(LaunchError::new(
            step(),
            "the directory is outside the container",
        )),
    }
}

/// The program's path, arguments and environment.
struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Finds the program while privileges are still there to look; `execve` decides.
    fn prepare(plan: &ProcessPlan) -> Result<Self, LaunchError> {
        let step = || "prepare arguments";
        let strings = |texts: &[String]| {
            texts
                .iter()
                .map(|text| mount::c_string(text.as_str()))
                .collect::<Result<Vec<_>, _>>()
        };
        let mut env = plan.env.clone();
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", home_of(plan.uid)));
        }
        // A missing working directory is created, as other runtimes do; the user's right to enter it is checked later.
        if let Err(rustix::io::Errno::NOENT) = rustix::fs::stat(plan.cwd.as_str()) {
            let _ = std::fs::create_dir_all(&plan.cwd);
        }
        let name = plan.args.first().map(String::as_str).unwrap_or_default();
        Ok(Program {
            path: mount::c_string(find(name, &env, &plan.cwd)?).step(step)?,
            args: strings(&plan.args).step(step)?,
            env: strings(&env).step(step)?,
        })
    }

    /// Only comes back with the reason why not.
    fn exec(&self, plan: &ProcessPlan) -> LaunchError {
        let error = process::execve(&self.path, &self.args, &self.env);
        let exit_code = match error.errno {
            libc::ENOENT | libc::ENOTDIR => 127,
            _ => 126,
        };
        let name = plan.args.first().map(String::as_str).unwrap_or_default();
        LaunchError {
            step: format!("exec {name}"),
            cause: linux::describe_errno(error.errno),
            errno: error.errno,
            exit_code,
        }
    }
}

/// Looks a program up as `execvp` does, in the container's `PATH`.
fn find(name: &str, env: &[String], cwd: &str) -> Result<String, LaunchError> {
    let not_found = |errno: i32, cause: &str| LaunchError {
        step: format!("exec {name}"),
        cause: cause.to_owned(),
        errno,
        exit_code: if errno == libc::ENOENT { 127 } else { 126 },
    };
    if name.contains('/') {
        let path = Path::new(cwd).join(name);
        return match executable(&path) {
            Ok(()) => Ok(name.to_owned()),
            Err(errno) => Err(not_found(errno, &linux::describe_errno(errno))),
        };
    }
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut found_unusable = false;
    for dir in path.split(':') {
        let candidate = Path::new(cwd).join(dir).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate.to_string_lossy().into_owned()),
            Err(libc::ENOENT | libc::ENOTDIR) => {}
            Err(_) => found_unusable = true,
        }
    }
    if found_unusable && !name.is_empty() {
        return Err(not_found(libc::EACCES, "permission denied"));
    }
    Err(not_found(
        libc::ENOENT,
        "executable file not found in $PATH",
    ))
}

fn executable(path: &Path) -> Result<(), i32> {
    let stat = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::empty())
        .map_err(rustix::io::Errno::raw_os_error)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory || stat.st_mode & 0o111 == 0 {
        return Err(libc::EACCES);
    }
    Ok(())
}

/// The user's home directory by the container's `/etc/passwd`; `/` if that doesn't tell.
fn home_of(uid: u32) -> String {
    let table = read_passwd().unwrap_or_default();
    let home = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [_, _, id, _, _, home, ..] if id.parse() == Ok(uid) => Some((*home).to_owned()),
            _ => None,
        }
    });
    home.filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}

/// The image's file, of which nothing is certain: it may be a pipe that nobody writes to, or never end.
fn read_passwd() -> Option<String> {
    const LIMIT: u64 = 4 << 20;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = String::new();
    std::fs::File::from(file)
        .take(LIMIT)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}
