//! Seccomp profiles (runtime-spec config-linux.md, "Seccomp"), compiled to BPF by us.

mod compile;
mod default_profile;
#[cfg(test)]
mod oracle;
mod syscalls;

pub use default_profile::default_profile;

use crate::Error;
use crate::plan::{FdList, ListenerPlan, SeccompPlan};
use compile::{Condition, Filter, Operator, Rules, compile};
use linux::seccomp::flag;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use syscalls::Architecture;

const KILL_THREAD: u32 = 0;
const ERRNO: u32 = 0x0005_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// Compiles a profile; `None` for one that allows everything. `state` is the container's, for a listener.
pub(crate) fn plan(
    profile: &LinuxSeccomp,
    state: &Value,
    fds: &mut FdList,
) -> Result<Option<SeccompPlan>, Error> {
    let listener = plan_listener(profile, state, fds)?;
    if profile.default_action() == LinuxSeccompAction::ScmpActAllow
        && profile.syscalls().as_deref().unwrap_or_default().is_empty()
    {
        return Ok(None);
    }
    let filter = read(profile)?;
    let program = compile(&filter).map_err(|too_long| {
        Error::spec(
            "linux.seccomp",
            format!("compiles to {} instructions of 4096", too_long.0),
        )
    })?;
    let mut flags = flags(profile);
    if listener.is_some() {
        flags |= flag::NEW_LISTENER;
    }
    tracing::debug!("seccomp filter flags: {flags}");
    Ok(Some(SeccompPlan {
        program,
        flags,
        listener,
    }))
}

/// Connects to whoever answers for SCMP_ACT_NOTIFY (config-linux.md, "Seccomp", and the container process state).
fn plan_listener(
    profile: &LinuxSeccomp,
    state: &Value,
    fds: &mut FdList,
) -> Result<Option<ListenerPlan>, Error> {
    let notifies: Vec<&String> = profile
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify)
        .flat_map(|rule| rule.names())
        .collect();
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify
        || notifies.iter().any(|name| *name == "sendmsg")
    {
        return Err(Error::spec(
            "linux.seccomp",
            "SCMP_ACT_NOTIFY for sendmsg, with which the listener is handed over",
        ));
    }
    let Some(path) = profile
        .listener_path()
        .as_ref()
        .filter(|_| !notifies.is_empty())
    else {
        return match notifies.first() {
            None => Ok(None),
            Some(name) => Err(Error::spec(
                "linux.seccomp.listenerPath",
                format!("is missing for SCMP_ACT_NOTIFY of {name}"),
            )),
        };
    };
    let failed = |operation, errno: rustix::io::Errno| Error::Kernel {
        step: "connect to the seccomp listener".to_owned(),
        cause: linux::Error::new(operation, path.display().to_string(), errno.raw_os_error()),
    };
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed("make socket for", errno))?;
    let address = SocketAddrUnix::new(path).map_err(|errno| failed("name socket", errno))?;
    rustix::net::connect(&socket, &address).map_err(|errno| failed("connect to", errno))?;
    let state = json!({
        "ociVersion": state.get("ociVersion"),
        "fds": ["seccompFd"],
        "metadata": profile.listener_metadata().as_deref().unwrap_or_default(),
        "state": state,
    });
    Ok(Some(ListenerPlan {
        socket: fds.push(socket),
        state,
    }))
}

fn flags(profile: &LinuxSeccomp) -> u32 {
    profile.flags().iter().flatten().fold(0, |flags, name| {
        flags
            | match name {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => flag::LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => flag::TSYNC,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => flag::SPEC_ALLOW,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    flag::WAIT_KILLABLE_RECV
                }
            }
    })
}

/// The rules by architecture and number. What this build has no number for can't be called by that name and is left
/// out, as is an architecture that this machine can't run.
fn read(profile: &LinuxSeccomp) -> Result<Filter, Error> {
    let native = Architecture::native().ok_or_else(|| {
        Error::unsupported(
            "linux.seccomp",
            "no table of system calls for this architecture",
        )
    })?;
    let mut architectures = BTreeSet::from([native]);
    architectures.extend(
        profile
            .architectures()
            .iter()
            .flatten()
            .filter_map(|arch| architecture(*arch)),
    );
    let default = profile.default_action().as_u32(profile.default_errno_ret());
    let mut filter = Filter {
        architectures: BTreeMap::new(),
        default,
        foreign: KILL_THREAD,
        unknown: None,
    };
    for architecture in architectures {
        let mut rules = Rules::new();
        for (position, rule) in profile.syscalls().iter().flatten().enumerate() {
            add_rule(position, rule, architecture, default, &mut rules)?;
        }
        filter.architectures.insert(architecture, rules);
    }
    // A profile that forbids what it doesn't list can't have meant the calls that came after it: programs fall back
    // on ENOSYS, and break on EPERM.
    if default != ALLOW && default != LOG {
        filter.unknown = Some(ERRNO | libc::ENOSYS as u32);
    }
    Ok(filter)
}

fn architecture(arch: Arch) -> Option<Architecture> {
    match arch {
        Arch::ScmpArchX86_64 => Some(Architecture::X86_64),
        Arch::ScmpArchX86 => Some(Architecture::X86),
        Arch::ScmpArchX32 => Some(Architecture::X32),
        Arch::ScmpArchAarch64 => Some(Architecture::Aarch64),
        _ => None,
    }
}

fn add_rule(
    position: usize,
    rule: &LinuxSyscall,
    architecture: Architecture,
    default: u32,
    rules: &mut Rules,
) -> Result<(), Error> {
    let action = rule.action().as_u32(rule.errno_ret());
    // What it says holds without it.
    if action == default {
        return Ok(());
    }
    let arguments = rule.args().as_deref().unwrap_or_default();
    let conditions = arguments
        .iter()
        .map(|argument| condition(position, argument))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    let distinct = conditions
        .iter()
        .all(|condition| seen.insert(condition.argument));
    for name in rule.names() {
        let Some(number) = syscalls::number(name, architecture) else {
            continue;
        };
        let verdict = rules.entry(number).or_default();
        if conditions.is_empty() {
            verdict.always.get_or_insert(action);
        } else if distinct {
            verdict.conditional.push((conditions.clone(), action));
        } else {
            // Several conditions on one argument are alternatives, as in other runtimes.
            verdict.conditional.extend(
                conditions
                    .iter()
                    .map(|condition| (vec![*condition], action)),
            );
        }
    }
    Ok(())
}

fn condition(position: usize, argument: &LinuxSeccompArg) -> Result<Condition, Error> {
    let index = u8::try_from(argument.index())
        .ok()
        .filter(|index| *index < 6)
        .ok_or_else(|| {
            Error::spec(
                format!("linux.seccomp.syscalls[{position}].args"),
                format!("no argument {}", argument.index()),
            )
        })?;
    let operator = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => Operator::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => Operator::Less,
        LinuxSeccompOperator::ScmpCmpLe => Operator::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => Operator::Equal,
        LinuxSeccompOperator::ScmpCmpGe => Operator::GreaterOrEqual,
        LinuxSeccompOperator::ScmpCmpGt => Operator::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => Operator::MaskedEqual,
    };
    Ok(Condition {
        argument: index,
        operator,
        value: argument.value(),
        masked: argument.value_two().unwrap_or(0),
    })
}

/// What `features` says of seccomp.
pub(crate) fn features() -> serde_json::Value {
    serde_json::json!({
        "enabled": true,
        "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
        "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
        "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
        "knownFlags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
    })
}
