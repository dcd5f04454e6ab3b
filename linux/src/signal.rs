//! Signals: sending them, and the state of handlers and masks that a new program starts from.

use crate::error::{Context, Error, Result, check};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// Sends a signal to a process by pid. Prefer a pidfd ([`crate::pidfd::send_signal`]): a pid may be another's by now.
///
/// # Errors
/// ESRCH if there is none, EPERM.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    if pid <= 0 {
        return Err(Error::new("kill", format!("pid {pid}"), libc::ESRCH));
    }
    // SAFETY: kill takes two integers and touches no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_kill, pid, signal) })
        .context("kill", || format!("pid {pid}"))?;
    Ok(())
}

/// The highest signal number.
pub const MAX_SIGNAL: i32 = 64;

/// Gives every signal its default action, ignored ones too, and unblocks all of them: ignored and blocked signals
/// survive `execve`, and Rust's runtime ignores SIGPIPE.
///
/// # Errors
/// The `rt_sigprocmask`'s.
pub fn reset() -> Result<()> {
    // The raw call, because libc's wrapper refuses the two real-time signals that it keeps for itself.
    let default_action = [0u8; 64];
    for signal in 1..=MAX_SIGNAL {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: the buffer is larger than the kernel's struct sigaction on every architecture (at most 40 bytes),
        // all zeros mean SIG_DFL with no flags, and the old action isn't asked for.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default_action.as_ptr(),
                std::ptr::null::<u8>(),
                8usize,
            )
        };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .context("rt_sigprocmask", || "")
}

/// Blocks every signal in this thread and returns the mask that was in force.
///
/// # Errors
/// The `rt_sigprocmask`'s.
pub fn block_all() -> Result<SigSet> {
    let mut old = SigSet::empty();
    sigprocmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut old),
    )
    .context("rt_sigprocmask", || "")?;
    Ok(old)
}

/// Puts a mask back that [`block_all`] returned.
///
/// # Errors
/// The `rt_sigprocmask`'s.
pub fn restore(mask: &SigSet) -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None).context("rt_sigprocmask", || "")
}

const NAMES: [(&str, i32); 33] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The number of a signal given as a number, as `SIGTERM` or as `TERM`, in any case, or as `RTMIN+3` or `RTMAX-1`.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=MAX_SIGNAL).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // The C library keeps 32 and 33 for itself: everybody's SIGRTMIN is 34.
    let realtime = match name {
        "RTMIN" => Some(34),
        "RTMAX" => Some(MAX_SIGNAL),
        _ => name
            .strip_prefix("RTMIN+")
            .and_then(|rest| rest.parse::<i32>().ok()?.checked_add(34))
            .or_else(|| {
                name.strip_prefix("RTMAX-")
                    .and_then(|rest| MAX_SIGNAL.checked_sub(rest.parse().ok()?))
            }),
    };
    if let Some(number) = realtime {
        return (34..=MAX_SIGNAL).contains(&number).then_some(number);
    }
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_number_and_by_name() {
        for (text, number) in [
            ("9", 9),
            ("SIGTERM", 15),
            ("term", 15),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("RTMAX-14", 50),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["SIGNONE", "65", "-1", "RTMIN+99", ""] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
