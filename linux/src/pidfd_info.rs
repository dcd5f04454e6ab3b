//! What the kernel tells of a process through its pidfd after the end (`PIDFD_GET_INFO`, ioctl; Linux 6.15 and later).

use crate::error::{Context, Result, check};
use std::os::fd::{AsFd, AsRawFd};

/// `struct pidfd_info` of Linux 6.13, which later kernels only append to.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `_IOWR(0xff, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::c_ulong =
    (3 << 30) | ((size_of::<PidfdInfo>() as libc::c_ulong) << 16) | (0xff << 8) | 11;

/// The raw `wait(2)` status of a process that has ended and has been reaped, by whomever; `None` if it has not yet
/// been, or on a kernel before 6.15. The pidfd must have been opened before the reaping.
///
/// # Errors
/// The ioctl's; ENOTTY and EINVAL (kernels that don't know it) are `None`.
pub fn wait_status(pidfd: impl AsFd) -> Result<Option<i32>> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the request number encodes the size of the struct behind the pointer, which lives through the call; the
    // kernel writes no more than that size.
    let result = check(unsafe {
        libc::ioctl(
            pidfd.as_fd().as_raw_fd(),
            PIDFD_GET_INFO as _,
            &raw mut info,
        ) as libc::c_long
    })
    .context("ioctl PIDFD_GET_INFO", || "");
    match result {
        Ok(_) => Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)),
        Err(error) if [libc::ENOTTY, libc::EINVAL, libc::ESRCH].contains(&error.errno) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_reaped_process_is_told_where_the_kernel_has_it() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read x; exit 42"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = crate::pidfd::open(child.id() as i32).unwrap();
        assert_eq!(wait_status(&pidfd).unwrap(), None, "it runs");
        child.wait().unwrap();
        match wait_status(&pidfd).unwrap() {
            Some(raw) => assert_eq!(raw >> 8, 42),
            None => eprintln!("skipped: this kernel keeps no exit status in a pidfd"),
        }
    }
}
