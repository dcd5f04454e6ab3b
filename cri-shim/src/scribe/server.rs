//! The scribe's event loop. It never waits but in `epoll_wait` and in writes to log files.

use super::container::Container;
use super::journal::Journal;
use super::protocol::{FromScribe, ToScribe};
use crate::keeper::IoSpec;
use crate::keeper::poll::{Peer, Poller, Received, Token};
use linux::namespace::{self, NamespaceKind};
use linux::socket::Message;
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Batches written between two looks at the sockets.
const TURN: usize = 16;

/// How long a stream that can't go on (full disk, client behind, a line without its end) is left alone.
const PAUSE: Duration = Duration::from_millis(200);

/// What a watched descriptor is.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Keeper,
    Output { id: String, stream: usize },
    Client { id: String },
    Stdin { id: String },
}

/// All of the scribe.
pub(super) struct Scribe {
    pub poller: Poller,
    pub sources: HashMap<Token, Source>,
    next_token: Token,
    keeper: Peer,
    keeper_watched_for: EventFlags,
    keeper_token: Token,
    pub journal: Option<Journal>,
    pub containers: HashMap<String, Container>,
    /// Streams that have something to look at.
    pub ready: VecDeque<(String, usize)>,
    /// Streams to look at again later.
    pub paused: VecDeque<(Instant, String, usize)>,
    /// The keeper's directory of containers.
    containers_dir: Option<OwnedFd>,
    pub formatted: Vec<u8>,
    buffer: Vec<u8>,
}

impl Scribe {
    pub(super) fn new(keeper: OwnedFd) -> linux::Result<Self> {
        let mut scribe = Scribe {
            poller: Poller::new()?,
            sources: HashMap::new(),
            next_token: 0,
            keeper: Peer::new(keeper),
            keeper_watched_for: EventFlags::IN,
            keeper_token: 0,
            journal: None,
            containers: HashMap::new(),
            ready: VecDeque::new(),
            paused: VecDeque::new(),
            containers_dir: None,
            formatted: Vec::new(),
            buffer: Vec::new(),
        };
        scribe.keeper_token = scribe.token(Source::Keeper);
        scribe
            .poller
            .add(&scribe.keeper.socket, scribe.keeper_token, EventFlags::IN)?;
        Ok(scribe)
    }

    /// Runs until the keeper is gone.
    ///
    /// # Errors
    /// `epoll_wait`'s.
    pub(super) fn run(&mut self) -> linux::Result<()> {
        loop {
            self.resume_paused();
            for (token, flags) in self.poller.wait(self.timeout())? {
                if self.handle(token, flags).is_break() {
                    return Ok(());
                }
            }
            for _ in 0..TURN {
                let Some((id, stream)) = self.ready.pop_front() else {
                    break;
                };
                self.advance(&id, stream);
            }
            if self.keeper.flush().is_err() {
                return Ok(());
            }
            self.watch_keeper();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        self.paused
            .front()
            .map(|(until, _, _)| until.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self, token: Token, flags: EventFlags) -> ControlFlow<()> {
        match self.sources.get(&token).cloned() {
            None => {}
            Some(Source::Keeper) => return self.handle_keeper(),
            Some(Source::Output { id, stream }) => self.make_ready(&id, stream),
            Some(Source::Client { id }) => self.handle_client(&id, token, flags),
            Some(Source::Stdin { id }) => self.give_input(&id),
        }
        ControlFlow::Continue(())
    }

    fn handle_keeper(&mut self) -> ControlFlow<()> {
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = self.keeper.recv(&mut buffer);
            self.buffer = buffer;
            match received {
                Received::Nothing => return ControlFlow::Continue(()),
                Received::End => return ControlFlow::Break(()),
                Received::Message(message) => self.handle_message(message),
            }
        }
    }

    fn handle_message(&mut self, message: Message) {
        let fds = message.fds;
        match serde_json::from_slice(&message.data) {
            Ok(ToScribe::Start) => self.start(fds),
            Ok(ToScribe::Take { id, io }) => self.take(id, io, fds),
            Ok(ToScribe::Drain { id }) => self.drain(&id),
            Ok(ToScribe::Drop { id }) => self.drop_container(&id),
            Ok(ToScribe::Reopen { id, n }) => {
                let error = self
                    .containers
                    .get_mut(&id)
                    .and_then(|container| container.reopen_log().err());
                self.tell_keeper(&FromScribe::Reopened {
                    n,
                    error: error.map(|cause| cause.to_string()),
                });
            }
            Ok(ToScribe::Attach { id }) => self.attach(&id, fds),
            Err(error) => self.log(format!("keeper's message makes no sense: {error}")),
        }
    }

    fn start(&mut self, fds: Vec<OwnedFd>) {
        let Ok([intent, containers_dir, mount_namespace]) = <[OwnedFd; 3]>::try_from(fds) else {
            self.log("started without journal".to_owned());
            return;
        };
        match Journal::lock(intent.into()) {
            Ok(journal) => self.journal = Some(journal),
            Err(cause) => self.log(format!("lock journal: {cause}")),
        }
        self.containers_dir = Some(containers_dir);
        if let Err(error) = namespace::join(&mount_namespace, &[NamespaceKind::Mount]) {
            self.log(format!(
                "{error}; log files are looked for in the keeper's mount namespace"
            ));
        }
    }

    fn take(&mut self, id: String, io: IoSpec, fds: Vec<OwnedFd>) {
        if self.containers.contains_key(&id) {
            return;
        }
        let tokens = [0, 1].map(|stream| {
            self.token(Source::Output {
                id: id.clone(),
                stream,
            })
        });
        let container = self
            .open_container_dir(&id)
            .and_then(|dir| Container::new(id.clone(), io, fds, tokens, dir.as_fd()));
        let mut container = match container {
            Ok(container) => container,
            Err(message) => {
                tokens
                    .iter()
                    .for_each(|token| drop(self.sources.remove(token)));
                self.log(format!("{id}: {message}"));
                return;
            }
        };
        if let Some(journal) = &self.journal
            && let Err(message) = container.finish_last_batch(journal)
        {
            self.log(format!("{id}: {message}"));
        }
        if let Err(cause) = container.reopen_log() {
            self.log(format!("{id}: open log: {cause}"));
        }
        let streams = container.outputs.len();
        if let Err(error) = container.watch(&self.poller) {
            self.log(format!("{id}: {error}"));
        }
        self.containers.insert(id.clone(), container);
        (0..streams).for_each(|stream| self.make_ready(&id, stream));
    }

    fn open_container_dir(&self, id: &str) -> Result<OwnedFd, String> {
        let containers = self
            .containers_dir
            .as_ref()
            .ok_or("started without directory")?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(containers, id, flags, Mode::empty())
            .map_err(|errno| format!("open container's directory: {errno}"))
    }

    fn drain(&mut self, id: &str) {
        match self.containers.get_mut(id) {
            Some(container) => {
                container.begin_drain();
                let streams = container.outputs.len();
                (0..streams).for_each(|stream| self.make_ready(id, stream));
            }
            None => self.tell_keeper(&FromScribe::Drained { id: id.to_owned() }),
        }
    }

    /// Writes what is left, and lets go.
    fn drop_container(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.begin_drain();
        for stream in 0..container.outputs.len() {
            // At most what one pipe and one spool hold.
            for _ in 0..TURN {
                self.advance(id, stream);
            }
        }
        let Some(container) = self.containers.remove(id) else {
            return;
        };
        for token in container.unwatch(&self.poller) {
            self.sources.remove(&token);
        }
    }

    pub(super) fn token(&mut self, source: Source) -> Token {
        self.next_token += 1;
        self.sources.insert(self.next_token, source);
        self.next_token
    }

    /// Queues a stream to be looked at, once.
    pub(super) fn make_ready(&mut self, id: &str, stream: usize) {
        let output = self
            .containers
            .get_mut(id)
            .and_then(|container| container.outputs.get_mut(stream));
        if let Some(output) = output
            && !output.queued
        {
            output.queued = true;
            self.ready.push_back((id.to_owned(), stream));
        }
    }

    /// Looks at a stream again after a while.
    pub(super) fn pause(&mut self, id: &str, stream: usize) {
        let output = self
            .containers
            .get_mut(id)
            .and_then(|container| container.outputs.get_mut(stream));
        if let Some(output) = output
            && !std::mem::replace(&mut output.paused, true)
        {
            self.paused
                .push_back((Instant::now() + PAUSE, id.to_owned(), stream));
        }
    }

    fn resume_paused(&mut self) {
        let now = Instant::now();
        while let Some((_, id, stream)) = self.paused.pop_front_if(|(until, _, _)| *until <= now) {
            if let Some(output) = self
                .containers
                .get_mut(&id)
                .and_then(|container| container.outputs.get_mut(stream))
            {
                output.paused = false;
            }
            self.make_ready(&id, stream);
        }
    }

    pub(super) fn tell_keeper(&mut self, message: &FromScribe) {
        // If the keeper is gone, the loop finds out.
        let _ = self
            .keeper
            .send(serde_json::to_vec(message).unwrap_or_default(), Vec::new());
    }

    fn watch_keeper(&mut self) {
        let interest = self.keeper.interest();
        if interest != self.keeper_watched_for
            && self
                .poller
                .modify(&self.keeper.socket, self.keeper_token, interest)
                .is_ok()
        {
            self.keeper_watched_for = interest;
        }
    }

    pub(super) fn log(&mut self, message: String) {
        self.tell_keeper(&FromScribe::Log { message });
    }
}
