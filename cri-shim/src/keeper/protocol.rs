//! What the keeper and its clients say to each other: JSON heads of whole messages, descriptors beside them.
//!
//! A launch plan may be large (environment, seccomp), so it travels as a memory file, the first of the message's
//! descriptors. A request with more descriptors than one message carries sends the surplus ahead in [`Request::Fds`].

use super::error::Refusal;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Raised when a message changes its meaning. A client that meets another version asks the keeper to upgrade.
pub(crate) const VERSION: u32 = 1;

/// How a container's standard streams are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IoSpec {
    /// The CRI log file; without one, output is read and dropped.
    pub log_path: Option<PathBuf>,
    /// Descriptor 0 is a FIFO that attached clients write to, instead of `/dev/null`.
    pub stdin: bool,
    /// Descriptor 0 ends when the first attached client's input does.
    pub stdin_once: bool,
    /// One terminal instead of three streams.
    pub terminal: bool,
}

/// A numbered request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub n: u64,
    pub request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Descriptors that belong before those of the next request. Not answered.
    Fds,
    Hello {
        version: u32,
    },
    /// Descriptors: the plan's memory file, that of `memory_events` if there is one, then the plan's own.
    Launch {
        id: String,
        io: IoSpec,
        size: Option<(u16, u16)>,
        /// Where the cgroup counts kills for want of memory.
        memory_events: Option<PathBuf>,
    },
    /// Descriptors: the memory file of a `CgroupPlan`, the user namespace if `user`, then the plan's own.
    LaunchPodInit {
        id: String,
        user: bool,
    },
    /// Descriptors: the plan's memory file, standard streams unless `terminal`, then the plan's own.
    Exec {
        container: String,
        exec: String,
        terminal: bool,
        size: Option<(u16, u16)>,
    },
    /// Answered when the exec has ended; its record is dropped with the answer.
    ExecExit {
        exec: String,
    },
    Subscribe {
        from: u64,
    },
    List,
    Forget {
        id: String,
    },
    ReopenLog {
        id: String,
    },
    Attach {
        id: String,
    },
    Resize {
        id: String,
        width: u16,
        height: u16,
    },
    /// Gives a successor the terminal that its predecessor's death left with us. Descriptor: the master.
    ReturnTerminal {
        id: String,
    },
    /// Descriptor: the new program.
    Upgrade,
    /// Ends the keeper if it holds nothing.
    Shutdown,
}

/// What the keeper sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromKeeper {
    Reply {
        n: u64,
        result: Result<Answer, Refusal>,
    },
    /// One entry of a list; [`Answer::Done`] ends it. Descriptors, if its process is not yet reaped: the pidfd, and
    /// the terminal's master if there is one.
    Held {
        n: u64,
        held: HeldRecord,
    },
    Exit(Exit),
    /// Something that an operator should know; the keeper has no log of its own.
    Log {
        message: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Hello {
        version: u32,
        pid: i32,
        generation: u64,
        /// Device, inode and time of change of the keeper's program.
        program: [u64; 4],
    },
    /// Descriptors: the pidfd, and the terminal's master if there is one.
    Launched {
        pid: i32,
    },
    ExecExit(ExitStatus),
    /// Descriptor: the attached stream.
    Attached {
        terminal: bool,
        stdin: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HeldRecord {
    pub id: String,
    pub pid: i32,
    pub launching: bool,
    pub exit: Option<Exit>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The exit code; 128 plus the signal for a killed process; 255 if nobody saw the end.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The process ended unseen (its keeper had been killed before), on a kernel that does not tell afterwards.
    pub unknown: bool,
}

impl ExitStatus {
    /// Ended unseen.
    pub const UNKNOWN: ExitStatus = ExitStatus {
        code: 255,
        signal: None,
        unknown: true,
    };

    /// From `wait(2)`'s raw status.
    pub fn from_wait(raw: i32) -> Self {
        match raw & 0x7f {
            0 => ExitStatus {
                code: (raw >> 8) & 0xff,
                signal: None,
                unknown: false,
            },
            signal => ExitStatus {
                code: 128 + signal,
                signal: Some(signal),
                unknown: false,
            },
        }
    }
}

/// The end of a container's first process (or of an exec's).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Rises with every end, over keepers too as long as the host is up. 0 for an exec's.
    pub seq: u64,
    /// The container.
    pub id: String,
    /// The exec, if it is one's end; these are told to current subscribers only and not kept.
    pub exec_id: Option<String>,
    /// How it ended.
    pub status: ExitStatus,
    /// When it was seen, nanoseconds since 1970, UTC.
    pub finished_at_ns: i64,
    /// The kernel killed a process of the container for want of memory at least once.
    pub oom: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_follows_the_shell_for_signals() {
        assert_eq!(ExitStatus::from_wait(42 << 8).code, 42);
        let killed = ExitStatus::from_wait(9);
        assert_eq!((killed.code, killed.signal), (137, Some(9)));
        let core_dumped_by_a_realtime_signal = ExitStatus::from_wait(0x80 | 34);
        assert_eq!(core_dumped_by_a_realtime_signal.signal, Some(34));
    }
}
