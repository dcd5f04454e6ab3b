//! The keeper's event loop: connections in, requests carried out, answers and exits out. Nothing in it waits, except in
//! `epoll_wait`.

use super::error::Refusal;
use super::held::{Container, Exec, Who};
use super::poll::{Peer, Poller, Received, Token, kernel};
use super::protocol::{Answer, Call, FromKeeper, Request, VERSION};
use super::scribe_link::ScribeLink;
use super::upgrade::program_identity;
use linux::socket;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A client that reads nothing for this many messages is cut off; it comes back and resumes by sequence number.
const MAX_BACKLOG: usize = 16 * 1024;

/// Messages for the operator that wait for a client.
const MAX_LOGS: usize = 64;

/// Where an answer goes: the connection and the request's number.
pub(super) type Waiter = (Token, u64);

/// What a request comes to: an answer, an answer later, or a refusal.
pub(super) type Outcome = Result<Option<(Answer, Vec<OwnedFd>)>, Refusal>;

/// What a watched descriptor is.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Listener,
    Signals,
    Scribe,
    Client,
    /// The status descriptor of a launch under way.
    Status(Who),
    /// The pidfd of a container that is not our child.
    Adopted(String),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub peer: Peer,
    pub subscribed: bool,
    /// Descriptors that came ahead of their request.
    surplus: Vec<OwnedFd>,
    watched_for: EventFlags,
}

/// All of the keeper.
pub(super) struct Keeper {
    pub poller: Poller,
    pub sources: HashMap<Token, Source>,
    next_token: Token,
    pub listener: OwnedFd,
    signals: SignalFd,
    pub connections: HashMap<Token, Connection>,
    /// The directory with one directory a container.
    pub containers_dir: OwnedFd,
    pub containers: BTreeMap<String, Container>,
    pub execs: BTreeMap<String, Exec>,
    /// Our children that are a container's or an exec's first process.
    pub children: HashMap<i32, Who>,
    pub scribe: ScribeLink,
    /// Containers whose end waits for their last output to be written, and until when. In order of time.
    pub drains: VecDeque<(Instant, String)>,
    /// Adopted containers that have ended and are not reaped, and until when their status is waited for.
    pub unreaped: VecDeque<(Instant, Token, String)>,
    pub next_seq: u64,
    /// Tells this keeper from its predecessors.
    pub generation: u64,
    logs: VecDeque<String>,
    buffer: Vec<u8>,
}

/// What a keeper starts with.
pub(super) struct Parts {
    pub listener: OwnedFd,
    pub containers_dir: OwnedFd,
    pub scribe: ScribeLink,
    pub generation: u64,
    pub next_seq: u64,
}

impl Parts {
    /// For a keeper that follows none, or a dead one: it starts later, so its sequence numbers are higher than all that
    /// were given out before.
    pub(super) fn fresh(listener: OwnedFd, containers_dir: OwnedFd, scribe: ScribeLink) -> Self {
        let now = boot_time_ns();
        Parts {
            listener,
            containers_dir,
            scribe,
            generation: now,
            next_seq: now,
        }
    }
}

impl Connection {
    /// Nothing of it is half sent or half received.
    pub(super) fn is_settled(&self) -> bool {
        self.peer.backlog() == 0 && self.surplus.is_empty()
    }
}

impl Keeper {
    /// With nothing held yet, and no scribe running.
    ///
    /// # Errors
    /// `signalfd`'s, `epoll_create`'s.
    pub(super) fn new(parts: Parts) -> linux::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.add(Signal::SIGTERM);
        let signals = mask
            .thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            })
            .map_err(|errno| linux::Error::new("signalfd", "", errno as i32))?;
        let mut keeper = Keeper {
            poller: Poller::new()?,
            sources: HashMap::new(),
            next_token: 0,
            listener: parts.listener,
            signals,
            connections: HashMap::new(),
            containers_dir: parts.containers_dir,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            children: HashMap::new(),
            scribe: parts.scribe,
            drains: VecDeque::new(),
            unreaped: VecDeque::new(),
            next_seq: parts.next_seq,
            generation: parts.generation,
            logs: VecDeque::new(),
            buffer: Vec::new(),
        };
        let token = keeper.token(Source::Listener);
        keeper.poller.add(&keeper.listener, token, EventFlags::IN)?;
        let token = keeper.token(Source::Signals);
        keeper.poller.add(&keeper.signals, token, EventFlags::IN)?;
        Ok(keeper)
    }

    /// Runs until a shutdown.
    ///
    /// # Errors
    /// `epoll_wait`'s, which has none on a correct descriptor.
    pub(super) fn run(&mut self) -> linux::Result<()> {
        loop {
            self.keep_scribe_running();
            self.publish_overdue();
            for (token, _) in self.poller.wait(self.timeout())? {
                if self.handle(token).is_break() {
                    return Ok(());
                }
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let drain = self.drains.front().map(|(deadline, _)| *deadline);
        let unreaped = self.unreaped.front().map(|(deadline, _, _)| *deadline);
        let deadline = [drain, unreaped, self.scribe.restart_at()]
            .into_iter()
            .flatten()
            .min()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    fn handle(&mut self, token: Token) -> ControlFlow<()> {
        match self.sources.get(&token).cloned() {
            // An earlier event of the same round did away with it.
            None => {}
            Some(Source::Listener) => self.accept(),
            Some(Source::Signals) => return self.handle_signals(),
            Some(Source::Scribe) => self.handle_scribe(),
            Some(Source::Client) => return self.handle_client(token),
            Some(Source::Status(who)) => self.handle_status(&who),
            Some(Source::Adopted(id)) => self.handle_adopted_end(token, &id),
        }
        ControlFlow::Continue(())
    }

    /// A token for a descriptor that is about to be watched.
    pub(super) fn token(&mut self, source: Source) -> Token {
        self.next_token += 1;
        self.sources.insert(self.next_token, source);
        self.next_token
    }

    fn accept(&mut self) {
        match socket::accept(&self.listener) {
            Ok(Some(socket)) => {
                if let Err(error) = self.add_connection(socket, false) {
                    self.log(format!("watch a connection: {error}"));
                }
            }
            Ok(None) => {}
            Err(error) => self.log(error.to_string()),
        }
    }

    pub(super) fn add_connection(
        &mut self,
        socket: OwnedFd,
        subscribed: bool,
    ) -> linux::Result<Token> {
        let token = self.token(Source::Client);
        self.poller.add(&socket, token, EventFlags::IN)?;
        let peer = Peer::new(socket);
        let connection = Connection {
            peer,
            subscribed,
            surplus: Vec::new(),
            watched_for: EventFlags::IN,
        };
        self.connections.insert(token, connection);
        while let Some(message) = self.logs.pop_front() {
            self.send(token, &FromKeeper::Log { message }, Vec::new());
        }
        Ok(token)
    }

    fn handle_signals(&mut self) -> ControlFlow<()> {
        let mut terminate = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            terminate |= signal.ssi_signo == Signal::SIGTERM as u32;
        }
        self.reap();
        // Whoever asks politely gets no more than a client would: not while containers are held.
        if terminate && self.is_empty() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.containers.is_empty() && self.execs.is_empty()
    }

    fn handle_client(&mut self, token: Token) -> ControlFlow<()> {
        // A bounded number, so that one client can't starve the rest.
        for _ in 0..32 {
            let mut buffer = std::mem::take(&mut self.buffer);
            let Some(connection) = self.connections.get_mut(&token) else {
                break;
            };
            let received = connection.peer.recv(&mut buffer);
            self.buffer = buffer;
            match received {
                Received::Nothing => break,
                Received::End => {
                    self.drop_connection(token);
                    return ControlFlow::Continue(());
                }
                Received::Message(message) => self.handle_call(token, message)?,
            }
        }
        self.flush(token);
        ControlFlow::Continue(())
    }

    fn handle_call(&mut self, token: Token, message: socket::Message) -> ControlFlow<()> {
        let call: Call = match serde_json::from_slice(&message.data) {
            Ok(call) => call,
            Err(error) => {
                self.refuse_unreadable(token, &message.data, &error);
                return ControlFlow::Continue(());
            }
        };
        let Some(connection) = self.connections.get_mut(&token) else {
            return ControlFlow::Continue(());
        };
        if matches!(call.request, Request::Fds) {
            connection.surplus.extend(message.fds);
            return ControlFlow::Continue(());
        }
        let mut fds = std::mem::take(&mut connection.surplus);
        fds.extend(message.fds);
        let shutdown = matches!(call.request, Request::Shutdown);
        let result = match self.carry_out((token, call.n), call.request, fds) {
            Ok(None) => return ControlFlow::Continue(()),
            Ok(Some((answer, fds))) => {
                self.send(
                    token,
                    &FromKeeper::Reply {
                        n: call.n,
                        result: Ok(answer),
                    },
                    fds,
                );
                if shutdown {
                    return ControlFlow::Break(());
                } else {
                    return ControlFlow::Continue(());
                }
            }
            Err(refusal) => Err(refusal),
        };
        self.send(token, &FromKeeper::Reply { n: call.n, result }, Vec::new());
        ControlFlow::Continue(())
    }

    /// A newer client may use words that we don't know: it must get an answer, not silence.
    fn refuse_unreadable(&mut self, token: Token, data: &[u8], error: &serde_json::Error) {
        #[derive(serde::Deserialize)]
        struct Number {
            n: u64,
        }
        let message = format!("request not understood by keeper version {VERSION}: {error}");
        match serde_json::from_slice::<Number>(data) {
            Ok(Number { n }) => self.answer((token, n), Err(Refusal::failed(message))),
            Err(_) => self.drop_connection(token),
        }
    }

    fn carry_out(&mut self, waiter: Waiter, request: Request, fds: Vec<OwnedFd>) -> Outcome {
        match request {
            Request::Fds => Ok(None),
            Request::Hello { .. } => {
                let pid = std::process::id() as i32;
                let program = rustix::fs::open(
                    "/proc/self/exe",
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(|errno| kernel("open own program", errno))
                .and_then(program_identity)?;
                now(Answer::Hello {
                    version: VERSION,
                    pid,
                    generation: self.generation,
                    program,
                })
            }
            Request::Launch {
                id,
                io,
                size,
                memory_events,
            } => self.launch(waiter, id, io, size, memory_events, fds),
            Request::LaunchPodInit { id, user } => self.launch_pod_init(waiter, id, user, fds),
            Request::Exec {
                container,
                exec,
                terminal,
                size,
            } => self.exec(waiter, container, exec, terminal, size, fds),
            Request::ExecExit { exec } => self.exec_exit(waiter, &exec),
            Request::Subscribe { from } => self.subscribe(waiter.0, from),
            Request::List => self.list(waiter),
            Request::Forget { id } => self.forget(&id),
            Request::ReopenLog { id } => self.reopen_log(waiter, &id),
            Request::Attach { id } => self.attach(&id),
            Request::Resize { id, width, height } => self.resize(&id, width, height),
            Request::ReturnTerminal { id } => self.return_terminal(&id, fds),
            Request::Upgrade => self.upgrade(waiter, fds),
            Request::Shutdown if self.is_empty() => now(Answer::Done),
            Request::Shutdown => {
                let reason = format!(
                    "{} containers and execs are held",
                    self.containers.len() + self.execs.len()
                );
                Err(Refusal::state("keeper", &reason))
            }
        }
    }

    fn subscribe(&mut self, token: Token, from: u64) -> Outcome {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.subscribed = true;
        }
        let mut ended: Vec<_> = self
            .containers
            .values()
            .filter_map(|container| container.exit().filter(|exit| exit.seq >= from).cloned())
            .collect();
        ended.sort_by_key(|exit| exit.seq);
        for exit in ended {
            self.send(token, &FromKeeper::Exit(exit), Vec::new());
        }
        now(Answer::Done)
    }

    fn list(&mut self, (token, n): Waiter) -> Outcome {
        let mut messages = Vec::new();
        for (id, container) in &self.containers {
            let (held, fds) = container.describe(id)?;
            messages.push((FromKeeper::Held { n, held }, fds));
        }
        for (message, fds) in messages {
            self.send(token, &message, fds);
        }
        now(Answer::Done)
    }

    /// Answers a request that waited.
    pub(super) fn answer(
        &mut self,
        (token, n): Waiter,
        result: Result<(Answer, Vec<OwnedFd>), Refusal>,
    ) {
        let (result, fds) = match result {
            Ok((answer, fds)) => (Ok(answer), fds),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        self.send(token, &FromKeeper::Reply { n, result }, fds);
    }

    /// Tells all subscribers.
    pub(super) fn tell_subscribers(&mut self, message: &FromKeeper) {
        let tokens: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, c)| c.subscribed)
            .map(|(token, _)| *token)
            .collect();
        for token in tokens {
            self.send(token, message, Vec::new());
        }
    }

    /// Tells the operator, through the clients that are or will be connected: the keeper writes no file.
    pub(super) fn log(&mut self, message: String) {
        let tokens: Vec<_> = self.connections.keys().copied().collect();
        if tokens.is_empty() {
            self.logs.truncate(MAX_LOGS - 1);
            self.logs.push_back(message);
            return;
        }
        for token in tokens {
            self.send(
                token,
                &FromKeeper::Log {
                    message: message.clone(),
                },
                Vec::new(),
            );
        }
    }

    fn send(&mut self, token: Token, message: &FromKeeper, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let data = serde_json::to_vec(message).unwrap_or_default();
        if connection.peer.send(data, fds).is_err() || connection.peer.backlog() > MAX_BACKLOG {
            self.drop_connection(token);
        } else {
            self.watch_connection(token);
        }
    }

    fn flush(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if connection.peer.flush().is_err() {
            self.drop_connection(token);
        } else {
            self.watch_connection(token);
        }
    }

    /// Watches for writability exactly while something waits to be sent.
    fn watch_connection(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let interest = connection.peer.interest();
        if interest != connection.watched_for
            && self
                .poller
                .modify(&connection.peer.socket, token, interest)
                .is_ok()
        {
            connection.watched_for = interest;
        }
    }

    fn drop_connection(&mut self, token: Token) {
        self.sources.remove(&token);
        if let Some(connection) = self.connections.remove(&token) {
            self.poller.remove(&connection.peer.socket);
        }
    }
}

/// An answer at once, without descriptors.
pub(super) fn now(answer: Answer) -> Outcome {
    Ok(Some((answer, Vec::new())))
}

/// Nanoseconds since the boot, sleep included.
fn boot_time_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}
