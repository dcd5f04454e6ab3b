//! What this kernel has of what the node needs; asked once at start, so that a lack is told in words and not by an
//! errno in the middle of something.

use nix::errno::Errno;

/// Something that the kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The feature: a system call or a file system.
    pub feature: &'static str,
    /// The Linux version or the build option that brings it.
    pub remedy: &'static str,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this kernel has no {}: {}", self.feature, self.remedy)
    }
}

/// Whether a system call exists: it is called with a bad descriptor or size, so that it does nothing.
fn has_call(number: libc::c_long) -> bool {
    // SAFETY: descriptor -1 is never open and the sizes are 0, so that each of the calls asked for fails with EBADF,
    // EINVAL or EFAULT before it reads or changes anything.
    let value = unsafe {
        libc::syscall(
            number,
            -1,
            std::ptr::null::<u8>(),
            0,
            std::ptr::null::<u8>(),
            0,
        )
    };
    value >= 0 || Errno::last() != Errno::ENOSYS
}

/// What is missing of what a node can't do without; empty on Linux 5.12 and later with containers' usual options.
pub fn missing() -> Vec<Missing> {
    let mut missing = Vec::new();
    let calls = [
        (libc::SYS_openat2, "openat2", "Linux 5.6 has it"),
        (
            libc::SYS_pidfd_send_signal,
            "pidfd_send_signal",
            "Linux 5.1 has it",
        ),
        (libc::SYS_move_mount, "move_mount", "Linux 5.2 has it"),
        (
            libc::SYS_mount_setattr,
            "mount_setattr",
            "Linux 5.12 has it",
        ),
    ];
    for (number, feature, remedy) in calls {
        if !has_call(number) {
            missing.push(Missing { feature, remedy });
        }
    }
    for (file, feature, remedy) in [
        (
            "/proc/self/ns/user",
            "user namespaces",
            "build it with CONFIG_USER_NS",
        ),
        (
            "/proc/self/ns/net",
            "network namespaces",
            "build it with CONFIG_NET_NS",
        ),
        (
            "/proc/self/ns/pid",
            "pid namespaces",
            "build it with CONFIG_PID_NS",
        ),
        (
            "/proc/self/ns/cgroup",
            "cgroup namespaces",
            "build it with CONFIG_CGROUPS",
        ),
    ] {
        if std::fs::symlink_metadata(file).is_err() {
            missing.push(Missing { feature, remedy });
        }
    }
    if !crate::seccomp::action_available(libc::SECCOMP_RET_ERRNO) {
        missing.push(Missing {
            feature: "seccomp filters",
            remedy: "build it with CONFIG_SECCOMP_FILTER",
        });
    }
    // Asked by fsopen and not by /proc/filesystems, so that a module gets loaded.
    if crate::mount::has_file_system("overlay") == Some(false) {
        missing.push(Missing {
            feature: "overlay file system",
            remedy: "build it with, or load, overlay",
        });
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_present_call_is_found_and_an_absent_one_is_not() {
        assert!(has_call(libc::SYS_openat2));
        assert!(!has_call(100_000));
    }
}
