//! Time that never jumps.

use std::time::Duration;

/// Time since the machine was started, with the time that it was asleep (`CLOCK_BOOTTIME`): the same in every process.
pub fn since_boot() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the timespec is valid for the call; it fails for an unknown clock only, and Linux has this since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
