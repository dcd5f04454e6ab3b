//! `create` and `run`.

use super::args::{CreateArgs, RunArgs};
use super::hooks::RuntimeHooks;
use super::scope::ScopePlan;
use super::{Context, Failure, Outcome, console, foreground, lifecycle, resctrl, rootless};
use crate::document::parse_spec;
use crate::launch::{Launched, Stdio};
use crate::plan::{LaunchResources, Rootfs, apply_resources};
use crate::state::{Container, ProcessStat, Record, StateError, write_whole};
use crate::{launch, plan_launch, read_status};
use linux::cgroup::{self, Cgroup};
use linux::namespace;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub(super) fn create(context: &Context, args: &CreateArgs) -> Outcome {
    let mut bundle = Bundle::read(&args.bundle)?;
    console::check(bundle.terminal(), true, args.console_socket.as_deref())?;
    let (mut container, scope) = new_container(context, args, &bundle)?;
    let created = launch_into(&mut container, scope, &mut bundle, args, Launching::Created);
    match created {
        Ok(_) => Ok(0),
        Err(failure) => Err(undo(container, failure)),
    }
}

pub(super) fn run(context: &Context, args: &RunArgs) -> Outcome {
    let mut bundle = Bundle::read(&args.create.bundle)?;
    console::check(
        bundle.terminal(),
        args.detach,
        args.create.console_socket.as_deref(),
    )?;
    let (mut container, scope) = new_container(context, &args.create, &bundle)?;
    let foreground = if args.detach {
        Launching::Detached
    } else {
        Launching::Foreground
    };
    let signals = if args.detach {
        None
    } else {
        Some(foreground::block_signals()?)
    };
    let launched = match launch_into(&mut container, scope, &mut bundle, &args.create, foreground) {
        Ok(launched) => launched,
        Err(failure) => return Err(undo(container, failure)),
    };
    let Some(signals) = signals else { return Ok(0) };
    let exit = foreground::follow(&launched.pidfd, launched.terminal, signals)?;
    if !args.keep {
        lifecycle::destroy(container, Some(&bundle.spec))?;
    }
    Ok(exit)
}

/// A bundle's configuration, as it was read once.
struct Bundle {
    dir: PathBuf,
    text: Vec<u8>,
    spec: Spec,
    rootfs: PathBuf,
}

impl Bundle {
    fn read(dir: &Path) -> Result<Self, Failure> {
        let dir = std::fs::canonicalize(dir)
            .map_err(|error| Failure::other(format!("bundle {}: {error}", dir.display())))?;
        let path = dir.join("config.json");
        let text = std::fs::read(&path)
            .map_err(|error| Failure::other(format!("read {}: {error}", path.display())))?;
        let spec = parse_spec(&text).map_err(|cause| StateError::Malformed {
            path: path.clone(),
            cause,
        })?;
        if !spec.version().starts_with("1.") {
            return Err(Failure::other(format!(
                "{}: ociVersion {:?} is not supported",
                path.display(),
                spec.version()
            )));
        }
        let root = spec
            .root()
            .as_ref()
            .ok_or_else(|| Failure::other(format!("{}: root is missing", path.display())))?;
        let rootfs = std::fs::canonicalize(dir.join(root.path())).map_err(|error| {
            Failure::other(format!(
                "rootfs {}: {error}",
                dir.join(root.path()).display()
            ))
        })?;
        Ok(Bundle {
            dir,
            text,
            spec,
            rootfs,
        })
    }

    fn terminal(&self) -> bool {
        self.spec
            .process()
            .as_ref()
            .is_some_and(|process| process.terminal().unwrap_or(false))
    }
}

/// Who waits for what after the launch.
#[derive(Clone, Copy, PartialEq)]
enum Launching {
    /// The program waits for `start`.
    Created,
    Detached,
    Foreground,
}

/// Its record, and with `--systemd-cgroup` what unit it is to have.
fn new_container(
    context: &Context,
    args: &CreateArgs,
    bundle: &Bundle,
) -> Result<(Container, Option<ScopePlan>), Failure> {
    let linux = bundle.spec.linux().as_ref();
    let mut record = Record::new(&args.id);
    record.keeps_keyring = args.no_new_keyring;
    record.oci_version = bundle.spec.version().clone();
    record.bundle = bundle.dir.clone();
    record.rootfs = bundle.rootfs.clone();
    record.annotations = bundle
        .spec
        .annotations()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let has_own = |kind| {
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        namespaces.is_some_and(|list| list.iter().any(|entry| entry.typ() == kind))
    };
    record.user_namespaced = has_own(LinuxNamespaceType::User);
    if !has_own(LinuxNamespaceType::Mount) {
        record.below = Some(linux::mount::id_at(&bundle.rootfs)?);
    }
    let path = linux.and_then(|linux| linux.cgroups_path().clone());
    let scope = match context.systemd_cgroup {
        true => Some(ScopePlan::read(&record, path.as_deref())?),
        false => {
            record.cgroup_path = cgroup_path(&args.id, path.as_deref())?;
            None
        }
    };
    let container = Container::create(&context.root, record)?;
    let saved = container
        .save_spec(&bundle.text)
        .and_then(|()| container.save());
    match saved {
        Ok(()) => Ok((container, scope)),
        Err(error) => Err(undo(container, error.into())),
    }
}

/// `linux.cgroupsPath` (config-linux.md): absolute from the hierarchy's root, relative from this process's cgroup.
fn cgroup_path(id: &str, path: Option<&Path>) -> Result<String, Failure> {
    let path = match path.map(|path| {
        path.to_str()
            .ok_or_else(|| Failure::other("linux.cgroupsPath is not UTF-8"))
    }) {
        Some(path) => path?,
        None => "",
    };
    if path.starts_with('/') {
        return Ok(path.trim_end_matches('/').to_owned());
    }
    let own = cgroup::own_path()?;
    let name = if path.is_empty() { id } else { path };
    Ok(format!("{}/{name}", own.trim_end_matches('/')))
}

fn launch_into(
    container: &mut Container,
    scope: Option<ScopePlan>,
    bundle: &mut Bundle,
    args: &CreateArgs,
    launching: Launching,
) -> Result<Launched, Failure> {
    rootless::enter(&mut bundle.spec)?;
    let scope = scope
        .map(|plan| plan.start(container, &bundle.spec))
        .transpose()?;
    let cgroup = match &scope {
        Some(scope) => Some(scope.cgroup.clone()),
        None => prepare_cgroup(container, &bundle.spec)?,
    };
    let resctrl = make_resctrl(container, &bundle.spec)?;
    let gate = if launching == Launching::Created {
        Some(listen(container)?)
    } else {
        None
    };
    let hooks = RuntimeHooks::read(container, &bundle.spec)?;
    let (their_end, our_end) = hooks.gate()?.unzip();
    let resources = LaunchResources {
        runtime_hooks: their_end,
        bundle: bundle.dir.clone(),
        cgroup,
        gate,
        keep_keyring: args.no_new_keyring,
        preserve_fds: args.preserve_fds,
        resctrl,
        ..LaunchResources::new(&args.id, Rootfs::Path(bundle.rootfs.clone()))
    };
    let (plan, fds) = plan_launch(&bundle.spec, resources)?;
    let stdio = if bundle.terminal() {
        Stdio::Terminal {
            size: None,
            relayed: launching == Launching::Foreground,
        }
    } else {
        console::own_streams()?
    };
    let launched = launch(&plan, fds, stdio).map_err(|error| match &scope {
        Some(scope) => scope.explain(error),
        None => error,
    });
    let mut launched = launched?;
    tracing::debug!(
        pid = launched.pid,
        cgroup = container.record.cgroup_path,
        "started container {}",
        args.id
    );
    // From here on a failure must find the process, to kill it.
    container.record.pid = launched.pid;
    container.record.start_time = ProcessStat::read(launched.pid).map_or(0, |stat| stat.start_time);
    container.save()?;
    if let Some(ours) = our_end {
        hooks.created(&ours, launched.pid)?;
    }
    let told = read_to_end(&launched.status)?;
    if let Some(scope) = scope {
        scope.hand_over()?;
    }
    if told.is_empty() && launching == Launching::Created {
        return Err(Failure::other(
            "the container's init ended before it was ready to start: it was killed, by a limit on memory perhaps",
        ));
    }
    if launching != Launching::Created {
        hooks.started(launched.pid, Some(&launched.pidfd))?;
    }
    if let Some(path) = &args.pid_file {
        write_whole(path, launched.pid.to_string().as_bytes())?;
    }
    if let (Some(path), Some(master)) = (&args.console_socket, &launched.terminal) {
        console::hand_over(path, master, b"/dev/ptmx")?;
        launched.terminal = None;
    }
    if let Some(path) = &args.pidfd_socket {
        console::hand_over(path, &launched.pidfd, b"pidfd")?;
    }
    Ok(launched)
}

/// The container's cgroup with its limits; `None` for a user without rights to cgroups, whose containers go without.
fn prepare_cgroup(container: &mut Container, spec: &Spec) -> Result<Option<Cgroup>, Failure> {
    let cgroup = Cgroup::at(container.hierarchies()?, &container.record.cgroup_path)?;
    let found = match cgroup.ensure() {
        Err(error)
            if namespace::in_user_namespace()
                && [libc::EACCES, libc::EPERM, libc::EROFS].contains(&error.errno) =>
        {
            tracing::warn!(%error, "the container gets no cgroup");
            container.record.cgroup_path.clear();
            container.save()?;
            return Ok(None);
        }
        other => other?,
    };
    // What was made just now is nobody's.
    if found && let Some(why) = used(&cgroup)? {
        // It is another's: what undoes this container must not end what is in there.
        container.record.cgroup_path.clear();
        container.save()?;
        return Err(Failure::other(why));
    }
    apply_resources(&cgroup, spec)?;
    Ok(Some(cgroup))
}

/// The group of `linux.intelRdt`; the record names what is this container's before it is made.
fn make_resctrl(container: &mut Container, spec: &Spec) -> Result<Option<OwnedFd>, Failure> {
    let Some(group) = resctrl::Group::of(spec, &container.record.id)? else {
        return Ok(None);
    };
    group.check_free()?;
    container.record.resctrl.clone_from(&group.own);
    container.save()?;
    group.make().map(Some)
}

/// Why a cgroup can't be this container's: it is another's, or keeps its processes from running.
fn used(cgroup: &Cgroup) -> Result<Option<String>, Failure> {
    let path = cgroup.path();
    if path.trim_matches('/').is_empty() {
        return Ok(None);
    }
    let count = cgroup.processes()?.len();
    if count > 0 {
        return Ok(Some(format!(
            "container's cgroup is not empty: {count} process(es) found in {path}"
        )));
    }
    Ok(cgroup
        .is_frozen()
        .unwrap_or(false)
        .then(|| format!("container's cgroup unexpectedly frozen: {path}")))
}

fn listen(container: &Container) -> Result<OwnedFd, Failure> {
    let failed = |operation, errno: rustix::io::Errno| {
        Failure::Kernel(linux::Error::new(
            operation,
            "start.sock",
            errno.raw_os_error(),
        ))
    };
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed("make socket", errno))?;
    let address = SocketAddrUnix::new(container.short_path("start.sock"))
        .map_err(|errno| failed("name", errno))?;
    rustix::net::bind(&socket, &address).map_err(|errno| failed("bind", errno))?;
    rustix::net::listen(&socket, 1).map_err(|errno| failed("listen on", errno))?;
    Ok(socket)
}

/// Reads a status descriptor to its end.
pub(super) fn wait_status(status: &OwnedFd) -> Result<(), Failure> {
    read_to_end(status).map(drop)
}

fn read_to_end(status: &OwnedFd) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(
        status
            .try_clone()
            .map_err(|error| Failure::other(format!("read the container's status: {error}")))?,
    );
    file.read_to_end(&mut bytes)
        .map_err(|error| Failure::other(format!("read the container's status: {error}")))?;
    read_status(&bytes)?;
    Ok(bytes)
}

/// Takes back what a failed creation made; the failure itself is what the user hears of.
fn undo(container: Container, failure: Failure) -> Failure {
    match lifecycle::destroy(container, None) {
        Ok(()) => failure,
        Err(second) => Failure::other(format!("{failure}; then: {second}")),
    }
}
