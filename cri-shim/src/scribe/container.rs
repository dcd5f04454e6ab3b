//! A container as the scribe sees it: streams in, a log file, attached clients.

use super::attached::Attached;
use super::journal::{Intent, Journal};
use super::log_file::LogFile;
use super::output::{Output, Terminal};
use crate::keeper::IoSpec;
use crate::keeper::poll::{Poller, Token};
use rustix::event::epoll::EventFlags;
use std::io;
use std::os::fd::OwnedFd;

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
    /// From what `Streams::duplicates` gave.
    ///
    /// # Errors
    /// Descriptors are missing.
    pub(super) fn new(
        id: String,
        io: IoSpec,
        fds: Vec<OwnedFd>,
        tokens: [Token; 2],
    ) -> Result<Self, String> {
        let output = |pipe, terminal, name, token| Output {
            pipe,
            terminal,
            name,
            token,
            queued: false,
            paused: false,
            hung_up: false,
            seen: 0,
            drain: None,
        };
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or("descriptors are missing");
        let (outputs, stdin) = if io.terminal {
            let (master, reader, pending) = (next()?, next()?, next()?);
            let stdin = if io.stdin {
                crate::keeper::poll::duplicate(&master).ok()
            } else {
                None
            };
            let terminal = Some(Terminal { master, pending });
            (vec![output(reader, terminal, "stdout", tokens[0])], stdin)
        } else {
            let outputs = vec![
                output(next()?, None, "stdout", tokens[0]),
                output(next()?, None, "stderr", tokens[1]),
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
    pub(super) fn finish_last_batch(&mut self, journal: &mut Journal) -> Result<(), String> {
        let Some(intent) = journal.last().filter(|intent| intent.id == self.id) else {
            return Ok(());
        };
        let Intent {
            stream,
            file,
            offset,
            length,
            raw,
            spool,
            ..
        } = intent;
        let removed = journal.position() - spool;
        if removed >= raw {
            return Ok(());
        }
        let Some(output) = self.outputs.get(stream) else {
            return Ok(());
        };
        if removed == 0 {
            let Some(path) = &self.io.log_path else {
                return Ok(());
            };
            let Some(mut log) = LogFile::find(path, file) else {
                return Ok(());
            };
            if log.length < offset + length {
                return if log.length > offset {
                    log.cut(offset)
                        .map_err(|cause| format!("cut a half-written entry: {cause}"))
                } else {
                    Ok(())
                };
            }
        }
        journal
            .remove(&output.pipe, raw - removed)
            .map_err(|errno| format!("remove what was logged: {errno}"))
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

    /// Watches the outputs, for changes: what lies in a pipe unread, because it is a line without its end, is no event.
    ///
    /// # Errors
    /// `epoll_ctl`'s.
    pub(super) fn watch(&self, poller: &Poller) -> linux::Result<()> {
        for output in &self.outputs {
            let fd = output
                .terminal
                .as_ref()
                .map_or(&output.pipe, |terminal| &terminal.master);
            poller.add(fd, output.token, EventFlags::IN | EventFlags::ET)?;
        }
        Ok(())
    }

    /// The opposite; returns the tokens.
    pub(super) fn unwatch(&self, poller: &Poller) -> Vec<Token> {
        let mut tokens = Vec::new();
        for output in &self.outputs {
            poller.remove(
                output
                    .terminal
                    .as_ref()
                    .map_or(&output.pipe, |terminal| &terminal.master),
            );
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

    pub(super) fn hang_up(&mut self, stream: usize) {
        // A terminal's last words are still to be read; the read tells its end.
        if let Some(output) = self.outputs.get_mut(stream)
            && output.terminal.is_none()
        {
            output.hung_up = true;
        }
    }

    /// The process has ended: what its pipes hold now is the rest of its output. (Others may go on printing.)
    pub(super) fn begin_drain(&mut self) {
        self.draining = true;
        for output in &mut self.outputs {
            while output.pump() && output.available() < super::output::MAX_PEEK as u64 / 2 {}
            output.drain.get_or_insert(0);
            output.drain = Some(output.available());
        }
    }
}
