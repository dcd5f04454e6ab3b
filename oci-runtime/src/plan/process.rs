//! `process` of a spec, for a container's first process and for an exec.

use super::namespaces::host_id;
use super::scheduling::{plan_memory_policy, plan_scheduling};
use super::{CgroupPlan, ExecPlan, FdList, ProcessPlan};
use crate::error::{DuringPlan, Error};
use crate::seccomp;
use linux::capability::{self, Set, Sets};
use linux::cgroup::Cgroup;
use linux::namespace::{self, NamespaceKind};
use linux::rlimit::{self, Rlimit};
use oci_spec::runtime::{
    Capabilities, Linux, LinuxCapabilities, LinuxPersonality, LinuxPersonalityDomain, Process,
};
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The running container that an exec goes into.
#[derive(Debug)]
pub struct ExecTarget {
    /// Its first process in the caller's pid namespace.
    pub pid: i32,
    /// That process's pidfd: the namespaces are joined through it, so a reused pid can't be entered.
    pub pidfd: OwnedFd,
    /// The cgroup for the process: the container's, or a child made for this exec.
    pub cgroup: Option<Cgroup>,
    /// The container's `linux`: its seccomp profile, personality and memory policy hold for the process too.
    pub linux: Option<Linux>,
    /// The container's session keyring ([`session_keyring`]); `None` hands the caller's on.
    pub keyring: Option<String>,
    /// How many of the launching process's descriptors from 3 on the program inherits (`--preserve-fds`).
    pub preserve_fds: u32,
    /// The `tasks` file of the container's group of `linux.intelRdt`.
    pub resctrl: Option<OwnedFd>,
}

/// The name of the session keyring that the processes of a container share.
pub fn session_keyring(container_id: &str) -> String {
    format!("_ses.{container_id}")
}

/// Prepares another process in a running container.
///
/// # Errors
/// As [`crate::plan_launch`]; ESRCH in [`Error::Kernel`] if the container has ended.
pub fn plan_exec(process: &Process, target: ExecTarget) -> Result<(ExecPlan, Vec<OwnedFd>), Error> {
    plan_exec_below(process, target, &BTreeMap::new())
}

/// As [`plan_exec`], for a process that goes into cgroups below the target's ([`CgroupPlan::add`]).
pub(crate) fn plan_exec_below(
    process: &Process,
    target: ExecTarget,
    below: &BTreeMap<String, String>,
) -> Result<(ExecPlan, Vec<OwnedFd>), Error> {
    let mut fds = FdList::default();
    let pid = target.pid;
    let mut kinds = Vec::new();
    for kind in NamespaceKind::ALL {
        let theirs = match namespace::open_of(pid, kind) {
            // A kernel without time namespaces.
            Err(error) if error.is(libc::ENOENT) && kind == NamespaceKind::Time => continue,
            other => {
                other.during(|| format!("open {} namespace of pid {pid}", kind.proc_name()))?
            }
        };
        let own = namespace::open_own(kind).during(|| "open own namespace")?;
        if !namespace::same(&theirs, &own).during(|| "compare namespaces")? {
            kinds.push(kind);
        }
    }
    let root = rustix::fs::open(
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| linux::Error::new("open", format!("/proc/{pid}/root"), errno.raw_os_error()))
    .during(|| "open the container's root")?;
    let terminal = process.terminal().unwrap_or(false);
    let devpts = if terminal {
        Some(fds.push(open_devpts(&root)?))
    } else {
        None
    };
    // What was opened by number belongs to the process of the pidfd only if that still lives.
    linux::pidfd::send_signal(&target.pidfd, 0)
        .during(|| format!("find container's process {pid}"))?;
    let user_namespaced = kinds.contains(&NamespaceKind::User);
    let state = serde_json::json!({"pid": pid, "status": "running"});
    let mut plan = plan_process(process, user_namespaced)?;
    plan.keyring = target.keyring;
    plan.preserve_fds = target.preserve_fds;
    plan.scheduling = plan_scheduling(process, true)?;
    if let Some(linux) = &target.linux {
        plan_containers_own(linux, &mut plan)?;
        if let Some(profile) = linux.seccomp() {
            plan.seccomp = seccomp::plan(profile, &state, &mut fds)?;
        }
    }
    if !setgroups_allowed(&pid.to_string()) {
        plan.groups = None;
    }
    let cgroup = target
        .cgroup
        .as_ref()
        .map(|cgroup| CgroupPlan::add(cgroup, below, &mut fds))
        .transpose()?;
    let mut cgroup = cgroup.unwrap_or_default();
    cgroup
        .tasks
        .extend(target.resctrl.map(|group| fds.push(group)));
    let plan = ExecPlan {
        pidfd: fds.push(target.pidfd),
        kinds,
        root: fds.push(root),
        cgroup,
        devpts,
        process: plan,
    };
    Ok((plan, fds.into_inner()))
}

fn open_devpts(root: impl AsFd) -> Result<OwnedFd, Error> {
    linux::path::open_in_root(root, Path::new("dev/pts"), OFlags::PATH | OFlags::DIRECTORY)
        .during(|| "open the container's /dev/pts")
}

/// Whether a process (its pid, or `self`) may set groups: a user namespace that its user made alone forbids it.
pub(crate) fn setgroups_allowed(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/setgroups"))
        .is_ok_and(|text| text.trim() == "allow")
}

/// Resolves a process, without what is a container's and not its own: seccomp, keyring, personality.
pub(crate) fn plan_process(process: &Process, user_namespaced: bool) -> Result<ProcessPlan, Error> {
    let args = process.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(Error::spec("process.args", "is empty"));
    }
    let cwd = process
        .cwd()
        .to_str()
        .ok_or_else(|| Error::spec("process.cwd", "is not UTF-8"))?;
    if !cwd.starts_with('/') {
        return Err(Error::spec(
            "process.cwd",
            format!("{cwd:?} is not an absolute path"),
        ));
    }
    let env = process.env().clone().unwrap_or_default();
    for (field, texts) in [("process.args", &args), ("process.env", &env)] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(Error::spec(field, "has a NUL byte in it"));
        }
    }
    let user = process.user();
    let size = process.console_size().and_then(|size| {
        Some((
            u16::try_from(size.width()).ok()?,
            u16::try_from(size.height()).ok()?,
        ))
    });
    let capabilities = plan_capabilities(process.capabilities().as_ref())?;
    Ok(ProcessPlan {
        args,
        env: last_of_each(env),
        cwd: cwd.to_owned(),
        terminal_size: size.filter(|size| *size != (0, 0)),
        uid: user.uid(),
        gid: user.gid(),
        outer_uid: None,
        groups: Some(user.additional_gids().clone().unwrap_or_default()),
        umask: user.umask(),
        capabilities: if user_namespaced {
            capabilities
        } else {
            limit_to_own(capabilities)
        },
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        seccomp: None,
        rlimits: plan_rlimits(process)?,
        scheduling: plan_scheduling(process, false)?,
        oom_score_adj: process.oom_score_adj(),
        apparmor_profile: process
            .apparmor_profile()
            .clone()
            .filter(|name| !name.is_empty()),
        selinux_label: process
            .selinux_label()
            .clone()
            .filter(|label| !label.is_empty()),
        personality: None,
        keyring: None,
        preserve_fds: 0,
    })
}

/// What a container's `linux` says of each of its processes, the first and those of an exec.
pub(super) fn plan_containers_own(linux: &Linux, plan: &mut ProcessPlan) -> Result<(), Error> {
    plan.scheduling.memory_policy = linux
        .memory_policy()
        .as_ref()
        .map(plan_memory_policy)
        .transpose()?;
    plan.personality = linux.personality().as_ref().map(plan_personality);
    plan.outer_uid = host_id(linux.uid_mappings(), plan.uid);
    Ok(())
}

/// `linux.personality` (config-linux.md, "Personality").
fn plan_personality(spec: &LinuxPersonality) -> u32 {
    const PER_LINUX32: u32 = 0x0008;
    match spec.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    }
}

/// Of the entries for one variable the last counts, in the first's place; an empty `HOME` is none, and is looked up.
fn last_of_each(env: Vec<String>) -> Vec<String> {
    let mut places: HashMap<String, usize> = HashMap::with_capacity(env.len());
    let mut out: Vec<String> = Vec::with_capacity(env.len());
    for entry in env {
        let name = entry.split('=').next().unwrap_or_default();
        match places.get(name).and_then(|place| out.get_mut(*place)) {
            Some(earlier) => *earlier = entry,
            None => {
                places.insert(name.to_owned(), out.len());
                out.push(entry);
            }
        }
    }
    out.retain(|entry| entry != "HOME=");
    out
}

fn plan_capabilities(spec: Option<&LinuxCapabilities>) -> Result<Sets, Error> {
    let Some(spec) = spec else {
        return Ok(Sets::default());
    };
    let set = |names: &Option<Capabilities>| {
        names.iter().flatten().fold(Set::default(), |set, name| {
            // The crate's own enum prints the kernel's name.
            set.union(Set::named(&name.to_string()).unwrap_or_default())
        })
    };
    Ok(Sets {
        bounding: set(spec.bounding()),
        effective: set(spec.effective()),
        permitted: set(spec.permitted()),
        inheritable: set(spec.inheritable()),
        ambient: set(spec.ambient()),
    })
}

/// Takes out what this process doesn't have itself and so can't give.
fn limit_to_own(wanted: Sets) -> Sets {
    let Ok(own) = capability::current() else {
        return wanted;
    };
    let lacking = Set(wanted.permitted.0 & !own.permitted.0);
    if lacking != Set::default() {
        tracing::warn!(capabilities = ?lacking.names().collect::<Vec<_>>(), "not given: this process lacks them itself");
    }
    let limit = |set: Set| set.intersection(own.permitted);
    Sets {
        bounding: wanted.bounding,
        effective: limit(wanted.effective),
        permitted: limit(wanted.permitted),
        inheritable: limit(wanted.inheritable),
        ambient: limit(wanted.ambient),
    }
}

fn plan_rlimits(process: &Process) -> Result<Vec<Rlimit>, Error> {
    let mut out: Vec<Rlimit> = Vec::new();
    for (position, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{position}]");
        let name = limit.typ().to_string();
        let resource = rlimit::resource_named(&name)
            .ok_or_else(|| Error::spec(&field, format!("unknown type {name}")))?;
        if out.iter().any(|known| known.resource == resource) {
            return Err(Error::spec(field, format!("duplicate type {name}")));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::spec(
                field,
                format!("{name}: soft limit above the hard one"),
            ));
        }
        out.push(Rlimit {
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::last_of_each;

    #[test]
    fn the_last_entry_counts_in_the_first_ones_place() {
        let env = ["A=1", "B", "HOME=", "A=2=3", "C=", "B=4"].map(str::to_owned);
        assert_eq!(last_of_each(env.to_vec()), ["A=2=3", "B=4", "C="]);
        let home = ["HOME=", "HOME=/h"].map(str::to_owned);
        assert_eq!(last_of_each(home.to_vec()), ["HOME=/h"]);
    }
}
