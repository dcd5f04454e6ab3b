//! The profile of a container that asks for the runtime's default (`RuntimeDefault`).
//!
//! It forbids, with EPERM, what changes the host or reaches other containers (mounting, modules, clocks, keys, the
//! kernel's debugging), and allows what programs use; a capability that the container has brings the calls that it is
//! for. So do the profiles of containerd and Docker, whose users this one serves.

use linux::capability::Set;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Names that are allowed whatever the arguments.
const ALLOWED: &str = include_str!("default_allowed.txt");

/// What a capability is for, and so allows.
const BY_CAPABILITY: [(&str, &[&str]); 13] = [
    ("CAP_DAC_READ_SEARCH", &["open_by_handle_at"]),
    (
        "CAP_SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "open_tree_attr",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("CAP_SYS_BOOT", &["reboot"]),
    ("CAP_SYS_CHROOT", &["chroot"]),
    (
        "CAP_SYS_MODULE",
        &["delete_module", "finit_module", "init_module"],
    ),
    ("CAP_SYS_PACCT", &["acct"]),
    (
        "CAP_SYS_PTRACE",
        &["kcmp", "pidfd_getfd", "process_madvise"],
    ),
    ("CAP_SYS_RAWIO", &["ioperm", "iopl"]),
    (
        "CAP_SYS_TIME",
        &[
            "clock_adjtime",
            "clock_adjtime64",
            "clock_settime",
            "clock_settime64",
            "settimeofday",
            "stime",
        ],
    ),
    ("CAP_SYS_TTY_CONFIG", &["vhangup"]),
    (
        "CAP_SYS_NICE",
        &[
            "get_mempolicy",
            "mbind",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
    ("CAP_SYSLOG", &["syslog"]),
    ("CAP_BPF", &["bpf"]),
];

/// `CLONE_NEW*`: what `clone` may not ask for without CAP_SYS_ADMIN.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Execution domains that `personality` may choose: Linux, 32 bits of it, both with `UNAME26`, and asking.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// AF_VSOCK reaches the hypervisor, past every network policy.
const AF_VSOCK: u64 = 40;

/// The default profile for a container with these capabilities in its bounding set.
///
/// # Errors
/// Not in practice: the builders' own.
pub fn default_profile(capabilities: Set) -> Result<LinuxSeccomp, OciSpecError> {
    let mut rules = vec![allow(ALLOWED.split_whitespace(), Vec::new())?];
    let vsock = argument(0, LinuxSeccompOperator::ScmpCmpNe, AF_VSOCK, None)?;
    rules.push(allow(["socket"], vec![vsock])?);
    for value in PERSONALITIES {
        rules.push(allow(
            ["personality"],
            vec![argument(0, LinuxSeccompOperator::ScmpCmpEq, value, None)?],
        )?);
    }
    for (name, calls) in BY_CAPABILITY {
        if Set::named(name).is_some_and(|capability| capabilities.contains(capability)) {
            rules.push(allow(calls.iter().copied(), Vec::new())?);
        }
    }
    if !capabilities.contains(linux::capability::SYS_ADMIN) {
        let no_namespaces = argument(
            0,
            LinuxSeccompOperator::ScmpCmpMaskedEq,
            NAMESPACE_FLAGS,
            Some(0),
        )?;
        rules.push(allow(["clone"], vec![no_namespaces])?);
        // Its flags are in memory, where a filter can't look: libraries fall back to clone.
        rules.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(libc::ENOSYS as u32)
                .build()?,
        );
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::EPERM as u32)
        .architectures(architectures())
        .syscalls(rules)
        .build()
}

fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => Vec::new(),
    }
}

fn allow<'a>(
    names: impl IntoIterator<Item = &'a str>,
    arguments: Vec<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    LinuxSyscallBuilder::default()
        .names(names.into_iter().map(str::to_owned).collect::<Vec<_>>())
        .action(LinuxSeccompAction::ScmpActAllow)
        .args(arguments)
        .build()
}

fn argument(
    index: usize,
    operator: LinuxSeccompOperator,
    value: u64,
    value_two: Option<u64>,
) -> Result<LinuxSeccompArg, OciSpecError> {
    let builder = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(operator)
        .value(value);
    match value_two {
        Some(two) => builder.value_two(two).build(),
        None => builder.build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::compile::{compile, interpret};
    use crate::seccomp::syscalls::{Architecture, X32_BIT, number};

    fn verdict(capabilities: Set, name: &str, first: u64) -> u32 {
        let program =
            compile(&crate::seccomp::read(&default_profile(capabilities).unwrap()).unwrap())
                .unwrap();
        let number = number(name, Architecture::X86_64).unwrap();
        let call = interpret::Call {
            number,
            audit: Architecture::X86_64.audit(),
            arguments: [first, 0, 0, 0, 0, 0],
        };
        interpret::run(&program, &call).0
    }

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn capabilities_bring_their_calls() {
        let none = Set::default();
        assert_eq!(verdict(none, "mount", 0), EPERM);
        assert_eq!(verdict(linux::capability::SYS_ADMIN, "mount", 0), ALLOW);
        assert_eq!(verdict(none, "clone", 0x11), ALLOW);
        assert_eq!(verdict(none, "clone", 0x1000_0000), EPERM);
        assert_eq!(
            verdict(none, "clone3", 0),
            0x0005_0000 | libc::ENOSYS as u32
        );
        assert_eq!(verdict(linux::capability::SYS_ADMIN, "clone3", 0), ALLOW);
        assert_eq!(verdict(none, "socket", 40), EPERM);
        assert_eq!(verdict(none, "socket", 2), ALLOW);
        assert_eq!(verdict(none, "personality", 0x4_0000), EPERM);
        assert_eq!(verdict(none, "keyctl", 0), EPERM);
        for name in [
            "read", "openat2", "execve", "futex", "statx", "rseq", "mseal",
        ] {
            assert_eq!(verdict(none, name, 0), ALLOW, "{name}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_verdict_takes_few_instructions_and_new_calls_do_not_exist() {
        let filter = crate::seccomp::read(&default_profile(Set::default()).unwrap()).unwrap();
        let program = compile(&filter).unwrap();
        let run = |number| {
            let audit = Architecture::X86_64.audit();
            interpret::run(
                &program,
                &interpret::Call {
                    number,
                    audit,
                    arguments: [0; 6],
                },
            )
        };
        let longest = (0..=500)
            .chain(X32_BIT..X32_BIT + 600)
            .map(|number| run(number).1)
            .max();
        assert!(
            longest < Some(32),
            "{longest:?} of {} instructions",
            program.0.len()
        );
        assert_eq!(run(500).0, 0x0005_0000 | libc::ENOSYS as u32);
    }
}
