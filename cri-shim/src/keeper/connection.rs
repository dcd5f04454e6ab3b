//! The task behind [`super::Client`]: it owns the socket, matches answers to requests, feeds subscribers, reconnects.

use super::client::{Config, Held};
use super::error::KeeperError;
use super::keepsakes::Keepsakes;
use super::poll::duplicate;
use super::protocol::{Answer, Call, Exit, FromKeeper, HeldRecord, Request, VERSION};
use super::spawn;
use crate::watch::watch;
use linux::socket;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// What a [`super::Client`] asks of the task.
#[derive(Debug)]
pub(super) enum Command {
    Call {
        request: Request,
        fds: Vec<OwnedFd>,
        reply: oneshot::Sender<Result<Reply, KeeperError>>,
    },
    Subscribe {
        from: u64,
        sender: mpsc::UnboundedSender<Exit>,
    },
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub answer: Answer,
    pub fds: Vec<OwnedFd>,
    pub held: Vec<Held>,
}

#[derive(Debug)]
struct Pending {
    reply: oneshot::Sender<Result<Reply, KeeperError>>,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Subscriber {
    next: u64,
    sender: mpsc::UnboundedSender<Exit>,
}

#[derive(Debug)]
struct Connection {
    commands: mpsc::UnboundedReceiver<Command>,
    pending: HashMap<u64, Pending>,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    subscribers: Vec<Subscriber>,
    next_n: u64,
    buffer: Vec<u8>,
    /// The request that asked the keeper to end.
    shutdown: Option<u64>,
    /// The keeper has agreed to end: its going is no reason to start another.
    ended: bool,
    keepsakes: Keepsakes,
}

/// Runs until the last client is dropped, or the keeper ends because it was asked to.
pub(super) async fn run(
    config: Config,
    first: OwnedFd,
    commands: mpsc::UnboundedReceiver<Command>,
    keepsakes: Keepsakes,
) {
    let mut connection = Connection {
        commands,
        pending: HashMap::new(),
        outbox: VecDeque::new(),
        subscribers: Vec::new(),
        next_n: 1,
        buffer: Vec::new(),
        shutdown: None,
        ended: false,
        keepsakes,
    };
    let mut socket = first;
    loop {
        match watch(socket) {
            Ok(watched) => {
                connection.greet();
                if connection.session(&watched).await.is_break() {
                    return;
                }
            }
            Err(cause) => tracing::error!(%cause, "watch keeper socket"),
        }
        connection.pending.clear(); // drops the senders: their callers see `Disconnected`
        connection.outbox.clear();
        // With no client left, or with its own consent, the keeper's end is no reason to start another.
        if connection.ended || connection.commands.is_closed() {
            return;
        }
        tracing::warn!("keeper connection ended, reconnecting");
        socket = reconnect(&config).await;
    }
}

/// Retries with back-off and jitter until there is a keeper again.
async fn reconnect(config: &Config) -> OwnedFd {
    let mut delay = Duration::from_millis(5);
    loop {
        let attempt = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || spawn::connect_or_spawn(&config)).await
        };
        match attempt {
            Ok(Ok(socket)) => return socket,
            Ok(Err(error)) => tracing::error!(%error, "reconnect to keeper"),
            Err(error) => tracing::error!(%error, "reconnect to keeper"),
        }
        tokio::time::sleep(delay.mul_f64(rand::random_range(0.5..1.5))).await;
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

impl Connection {
    /// First words on a new connection: the terminals that a new keeper lacks (one that has them takes no notice), and
    /// from where the subscribers want to go on.
    fn greet(&mut self) {
        for (id, terminal) in self.keepsakes.terminals() {
            match duplicate(&*terminal) {
                Ok(master) => drop(self.queue(Request::ReturnTerminal { id }, vec![master])),
                Err(error) => tracing::error!(%error, id, "give a terminal back to the keeper"),
            }
        }
        if let Some(from) = self
            .subscribers
            .iter()
            .map(|subscriber| subscriber.next)
            .min()
        {
            self.queue(Request::Subscribe { from }, Vec::new());
        }
    }

    async fn session(&mut self, socket: &AsyncFd<OwnedFd>) -> std::ops::ControlFlow<()> {
        loop {
            if self.flush(socket.get_ref()).is_err() {
                return std::ops::ControlFlow::Continue(());
            }
            tokio::select! {
                biased;
                ready = socket.readable() => {
                    let Ok(mut ready) = ready else { return std::ops::ControlFlow::Continue(()) };
                    match self.read_all(socket.get_ref()) {
                        Ok(true) => ready.clear_ready(),
                        Ok(false) => return std::ops::ControlFlow::Continue(()),
                        Err(error) => {
                            tracing::error!(%error, "read from keeper");
                            return std::ops::ControlFlow::Continue(());
                        }
                    }
                }
                ready = socket.writable(), if !self.outbox.is_empty() => {
                    let Ok(mut ready) = ready else { return std::ops::ControlFlow::Continue(()) };
                    match self.flush(socket.get_ref()) {
                        Ok(true) => {}
                        Ok(false) => ready.clear_ready(),
                        Err(_) => return std::ops::ControlFlow::Continue(()),
                    }
                }
                command = self.commands.recv() => match command {
                    None => return std::ops::ControlFlow::Break(()),
                    Some(command) => self.take(command),
                }
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Call {
                request,
                fds,
                reply,
            } => {
                let shutdown = matches!(request, Request::Shutdown);
                let n = self.queue(request, fds);
                if shutdown {
                    self.shutdown = Some(n);
                }
                self.pending.insert(
                    n,
                    Pending {
                        reply,
                        held: Vec::new(),
                    },
                );
            }
            Command::Subscribe { from, sender } => {
                self.subscribers.push(Subscriber { next: from, sender });
                self.queue(Request::Subscribe { from }, Vec::new());
            }
        }
    }

    fn queue(&mut self, request: Request, mut fds: Vec<OwnedFd>) -> u64 {
        let n = self.next_n;
        self.next_n += 1;
        while fds.len() > socket::MAX_FDS {
            let rest = fds.split_off(socket::MAX_FDS);
            let ahead = Call {
                n: 0,
                request: Request::Fds,
            };
            self.outbox
                .push_back((encode(&ahead), std::mem::replace(&mut fds, rest)));
        }
        self.outbox.push_back((encode(&Call { n, request }), fds));
        n
    }

    /// Sends what is queued; `false` if the keeper is behind.
    fn flush(&mut self, socket: &OwnedFd) -> linux::Result<bool> {
        while let Some((data, fds)) = self.outbox.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send(socket, data, &borrowed) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(error) if error.is(rustix::io::Errno::AGAIN.raw_os_error()) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Handles all that has arrived; `false` at the connection's end.
    fn read_all(&mut self, socket: &OwnedFd) -> linux::Result<bool> {
        loop {
            let message = match socket::recv(socket, &mut self.buffer) {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(false),
                Err(error) if error.is(rustix::io::Errno::AGAIN.raw_os_error()) => return Ok(true),
                Err(error) => return Err(error),
            };
            match serde_json::from_slice(&message.data) {
                Ok(message_in) => self.handle(message_in, message.fds),
                Err(error) => tracing::error!(%error, "keeper's message makes no sense"),
            }
        }
    }

    fn handle(&mut self, message: FromKeeper, fds: Vec<OwnedFd>) {
        match message {
            FromKeeper::Reply { n, result } => {
                let Some(pending) = self.pending.remove(&n) else {
                    return;
                };
                if let Ok(Answer::Hello { version, pid, .. }) = &result
                    && *version != VERSION
                {
                    tracing::warn!(version, pid, "keeper speaks another version");
                }
                self.ended |= self.shutdown == Some(n) && result.is_ok();
                let reply = result.map(|answer| Reply {
                    answer,
                    fds,
                    held: pending.held,
                });
                // A caller that went away wants no answer.
                let _ = pending.reply.send(reply.map_err(KeeperError::from));
            }
            FromKeeper::Held { n, held } => {
                if let Some(pending) = self.pending.get_mut(&n) {
                    let HeldRecord {
                        id,
                        pid,
                        launching,
                        exit,
                    } = held;
                    let exit = exit.map(|exit| learnt(&self.keepsakes, exit));
                    let mut fds = fds.into_iter().map(Arc::new);
                    let (pidfd, terminal) = (fds.next(), fds.next());
                    if let Some(pidfd) = &pidfd {
                        self.keepsakes.keep(&id, pidfd, terminal.clone());
                    }
                    pending.held.push(Held {
                        id,
                        pid,
                        pidfd,
                        terminal,
                        launching,
                        exit,
                    });
                }
            }
            FromKeeper::Exit(exit) => self.tell(&learnt(&self.keepsakes, exit)),
            FromKeeper::Log { message } => tracing::warn!(keeper = true, "{message}"),
        }
    }

    fn tell(&mut self, exit: &Exit) {
        self.subscribers.retain_mut(|subscriber| {
            if exit.exec_id.is_none() {
                if exit.seq < subscriber.next {
                    return true; // a replay for another subscriber
                }
                subscriber.next = exit.seq + 1;
            }
            subscriber.sender.send(exit.clone()).is_ok()
        });
    }
}

/// An end that the keeper did not see may be told by the pidfd that we hold.
fn learnt(keepsakes: &Keepsakes, mut exit: Exit) -> Exit {
    if exit.status.unknown
        && let Some(status) = keepsakes.status(&exit.id)
    {
        exit.status = status;
    }
    exit
}

fn encode(call: &Call) -> Vec<u8> {
    // Serialising these types can't fail: string keys, no foreign serialisers. An empty message would be refused.
    serde_json::to_vec(call).unwrap_or_default()
}
