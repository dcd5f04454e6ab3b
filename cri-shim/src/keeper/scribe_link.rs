//! The keeper's side of the scribe: starting it, restarting it with all that it needs, and what it has to say.

use super::error::Refusal;
use super::held::{Container, ContainerState};
use super::poll::{Peer, Received, Token, duplicate, kernel};
use super::protocol::{Answer, ExitStatus};
use super::server::{Keeper, Outcome, Source, Waiter, now};
use super::stdio::Streams;
use super::upgrade::{Arrived, Luggage, Place, TravellingWaiter};
use crate::scribe::protocol::{FromScribe, ToScribe};
use linux::socket;
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const FIRST_RESTART_DELAY: Duration = Duration::from_millis(10);
const LONGEST_RESTART_DELAY: Duration = Duration::from_secs(10);

/// The scribe, running or not.
#[derive(Debug)]
pub(super) struct ScribeLink {
    running: Option<Running>,
    /// Not before this moment.
    restart_at: Instant,
    delay: Duration,
    /// Where log files are: the keeper has a mount namespace of its own.
    mount_namespace: OwnedFd,
    reopens: HashMap<u64, (String, Waiter)>,
    next_reopen: u64,
}

/// The link as it travels to the next program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScribeState {
    running: Option<(i32, Place)>,
    mount_namespace: Place,
    reopens: Vec<(u64, String, TravellingWaiter)>,
    next_reopen: u64,
}

impl ScribeState {
    /// A link without its scribe, which [`Keeper::unpack_scribe`] adds.
    pub(super) fn mount_namespace(&self, arrived: &mut Arrived) -> Result<ScribeLink, String> {
        Ok(ScribeLink::new(arrived.take(self.mount_namespace)?))
    }
}

#[derive(Debug)]
struct Running {
    pid: i32,
    peer: Peer,
    token: Token,
    watched_for: EventFlags,
    since: Instant,
}

impl ScribeLink {
    /// None runs until the event loop does.
    pub(super) fn new(mount_namespace: OwnedFd) -> Self {
        ScribeLink {
            running: None,
            restart_at: Instant::now(),
            delay: FIRST_RESTART_DELAY,
            mount_namespace,
            reopens: HashMap::new(),
            next_reopen: 1,
        }
    }

    /// When a restart is due.
    pub(super) fn restart_at(&self) -> Option<Instant> {
        if self.running.is_some() {
            None
        } else {
            Some(self.restart_at)
        }
    }

    /// No message to it is under way.
    pub(super) fn is_settled(&self) -> bool {
        self.running
            .as_ref()
            .is_none_or(|running| running.peer.backlog() == 0)
    }

    /// For the next program.
    pub(super) fn pack<'a>(
        &'a self,
        luggage: &mut Luggage<'a>,
        travelling: impl Fn(&[Waiter]) -> Vec<TravellingWaiter>,
    ) -> ScribeState {
        let reopens = self.reopens.iter();
        ScribeState {
            running: self
                .running
                .as_ref()
                .map(|running| (running.pid, luggage.put(&running.peer.socket))),
            mount_namespace: luggage.put(&self.mount_namespace),
            reopens: reopens
                .filter_map(|(n, (id, waiter))| {
                    Some((*n, id.clone(), travelling(&[*waiter]).pop()?))
                })
                .collect(),
            next_reopen: self.next_reopen,
        }
    }

    /// Whether this is its pid.
    pub(super) fn is(&self, pid: i32) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.pid == pid)
    }
}

impl Keeper {
    pub(super) fn keep_scribe_running(&mut self) {
        if self.scribe.running.is_some() || self.scribe.restart_at > Instant::now() {
            return;
        }
        if let Err(message) = self.start_scribe() {
            self.log(format!("start scribe: {message}"));
            self.delay_scribe();
        }
    }

    /// Goes on with the scribe that the program before this one had.
    pub(super) fn unpack_scribe(
        &mut self,
        state: ScribeState,
        arrived: &mut Arrived,
        here: &impl Fn(Vec<TravellingWaiter>) -> Vec<Waiter>,
    ) -> Result<(), String> {
        self.scribe.next_reopen = state.next_reopen;
        for (n, id, waiter) in state.reopens {
            if let Some(waiter) = here(vec![waiter]).pop() {
                self.scribe.reopens.insert(n, (id, waiter));
            }
        }
        if let Some((pid, place)) = state.running {
            let socket = arrived.take(place)?;
            self.run_scribe(pid, socket)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn run_scribe(&mut self, pid: i32, socket: OwnedFd) -> linux::Result<()> {
        let token = self.token(Source::Scribe);
        self.poller.add(&socket, token, EventFlags::IN)?;
        self.scribe.running = Some(Running {
            pid,
            peer: Peer::new(socket),
            token,
            watched_for: EventFlags::IN,
            since: Instant::now(),
        });
        Ok(())
    }

    fn delay_scribe(&mut self) {
        // Half to one and a half of the delay; the clock's low digits are random enough for one process.
        let jitter = f64::from(Instant::now().elapsed().subsec_nanos() % 1000) / 1000.0;
        self.scribe.restart_at = Instant::now() + self.scribe.delay.mul_f64(0.5 + jitter);
        self.scribe.delay = (self.scribe.delay * 2).min(LONGEST_RESTART_DELAY);
    }

    /// Starts it and tells it everything anew.
    fn start_scribe(&mut self) -> Result<(), String> {
        let (ours, theirs) = socket::pair().map_err(|error| error.to_string())?;
        let child = Command::new("/proc/self/exe")
            .arg("scribe")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear()
            .spawn()
            .map_err(|error| error.to_string())?;
        self.run_scribe(child.id() as i32, ours)
            .map_err(|error| error.to_string())?;
        let namespace = duplicate(&self.scribe.mount_namespace);
        let fds = [
            self.open_intent(),
            duplicate(&self.containers_dir),
            namespace,
        ];
        let fds = fds
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        self.tell_scribe(&ToScribe::Start, fds);
        self.give_all_to_scribe();
        Ok(())
    }

    /// What the scribe is about to write, in a file that survives both of us. Opened anew for each scribe: it locks it,
    /// and a lock belongs to the open file.
    fn open_intent(&self) -> linux::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(
            &self.containers_dir,
            ".intent",
            flags,
            Mode::from_raw_mode(0o600),
        )
        .map_err(|errno| kernel("open the scribe's journal", errno))
    }

    fn give_all_to_scribe(&mut self) {
        let mut messages = Vec::new();
        for (id, container) in &self.containers {
            if matches!(container.state, ContainerState::Exited(_)) {
                continue;
            }
            messages.extend(take(id, container));
            if matches!(container.state, ContainerState::Draining(_)) {
                messages.push((ToScribe::Drain { id: id.clone() }, Vec::new()));
            }
        }
        for (n, (id, _)) in &self.scribe.reopens {
            messages.push((
                ToScribe::Reopen {
                    id: id.clone(),
                    n: *n,
                },
                Vec::new(),
            ));
        }
        for (message, fds) in messages {
            self.tell_scribe(&message, fds);
        }
    }

    pub(super) fn give_to_scribe(&mut self, id: &str, container: &Container) {
        if let Some((message, fds)) = take(id, container) {
            self.tell_scribe(&message, fds);
        }
    }

    /// Asks for a container's last output to be written. A scribe that is down is told when it is back.
    pub(super) fn ask_scribe_to_drain(&mut self, id: &str) {
        self.tell_scribe(&ToScribe::Drain { id: id.to_owned() }, Vec::new());
    }

    pub(super) fn tell_scribe_to_drop(&mut self, id: &str) {
        self.tell_scribe(&ToScribe::Drop { id: id.to_owned() }, Vec::new());
    }

    pub(super) fn reopen_log(&mut self, waiter: Waiter, id: &str) -> Outcome {
        let container = self
            .containers
            .get(id)
            .ok_or_else(|| Refusal::not_found(id))?;
        if !container.is_alive() {
            return Err(Refusal::state(id, "has ended"));
        }
        if container
            .record
            .io
            .as_ref()
            .is_none_or(|io| io.log_path.is_none())
        {
            return now(Answer::Done);
        }
        let n = self.scribe.next_reopen;
        self.scribe.next_reopen += 1;
        self.scribe.reopens.insert(n, (id.to_owned(), waiter));
        self.tell_scribe(
            &ToScribe::Reopen {
                id: id.to_owned(),
                n,
            },
            Vec::new(),
        );
        Ok(None)
    }

    pub(super) fn attach(&mut self, id: &str) -> Outcome {
        let container = self
            .containers
            .get(id)
            .ok_or_else(|| Refusal::not_found(id))?;
        if !container.is_alive() {
            return Err(Refusal::state(id, "has ended"));
        }
        let stdin = match &container.streams {
            Streams::None | Streams::LostTerminal => {
                return Err(Refusal::state(id, "has no streams"));
            }
            Streams::Fifos { stdin, .. } => stdin.is_some(),
            Streams::Terminal(_) => container.record.io.as_ref().is_some_and(|io| io.stdin),
        };
        let terminal = container.streams.master().is_some();
        let (ours, theirs) = socket::pair()?;
        self.tell_scribe(&ToScribe::Attach { id: id.to_owned() }, vec![ours]);
        Ok(Some((Answer::Attached { terminal, stdin }, vec![theirs])))
    }

    fn tell_scribe(&mut self, message: &ToScribe, fds: Vec<OwnedFd>) {
        let Some(running) = &mut self.scribe.running else {
            return;
        };
        let data = serde_json::to_vec(message).unwrap_or_default();
        // If it is gone, its end is reaped, and its successor is told everything anew.
        let _ = running.peer.send(data, fds);
        self.watch_scribe();
    }

    fn watch_scribe(&mut self) {
        let Some(running) = &mut self.scribe.running else {
            return;
        };
        let interest = running.peer.interest();
        if interest != running.watched_for
            && self
                .poller
                .modify(&running.peer.socket, running.token, interest)
                .is_ok()
        {
            running.watched_for = interest;
        }
    }

    pub(super) fn handle_scribe(&mut self) {
        let mut buffer = Vec::new();
        loop {
            let Some(running) = &mut self.scribe.running else {
                return;
            };
            // A failure to send shows as its end.
            let _ = running.peer.flush();
            match running.peer.recv(&mut buffer) {
                Received::Message(message) => match serde_json::from_slice(&message.data) {
                    Ok(message) => self.handle_scribe_message(message),
                    Err(error) => self.log(format!("scribe's message makes no sense: {error}")),
                },
                Received::Nothing => break,
                Received::End => {
                    // Its end is about to be reaped. One that closed its socket and lives is of no use.
                    self.stop_watching_scribe();
                    return;
                }
            }
        }
        self.watch_scribe();
    }

    fn stop_watching_scribe(&mut self) {
        if let Some(running) = &mut self.scribe.running {
            self.poller.remove(&running.peer.socket);
            self.sources.remove(&running.token);
            if let Ok(pidfd) = linux::pidfd::open(running.pid) {
                // ESRCH: it has ended, as it should.
                let _ = linux::pidfd::kill(pidfd);
            }
        }
    }

    fn handle_scribe_message(&mut self, message: FromScribe) {
        match message {
            FromScribe::Drained { id } => self.drained(&id),
            FromScribe::Reopened { n, error } => {
                let Some((id, waiter)) = self.scribe.reopens.remove(&n) else {
                    return;
                };
                let result = match error {
                    None => Ok((Answer::Done, Vec::new())),
                    Some(error) => Err(Refusal::failed(format!("reopen log of {id}: {error}"))),
                };
                self.answer(waiter, result);
            }
            FromScribe::StdinClosed { id } => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.streams.close_stdin();
                }
            }
            FromScribe::Log { message } => self.log(format!("scribe: {message}")),
        }
    }

    /// The scribe has been reaped.
    pub(super) fn scribe_ended(&mut self, status: ExitStatus) {
        self.handle_scribe(); // what it said last
        let Some(running) = self.scribe.running.take() else {
            return;
        };
        self.poller.remove(&running.peer.socket);
        self.sources.remove(&running.token);
        self.log(format!(
            "scribe ended with code {}, starting another",
            status.code
        ));
        if running.since.elapsed() > LONGEST_RESTART_DELAY {
            self.scribe.delay = FIRST_RESTART_DELAY;
            self.scribe.restart_at = Instant::now();
        } else {
            self.delay_scribe();
        }
    }
}

fn take(id: &str, container: &Container) -> Option<(ToScribe, Vec<OwnedFd>)> {
    let io = container.record.io.clone()?;
    let fds = container.streams.duplicates().ok()??;
    Some((
        ToScribe::Take {
            id: id.to_owned(),
            io,
        },
        fds,
    ))
}
