//! The scribe: the process that writes containers' log files and serves attached clients.
//!
//! It has duplicates of the streams that the [keeper](crate::keeper) holds, and may die at any time: what it has not yet
//! written lies in the pipes and in their [spools](spool), and the [journal] tells its successor whether the batch under
//! way was written. It is the one process that waits for log disks.
//!
//! One stream, one batch: *take* what is in the pipe into the spool, *show* it to attached clients, *write* the entries
//! that are complete to the log, *finish*: count what they say as done. A line without its end stays in the spool.

mod advance;
mod attached;
mod clients;
mod container;
mod entries;
mod journal;
mod log_file;
mod output;
pub(crate) mod protocol;
mod server;
mod spool;

pub use log_file::make_log;

use crate::keeper::process::{own_stdin, silence};
use std::ffi::OsString;

/// The scribe as a process: `PROGRAM scribe`, with the keeper's socket as descriptor 0. The caller must not have started
/// a thread (it joins a mount namespace).
///
/// Returns the exit code.
pub fn main(_args: Vec<OsString>) -> i32 {
    match run() {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("orlop scribe: {message}");
            1
        }
    }
}

fn run() -> Result<(), String> {
    let text = |error: linux::Error| error.to_string();
    let keeper = own_stdin()?;
    let mut scribe = server::Scribe::new(keeper).map_err(text)?;
    silence()?;
    scribe.run().map_err(text)
}
