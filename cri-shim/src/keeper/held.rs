//! What the keeper holds: containers, execs, and in which state each is.
//!
//! ```text
//! Launching --execve--> Running --reaped--> Draining --output written--> Exited --forget--> gone
//!     '----failed-----------------------------------------------------------------------^
//! ```

use super::poll::{Token, duplicate};
use super::protocol::{Exit, ExitStatus, HeldRecord};
use super::record::Record;
use super::server::Waiter;
use super::stdio::Streams;
use std::os::fd::OwnedFd;

/// Whose process it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    Container(String),
    Exec(String),
}

/// A process on its way to `execve`.
#[derive(Debug)]
pub(super) struct Launching {
    pub status: OwnedFd,
    pub token: Token,
    /// What the status descriptor has delivered so far.
    pub bytes: Vec<u8>,
    /// Who waits for the outcome.
    pub waiters: Vec<Waiter>,
}

#[derive(Debug)]
pub(super) enum ContainerState {
    Launching(Launching),
    Running,
    /// Ended; the exit (without its number) is published when the scribe has written the last output.
    Draining(Exit),
    Exited(Exit),
}

#[derive(Debug)]
pub(super) struct Container {
    pub record: Record,
    pub pidfd: OwnedFd,
    pub streams: Streams,
    pub memory_events: Option<OwnedFd>,
    pub state: ContainerState,
}

impl Container {
    /// Its published end.
    pub(super) fn exit(&self) -> Option<&Exit> {
        match &self.state {
            ContainerState::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Its first process has not been reaped.
    pub(super) fn is_alive(&self) -> bool {
        matches!(
            self.state,
            ContainerState::Launching(_) | ContainerState::Running
        )
    }

    pub(super) fn describe(&self, id: &str) -> linux::Result<(HeldRecord, Vec<OwnedFd>)> {
        let held = HeldRecord {
            id: id.to_owned(),
            pid: self.record.identity.pid,
            launching: matches!(self.state, ContainerState::Launching(_)),
            exit: self.exit().cloned(),
        };
        let fds = if self.is_alive() {
            self.handles()?
        } else {
            Vec::new()
        };
        Ok((held, fds))
    }

    /// What a client gets of a running container: pidfd, and the terminal's master if there is one.
    pub(super) fn handles(&self) -> linux::Result<Vec<OwnedFd>> {
        let mut fds = vec![duplicate(&self.pidfd)?];
        if let Some(master) = self.streams.master() {
            fds.push(duplicate(master)?);
        }
        Ok(fds)
    }
}

#[derive(Debug)]
pub(super) enum ExecState {
    Launching(Launching),
    Running,
    Exited(ExitStatus),
}

#[derive(Debug)]
pub(super) struct Exec {
    pub container: String,
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Until the launch is decided: from then on its client holds it.
    pub terminal: Option<OwnedFd>,
    pub state: ExecState,
    /// Who waits for its end.
    pub waiters: Vec<Waiter>,
}

impl Exec {
    pub(super) fn handles(&self) -> linux::Result<Vec<OwnedFd>> {
        let mut fds = vec![duplicate(&self.pidfd)?];
        if let Some(master) = &self.terminal {
            fds.push(duplicate(master)?);
        }
        Ok(fds)
    }
}
