//! The keeper: the process that is the parent of every container, and the client that the CRI server has of it.
//!
//! The keeper is single-threaded (a threaded daemon must not fork), forks containers, holds every pidfd, the read end
//! of every standard stream and every terminal's master, reaps, and keeps exit codes until they are journalled. It
//! touches no disk: a frozen file system must not stop launching and reaping. What is printed is written to log files by
//! another process, the [scribe](crate::scribe), which has duplicates of the streams and may die at any time.
//!
//! ```text
//! CRI server --seqpacket--> keeper --seqpacket--> scribe --> log files
//!     |  (Client)             | fork                 ^
//!     '------- pidfds         '--> containers --FIFOs'
//! ```
//!
//! Whoever dies is replaced by the next one up the line: the scribe by the keeper, the keeper by the CRI server's
//! [`Client`]. Containers notice none of it.
//!
//! What a running container costs in descriptors: in the keeper its pidfd, two or three FIFOs (or a terminal) and its
//! cgroup's count of OOM kills, five at most; in the scribe the same streams, two spools and the log file, six at most;
//! in the CRI server its pidfd, and its terminal. With a hard limit of 20,000 (both processes raise their soft limit to
//! it) that is enough for 3,000 containers.

mod adopting;
mod client;
mod connection;
mod ending;
mod environment;
mod error;
mod held;
mod keepsakes;
mod launching;
pub(crate) mod poll;
pub(crate) mod process;
mod protocol;
mod record;
mod scribe_link;
mod server;
mod spawn;
mod stdio;
mod upgrade;

pub use client::{
    AttachStreams, Client, Config, ExecReply, ExecRequest, ExecStdio, Exits, Held, LaunchReply,
    LaunchRequest, Stream,
};
pub use error::KeeperError;
pub use process::main;
pub(crate) use protocol::IoSpec;
pub use protocol::{Exit, ExitStatus};
