//! A container as the scribe sees it: streams in, a log file, attached clients.

use super::attached::Attached;
use super::journal::{Intent, Journal};
use super::log_file::LogFile;
use super::output::{Output, Source};
use super::spool::Spool;
use crate::keeper::IoSpec;
use crate::keeper::poll::{Poller, Token};
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// One container.
#[derive(Debug)]
pub(super) struct Container {
    pub id: String,
    pub io: IoSpec,
    pub log: Option<LogFile>,
    pub outputs: Vec<Output>,
    /// The container's input: its FIFO's write end, or the terminal's master.
    pub stdin: Option<OwnedFd>,
    pub stdin_token: Option<Token>,
    pub clients: Vec<Attached>,
    /// The log can't be written at the moment, and that has been said.
    pub log_failing: bool,
    /// Bytes of output that were given up because the log could not be written.
    pub lost: u64,
    pub draining: bool,
    pub drained: bool,
}

impl Container {
    /// From what `Streams::duplicates` gave; `dir` is the container's directory, where its spools are.
    ///
    /// # Errors
    /// Descriptors are missing, or a spool can't be opened.
    pub(super) fn new(
        id: String,
        io: IoSpec,
        fds: Vec<OwnedFd>,
        tokens: [Token; 2],
        dir: BorrowedFd<'_>,
    ) -> Result<Self, String> {
        let output = |source, stream: usize| {
            let name = ["stdout", "stderr"][stream];
            let spool =
                open_spool(dir, name).map_err(|cause| format!("open spool of {name}: {cause}"))?;
            let token = tokens[stream];
            Ok::<_, String>(Output {
                source,
                spool,
                name,
                token,
                queued: false,
                paused: false,
                ended: false,
                seen: 0,
                drain: None,
            })
        };
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or("descriptors are missing");
        let (outputs, stdin) = if io.terminal {
            let master = next()?;
            let stdin = if io.stdin {
                crate::keeper::poll::duplicate(&master).ok()
            } else {
                None
            };
            (vec![output(Source::Terminal(master), 0)?], stdin)
        } else {
            let outputs = vec![
                output(Source::Pipe(next()?), 0)?,
                output(Source::Pipe(next()?), 1)?,
            ];
            (outputs, if io.stdin { next().ok() } else { None })
        };
        Ok(Container {
            id,
            io,
            log: None,
            outputs,
            stdin,
            stdin_token: None,
            clients: Vec::new(),
            log_failing: false,
            lost: 0,
            draining: false,
            drained: false,
        })
    }

    /// If the scribe before this one was killed in the middle of a batch of this container's: finishes it, or undoes it.
    ///
    /// # Errors
    /// What could not be repaired, in words.
    pub(super) fn finish_last_batch(&mut self, journal: &Journal) -> Result<(), String> {
        let Some(intent) = journal.last().filter(|intent| intent.id == self.id) else {
            return Ok(());
        };
        let Intent {
            stream,
            file,
            offset,
            length,
            done: (before, after),
            ..
        } = intent;
        let Some(output) = self.outputs.get_mut(stream) else {
            return Ok(());
        };
        if output.spool.done() != before {
            return Ok(());
        }
        let Some(path) = &self.io.log_path else {
            return Ok(());
        };
        let Some(mut log) = LogFile::find(path, file) else {
            return Ok(());
        };
        if log.length >= offset + length {
            let count = usize::try_from(after - before)
                .unwrap_or(0)
                .min(output.spool.pending.len());
            return output
                .spool
                .finish(count)
                .map_err(|cause| format!("finish a written batch: {cause}"));
        }
        if log.length > offset {
            return log
                .cut(offset)
                .map_err(|cause| format!("cut a half-written batch: {cause}"));
        }
        Ok(())
    }

    /// Opens the log file by its path; the one that was open is closed.
    ///
    /// # Errors
    /// The `open`'s; the old file stays open then.
    pub(super) fn reopen_log(&mut self) -> io::Result<()> {
        if let Some(path) = &self.io.log_path {
            self.log = Some(LogFile::open(path)?);
        }
        Ok(())
    }

    /// Watches the outputs, for changes: one that is not read for a while (its log can't be written) is no event.
    ///
    /// # Errors
    /// `epoll_ctl`'s.
    pub(super) fn watch(&self, poller: &Poller) -> linux::Result<()> {
        for output in &self.outputs {
            poller.add(output.fd(), output.token, EventFlags::IN | EventFlags::ET)?;
        }
        Ok(())
    }

    /// The opposite; returns the tokens.
    pub(super) fn unwatch(&self, poller: &Poller) -> Vec<Token> {
        let mut tokens = Vec::new();
        for output in &self.outputs {
            poller.remove(output.fd());
            tokens.push(output.token);
        }
        if let (Some(token), Some(stdin)) = (self.stdin_token, &self.stdin) {
            poller.remove(stdin);
            tokens.push(token);
        }
        for client in &self.clients {
            poller.remove(&client.peer.socket);
            tokens.push(client.token);
        }
        tokens
    }

    /// The process has ended: what there is now is the rest of its output. (Others may go on printing.)
    pub(super) fn begin_drain(&mut self) {
        self.draining = true;
        for output in &mut self.outputs {
            output.drain = Some(output.unwritten());
        }
    }
}

fn open_spool(dir: BorrowedFd<'_>, name: &str) -> io::Result<Spool> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(
        dir,
        format!("{name}.spool"),
        flags,
        Mode::from_raw_mode(0o600),
    )?;
    Spool::open(file.into())
}
