//! A whole spec, resolved.

use super::devices::plan_devices;
use super::hooks::{HooksPlan, hook_state, plan_hooks};
use super::mount_options::parse_rootfs_propagation;
use super::mounts::{self, MountContext};
use super::namespaces::plan_namespaces;
use super::process::{plan_containers_own, plan_process, session_keyring, setgroups_allowed};
use super::{CgroupPlan, FdList, LaunchPlan, NamespacePlan, RootfsPlan};
use crate::error::{DuringPlan, Error};
use crate::net_devices::plan_net_devices;
use crate::seccomp;
use linux::cgroup::Cgroup;
use linux::mount::{self, Attributes, Propagation};
use linux::namespace::{self, NamespaceKind};
use oci_spec::runtime::{Linux, Spec};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where the container's root file system is.
#[derive(Debug)]
pub enum Rootfs {
    /// A detached mount, as [`linux::mount::overlay`] makes; `root.path` of the spec is not looked at.
    Detached(OwnedFd),
    /// A directory on the host; it is bound (recursively) first.
    Path(PathBuf),
}

/// What the spec does not hold, or what the caller holds already and better than by path.
#[derive(Debug)]
pub struct LaunchResources {
    /// The container's id; names its session keyring.
    pub id: String,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Relative mount sources are looked up from here.
    pub bundle: PathBuf,
    /// The container's cgroup, which exists and has its limits; with `None` it stays in the caller's.
    pub cgroup: Option<Cgroup>,
    /// Namespaces to join, by descriptor: they take the place of the spec's entry of the same kind.
    pub namespaces: Vec<(NamespaceKind, OwnedFd)>,
    /// Detached mounts by the spec's `destination`: they take the place of opening that entry's `source`; its
    /// attribute options (`ro`, `nosuid`, propagation) are still applied.
    pub mounts: Vec<(PathBuf, OwnedFd)>,
    /// With a listening unix socket, the process waits before `execve` until somebody connects, and reports to them
    /// whether `execve` worked (`create` and `start`).
    pub gate: Option<OwnedFd>,
    /// A stream or packet socket, needed if the spec has `prestart` or `createRuntime` hooks: the process writes a byte
    /// to it when its namespaces and mounts are there, and goes on when it reads one, which the caller writes after these hooks.
    pub runtime_hooks: Option<OwnedFd>,
    /// Whether the process keeps the caller's session keyring (`--no-new-keyring`).
    pub keep_keyring: bool,
    /// How many of the launching process's descriptors from 3 on the program inherits (`--preserve-fds`).
    pub preserve_fds: u32,
    /// The `tasks` file of the group that `linux.intelRdt` asks for.
    pub resctrl: Option<OwnedFd>,
}

impl LaunchResources {
    /// Only the id and the root file system; the rest as few containers need it otherwise.
    pub fn new(id: impl Into<String>, rootfs: Rootfs) -> Self {
        LaunchResources {
            id: id.into(),
            rootfs,
            bundle: PathBuf::from("/"),
            cgroup: None,
            namespaces: Vec::new(),
            mounts: Vec::new(),
            gate: None,
            runtime_hooks: None,
            keep_keyring: false,
            preserve_fds: 0,
            resctrl: None,
        }
    }
}

/// Prepares a container's launch: opens its mounts, compiles its seccomp profile, and resolves all the rest.
///
/// The caller may be threaded. Follows runtime-spec 1.3, `config.md` and `config-linux.md`.
///
/// # Errors
/// [`Error::Spec`] for a spec that can't be followed, [`Error::Unsupported`] for what the host lacks, and
/// [`Error::Kernel`] where a source can't be opened.
pub fn plan_launch(
    spec: &Spec,
    resources: LaunchResources,
) -> Result<(LaunchPlan, Vec<OwnedFd>), Error> {
    let mut fds = FdList::default();
    let no_linux = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&no_linux);
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::spec("process", "is missing"))?;
    let namespaces = plan_namespaces(linux, resources.namespaces, &mut fds)?;
    let rootfs_path = match &resources.rootfs {
        Rootfs::Path(path) => Some(path.clone()),
        Rootfs::Detached(_) => None,
    };
    let rootfs = plan_rootfs(spec, linux, resources.rootfs, &namespaces, &mut fds)?;
    let mut context = MountContext {
        user_namespace: mapping_of(&namespaces, &fds)?,
        bundle: &resources.bundle,
        namespaces: &namespaces,
        cgroup: resources.cgroup.as_ref(),
        given: resources.mounts,
        rootfs: rootfs_path,
        earlier: Vec::new(),
    };
    let mut mounts = Vec::new();
    for (position, mount) in spec.mounts().iter().flatten().enumerate() {
        mounts.extend(mounts::plan_mount(position, mount, &mut context, &mut fds)?);
        context.earlier.push(context.destination(mount));
    }
    if let Some((destination, _)) = context.given.first() {
        return Err(Error::spec(
            "mounts",
            format!("none has the destination {}", destination.display()),
        ));
    }
    let mapped = namespaces.has_user();
    let mut process_plan = plan_process(process, mapped)?;
    process_plan.keyring = (!resources.keep_keyring).then(|| session_keyring(&resources.id));
    if let Some(profile) = linux.seccomp() {
        let mut state = hook_state(spec, &resources.id, &resources.bundle);
        state["status"] = serde_json::json!("creating");
        process_plan.seccomp = seccomp::plan(profile, &state, &mut fds)?;
    }
    process_plan.preserve_fds = resources.preserve_fds;
    plan_containers_own(linux, &mut process_plan)?;
    let groups_denied = match &namespaces.user_mapping {
        Some(mapping) => mapping.deny_setgroups,
        None => namespaces.joins(NamespaceKind::User).is_none() && !setgroups_allowed("self"),
    };
    if groups_denied {
        process_plan.groups = None;
    }
    let devpts = if process.terminal().unwrap_or(false) {
        Some(plan_terminal(&mut mounts, linux, mapped, &mut fds)?)
    } else {
        None
    };
    let cgroup = resources.cgroup.as_ref();
    let mut cgroup = cgroup
        .map(|cgroup| CgroupPlan::add(cgroup, &BTreeMap::new(), &mut fds))
        .transpose()?
        .unwrap_or_default();
    match resources.resctrl {
        // It is joined as a v1 hierarchy is.
        Some(group) => cgroup.tasks.push(fds.push(group)),
        None if linux.intel_rdt().is_some() => {
            return Err(Error::unsupported(
                "linux.intelRdt",
                "it takes a runtime that makes the group: orlop runtime, or another",
            ));
        }
        None => {}
    }
    let plan = LaunchPlan {
        devices: plan_devices(
            spec,
            linux,
            mapped || namespace::in_user_namespace(),
            &mut fds,
        )?,
        cgroup,
        masked_paths: paths(linux.masked_paths()),
        readonly_paths: paths(linux.readonly_paths()),
        host_name: non_empty_name(spec.hostname(), "hostname", &namespaces)?,
        domain_name: non_empty_name(spec.domainname(), "domainname", &namespaces)?,
        sysctls: plan_sysctls(linux, &namespaces)?,
        gate: resources.gate.map(|fd| fds.push(fd)),
        hooks: plan_all_hooks(
            spec,
            &resources.id,
            &resources.bundle,
            resources.runtime_hooks,
            &mut fds,
        )?,
        net_devices: plan_net_devices(
            linux,
            namespaces.makes(NamespaceKind::Network)
                || namespaces.joins(NamespaceKind::Network).is_some(),
        )?,
        process: process_plan,
        namespaces,
        rootfs,
        mounts,
        devpts,
    };
    Ok((plan, fds.into_inner()))
}

/// The user namespace whose mapping id-mapped mounts have by default: the one that is joined, or one like the one that
/// will be made; made only if a mount asks.
fn mapping_of(namespaces: &NamespacePlan, fds: &FdList) -> Result<mounts::Mapping, Error> {
    if let Some(joined) = namespaces.joins(NamespaceKind::User) {
        return Ok(mounts::Mapping::Joined(fds.duplicate(joined)?));
    }
    Ok(match &namespaces.user_mapping {
        Some(mapping) => mounts::Mapping::New(mapping.clone()),
        None => mounts::Mapping::None,
    })
}

fn plan_all_hooks(
    spec: &Spec,
    id: &str,
    bundle: &Path,
    runtime: Option<OwnedFd>,
    fds: &mut FdList,
) -> Result<HooksPlan, Error> {
    let Some(hooks) = spec.hooks() else {
        return Ok(HooksPlan::default());
    };
    #[allow(deprecated)] // the specification deprecates prestart, and still has it
    let of_runtime = [hooks.prestart(), hooks.create_runtime()]
        .into_iter()
        .flatten()
        .any(|list| !list.is_empty());
    if of_runtime && runtime.is_none() {
        return Err(Error::unsupported(
            "hooks",
            "prestart and createRuntime hooks take a runtime that runs them",
        ));
    }
    Ok(HooksPlan {
        create_container: plan_hooks("createContainer", hooks.create_container())?,
        start_container: plan_hooks("startContainer", hooks.start_container())?,
        state: hook_state(spec, id, bundle),
        runtime: runtime.filter(|_| of_runtime).map(|fd| fds.push(fd)),
    })
}

/// Each once: covering a path twice costs a mount.
fn paths(list: &Option<Vec<String>>) -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> = Vec::new();
    for path in list.iter().flatten().map(PathBuf::from) {
        if !out.contains(&path) {
            out.push(path);
        }
    }
    out
}

fn non_empty_name(
    name: &Option<String>,
    field: &str,
    namespaces: &NamespacePlan,
) -> Result<Option<String>, Error> {
    let name = name.clone().filter(|name| !name.is_empty());
    if name.is_some() && !namespaces.makes(NamespaceKind::Uts) {
        // A joined namespace has its name already; the spec's repetition of it is not an error.
        if namespaces.joins(NamespaceKind::Uts).is_some() {
            return Ok(None);
        }
        return Err(Error::spec(
            field,
            "needs a uts namespace of the container's own",
        ));
    }
    Ok(name)
}

fn plan_rootfs(
    spec: &Spec,
    linux: &Linux,
    rootfs: Rootfs,
    namespaces: &NamespacePlan,
    fds: &mut FdList,
) -> Result<RootfsPlan, Error> {
    let propagation = linux
        .rootfs_propagation()
        .as_deref()
        .filter(|text| !text.is_empty())
        .map(parse_rootfs_propagation)
        .transpose()?;
    // A slave gets what is mounted below it on the host; all others leave their source's group, to be shared among the
    // container's own later perhaps.
    let (cut, recursive) = match propagation {
        Some((Propagation::Slave, recursive)) => (Propagation::Slave, recursive),
        _ => (Propagation::Private, true),
    };
    let path = match &rootfs {
        Rootfs::Path(path) => Some(path.clone()),
        Rootfs::Detached(_) => None,
    };
    let detached = match rootfs {
        Rootfs::Detached(fd) => fd,
        Rootfs::Path(path) => {
            let bound =
                mount::bind(&path, true).during(|| format!("open rootfs {}", path.display()))?;
            let change = Attributes {
                propagation: Some(cut),
                ..Attributes::default()
            };
            mount::set_attributes(&bound, recursive, &change)
                .during(|| "cut the rootfs off the host's mounts")?;
            bound
        }
    };
    if !linux::path::is_directory(&detached).during(|| "stat rootfs")? {
        return Err(Error::spec("root.path", "is not a directory"));
    }
    let among_hosts =
        !namespaces.makes(NamespaceKind::Mount) && namespaces.joins(NamespaceKind::Mount).is_none();
    let covered = [linux.masked_paths(), linux.readonly_paths()];
    if among_hosts && covered.iter().any(|list| !paths(list).is_empty()) {
        return Err(Error::spec(
            "linux.maskedPaths, linux.readonlyPaths",
            "unable to restrict sys entries without a private MNT namespace: leave them empty, or give the container one",
        ));
    }
    if among_hosts && path.is_none() {
        return Err(Error::unsupported(
            "linux.namespaces",
            "a container in the host's mount namespace whose root is nowhere in it",
        ));
    }
    Ok(RootfsPlan {
        mount: fds.push(detached),
        place: path.filter(|_| among_hosts || spec.hooks().is_some()),
        among_hosts,
        readonly: spec
            .root()
            .as_ref()
            .is_some_and(|root| root.readonly().unwrap_or(false)),
        propagation,
    })
}

/// The devpts instance for the terminal: the container's, or without one the host's.
fn plan_terminal(
    mounts: &mut [super::MountPlan],
    linux: &Linux,
    mapped: bool,
    fds: &mut FdList,
) -> Result<super::Fd, Error> {
    if let Some(fd) = mounts::detach_devpts(mounts, linux, mapped, fds)? {
        return Ok(fd);
    }
    let host = linux::path::open_in_root(
        rustix::fs::CWD,
        Path::new("/dev/pts"),
        rustix::fs::OFlags::PATH,
    )
    .during(|| "open the host's /dev/pts for a container without one")?;
    Ok(fds.push(host))
}

/// `linux.sysctl`: only what belongs to a namespace of the container's may be set.
fn plan_sysctls(linux: &Linux, namespaces: &NamespacePlan) -> Result<Vec<(String, String)>, Error> {
    let own = |kind: NamespaceKind| namespaces.makes(kind) || namespaces.joins(kind).is_some();
    let mut out = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let field = || format!("linux.sysctl[{key}]");
        // Either separator is in use; in a name with slashes the dots are part of it (an interface `eth0.1`).
        let path = match (key.find('/'), key.find('.')) {
            (Some(slash), Some(dot)) if slash < dot => key.clone(),
            (Some(_), None) => key.clone(),
            _ => key
                .chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    other => other,
                })
                .collect(),
        };
        if path.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(Error::spec(field(), "is not a sysctl's name"));
        }
        let needed = if path.starts_with("net/") {
            NamespaceKind::Network
        } else if path.starts_with("fs/mqueue/")
            || path.starts_with("kernel/msg")
            || path.starts_with("kernel/sem")
            || path.starts_with("kernel/shm")
        {
            NamespaceKind::Ipc
        } else if path == "kernel/domainname" {
            NamespaceKind::Uts
        } else {
            return Err(Error::spec(
                field(),
                "belongs to no namespace: it would change the host",
            ));
        };
        if !own(needed) {
            return Err(Error::spec(
                field(),
                format!(
                    "needs a {} namespace of the container's own",
                    needed.proc_name()
                ),
            ));
        }
        out.push((path, value.clone()));
    }
    out.sort();
    Ok(out)
}
