//! The daemon: gets leases for the plugin, and renews them until it is told to release them.
//!
//! ```text
//! ADD -> acquire -> Bound --T1--> Renewing --T2--> Rebinding --end--> interface down, forgotten
//!                     ^ granted ----'---------------'   a refusal ends it at once
//! ```
//!
//! One thread sleeps until the next lease is due; a thread is started for what it then takes, and ends with it. No thread
//! stays in a namespace, and none is held: a container's namespace ends when the container does, and its lease is then
//! forgotten.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use linux::clock::since_boot;

use super::client::{Patience, Renewal};
use super::held::{self, Held, Place};
use super::options::Options;
use super::{Call, Reply};
use crate::protocol::{AttachmentKey, Command, Error, Request, all_of};

/// How a daemon is set up; upstream's flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub socket: PathBuf,
    /// Put before the paths of namespaces, for a daemon in a container that sees the host's files below a folder.
    pub host_prefix: String,
    /// Servers are asked to answer to all stations of the link.
    pub broadcast: bool,
    /// For the answer to one message.
    pub timeout: Duration,
    /// Between two attempts at most.
    pub resend_max: Duration,
    /// Until an ADD gives up.
    pub resend_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: super::options::SOCKET.into(),
            host_prefix: String::new(),
            broadcast: false,
            timeout: Duration::from_secs(10),
            resend_max: Duration::from_secs(62),
            resend_timeout: Duration::from_secs(208),
        }
    }
}

/// A daemon that serves until it is dropped.
pub struct Daemon {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    folder: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    leases: BTreeMap<Key, Entry>,
    /// The number of the last entry.
    last: u64,
    stopped: bool,
}

/// Network and attachment.
type Key = (String, AttachmentKey);

struct Entry {
    held: Held,
    /// Tells it from another entry under the same key.
    number: u64,
    /// When it is looked at next, since the machine's start; not while somebody does.
    due: Option<Duration>,
}

/// A request is a configuration and its environment.
const LONGEST_CALL: u64 = 4 << 20;
/// Between two attempts at least (RFC 2131 §4.4.5), unless the next phase begins before.
const SHORTEST_RETRY: Duration = Duration::from_secs(60);

impl Daemon {
    /// Starts to listen and takes up the leases of a daemon that ended.
    ///
    /// # Errors
    /// If another daemon listens there, or the socket can't be made.
    pub fn start(config: Config) -> Result<Self, Error> {
        let listener = listen(&config.socket)?;
        let folder = held::folder(&config.socket);
        let mut state = State::default();
        for held in held::load(&folder) {
            state.insert(held);
        }
        let shared = Arc::new(Shared {
            config,
            folder,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let (keeper, server) = (Arc::clone(&shared), Arc::clone(&shared));
        start_thread("dhcp-renew", move || keeper.renew_when_due())?;
        start_thread("dhcp-serve", move || server.serve(&listener))?;
        Ok(Self { shared })
    }
}

impl Drop for Daemon {
    /// Leases stay, for the next daemon.
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_all();
        // Ends the wait for the next caller.
        let _ = UnixStream::connect(&self.shared.config.socket);
        let _ = fs::remove_file(&self.shared.config.socket);
    }
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|cause| Error::io(format!("start thread {name}: {cause}")))
}

/// A socket that its daemon left behind is replaced.
fn listen(socket: &Path) -> Result<UnixListener, Error> {
    let failed = |cause: io::Error| Error::io(format!("listen at {}: {cause}", socket.display()));
    if UnixStream::connect(socket).is_ok() {
        return Err(failed(io::Error::other("another daemon listens there")));
    }
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    match fs::remove_file(socket) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(cause)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(socket, private).map_err(failed)?;
    Ok(listener)
}

impl State {
    fn insert(&mut self, held: Held) {
        self.last += 1;
        let key = (held.network.clone(), held.attachment());
        let entry = Entry {
            due: Some(held.lease.renewal),
            number: self.last,
            held,
        };
        self.leases.insert(key, entry);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            if self.state().stopped {
                return;
            }
            let Ok(stream) = stream else {
                // No descriptors left, most likely: what is being served gives some back.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            let shared = Arc::clone(self);
            if let Err(error) = start_thread("dhcp-call", move || shared.answer(stream)) {
                eprintln!("dhcp: {error}");
            }
        }
    }

    fn answer(&self, mut stream: UnixStream) {
        let mut text = Vec::new();
        let read = (&stream).take(LONGEST_CALL).read_to_end(&mut text);
        if matches!(read, Ok(0)) {
            // Somebody asked whether there is a daemon.
            return;
        }
        let parse = |_| serde_json::from_slice::<Call>(&text).map_err(io::Error::from);
        let reply = match read.and_then(parse) {
            Ok(call) => self.carry_out(&call),
            Err(cause) => {
                let error = Error::decode(format!("read the plugin's request: {cause}"));
                reply(1, error.report(None))
            }
        };
        let written = serde_json::to_vec(&reply)
            .map_err(io::Error::from)
            .and_then(|text| stream.write_all(&text));
        if let Err(cause) = written {
            // The plugin was killed; its runtime calls DEL.
            eprintln!("dhcp: answer a plugin: {cause}");
        }
    }

    fn carry_out(&self, call: &Call) -> Reply {
        let command = match Command::parse(&call.env) {
            Ok(command) => command,
            Err(error) => return reply(1, error.report(None)),
        };
        let request = match Request::parse(command, &call.env, call.stdin.as_bytes()) {
            Ok(request) => request,
            Err((version, error)) => return reply(1, error.report(version)),
        };
        let done = match command {
            Command::Add => self.add(&request),
            Command::Check => self.check(&request).map(|()| Vec::new()),
            Command::Del => self.del(&request).map(|()| Vec::new()),
            Command::Gc => self.gc(&request).map(|()| Vec::new()),
            Command::Status | Command::Version => Ok(Vec::new()),
        };
        match done {
            Ok(stdout) => reply(0, stdout),
            Err(error) => reply(1, error.report(Some(request.version.name().to_owned()))),
        }
    }

    /// Gets a lease; one that the attachment has already is its answer.
    fn add(&self, request: &Request) -> Result<Vec<u8>, Error> {
        let mut options = Options::read(request)?;
        held::identify(&mut options.provided, request);
        let netns = self.netns(request)?;
        let place = Place {
            netns: &netns,
            ifname: &request.attachment.ifname,
            options: &options.provided,
            broadcast: self.config.broadcast,
        };
        let (opened, identity) = place.open().map_err(|cause| {
            Error::netns(format!(
                "open network namespace {}: {cause}",
                netns.display()
            ))
        })?;
        let key = key(request);
        let present = self
            .state()
            .leases
            .get(&key)
            .map(|entry| entry.held.clone());
        if let Some(held) = present.filter(|held| held.is_of(identity)) {
            return held.lease.result(held.priority).encode(request.version);
        }
        let patience = Patience {
            timeout: self.config.timeout,
            resend_max: self.config.resend_max,
            resend_timeout: self.config.resend_timeout,
        };
        let lease = place
            .inside(&opened, |client| client.acquire(&patience))
            .map_err(|error| {
                error.during(format!(
                    "get an address for {} of {}",
                    request.attachment.ifname, request.attachment.container_id
                ))
            })?;
        let result = lease.result(options.priority).encode(request.version)?;
        let held = Held::new(
            request,
            netns,
            identity,
            options,
            self.config.broadcast,
            lease,
        );
        if let Err(error) = held.save(&self.folder) {
            return Err(error.and_undo(release(&held)));
        }
        self.state().insert(held);
        self.changed.notify_all();
        Ok(result)
    }

    fn netns(&self, request: &Request) -> Result<PathBuf, Error> {
        match request.netns_path() {
            "" => Err(Error::environment("CNI_NETNS: empty")),
            path => Ok(format!("{}{path}", self.config.host_prefix).into()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let key = key(request);
        let state = self.state();
        let entry = state.leases.get(&key);
        match entry.filter(|entry| entry.held.lease.expiry > since_boot()) {
            Some(_) => Ok(()),
            None => Err(Error::failed(format!(
                "check {}: no lease is held for container {}",
                request.attachment.ifname, request.attachment.container_id
            ))),
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        self.end(&key(request))
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let stale: Vec<Key> = {
            let state = self.state();
            let all = state.leases.iter();
            let stale = all.filter(|(_, entry)| entry.held.is_stale(request));
            stale.map(|(key, _)| key.clone()).collect()
        };
        all_of(stale.iter().map(|key| self.end(key)))
    }

    /// Releases a lease and forgets it; one that isn't there is no error.
    fn end(&self, key: &Key) -> Result<(), Error> {
        let entry = self.state().leases.remove(key);
        if let Some(Err(error)) = entry.map(|entry| release(&entry.held)) {
            // The server gets the address back when the lease ends.
            eprintln!("dhcp: release the lease of {}: {error}", key.1.container_id);
        }
        held::forget(&self.folder, &key.0, &key.1)
    }

    /// Sleeps until a lease is due, again and again.
    fn renew_when_due(self: &Arc<Self>) {
        let mut state = self.state();
        while !state.stopped {
            let now = since_boot();
            let next = state.leases.values().filter_map(|entry| entry.due).min();
            match next {
                Some(at) if at <= now => {
                    for entry in state.leases.values_mut() {
                        if entry.due.is_some_and(|due| due <= now) {
                            entry.due = None;
                            self.start_renewal(entry);
                        }
                    }
                }
                next => {
                    let left = next.map_or(Duration::MAX, |at| at - now);
                    state = self
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
    }

    fn start_renewal(self: &Arc<Self>, entry: &mut Entry) {
        let (shared, held, number) = (Arc::clone(self), entry.held.clone(), entry.number);
        let renew = move || {
            let then = shared.renew(&held);
            shared.note(&held, number, then);
        };
        if let Err(error) = start_thread("dhcp-renew", renew) {
            eprintln!("dhcp: {error}");
            entry.due = Some(since_boot() + SHORTEST_RETRY.min(self.config.timeout));
        }
    }

    /// One attempt to keep a lease.
    fn renew(&self, held: &Held) -> Then {
        let (lease, now) = (&held.lease, since_boot());
        if now >= lease.expiry {
            return self.lose(held, "the lease ended");
        }
        let rebinding = now >= lease.rebinding;
        let next_phase = if rebinding {
            lease.expiry
        } else {
            lease.rebinding
        };
        let patience = self.config.timeout.min(next_phase - now);
        let attempt = held.inside(|client| {
            if rebinding {
                client.rebind(lease, patience)
            } else {
                client.renew(lease, patience)
            }
        });
        match attempt {
            None => Then::Forget,
            Some(Ok(Renewal::Granted(lease))) => Then::Keep(lease),
            Some(Ok(Renewal::Refused)) => self.lose(held, "the server refused to renew the lease"),
            Some(Ok(Renewal::Unanswered)) => Then::Again(retry_at(next_phase)),
            Some(Err(error)) => {
                eprintln!("dhcp: renew the lease of {}: {error}", held.container_id);
                Then::Again(retry_at(next_phase))
            }
        }
    }

    fn lose(&self, held: &Held, reason: &str) -> Then {
        let (container, address) = (&held.container_id, held.lease.address);
        eprintln!("dhcp: {container} loses {address}: {reason}; its interface is taken down");
        if let Some(Err(error)) = held.disable() {
            eprintln!("dhcp: take down {} of {container}: {error}", held.ifname);
        }
        Then::Forget
    }

    /// Notes what came of an attempt, unless the lease was released or replaced meanwhile.
    fn note(&self, held: &Held, number: u64, then: Then) {
        let mut state = self.state();
        let key = (held.network.clone(), held.attachment());
        let Some(entry) = state.leases.get_mut(&key).filter(|e| e.number == number) else {
            return;
        };
        let written = match then {
            Then::Keep(lease) => {
                entry.due = Some(lease.renewal);
                entry.held.lease = lease;
                entry.held.save(&self.folder)
            }
            Then::Again(at) => {
                entry.due = Some(at);
                Ok(())
            }
            Then::Forget => {
                state.leases.remove(&key);
                held::forget(&self.folder, &key.0, &key.1)
            }
        };
        if let Err(error) = written {
            eprintln!("dhcp: {error}");
        }
        self.changed.notify_all();
    }
}

/// What comes of an attempt to keep a lease.
enum Then {
    Keep(super::lease::Lease),
    Again(Duration),
    Forget,
}

/// After half of what is left until the next phase (RFC 2131 §4.4.5).
fn retry_at(next_phase: Duration) -> Duration {
    let now = since_boot();
    let left = next_phase.saturating_sub(now);
    now + (left / 2).max(SHORTEST_RETRY).min(left)
}

/// Tells the server, if the namespace is still there.
fn release(held: &Held) -> Result<(), Error> {
    held.inside(|client| client.release(&held.lease))
        .unwrap_or(Ok(()))
}

fn key(request: &Request) -> Key {
    (request.network.clone(), request.attachment.clone())
}

fn reply(code: i32, stdout: Vec<u8>) -> Reply {
    Reply {
        code,
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
    }
}
