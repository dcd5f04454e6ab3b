//! Replacing the keeper's program in place: same pid, same children, same descriptors, same connections.
//!
//! The descriptors are sent into a socket that survives the `execve` as descriptor 0, and are taken out of it on the
//! other side, so that no number has to be trusted. What they are is written in a [`State`], which the new program has to
//! read (`keeper --check`) before the old one gives up.

use super::environment;
use super::error::Refusal;
use super::held::{Container, ContainerState, Exec, ExecState, Who};
use super::poll::{Token, kernel};
use super::process::{own_stdin, silence};
use super::protocol::{Answer, Exit, ExitStatus};
use super::record::Record;
use super::scribe_link::ScribeState;
use super::server::{Keeper, Outcome, Parts, Source, Waiter};
use super::stdio::Streams;
use linux::socket;
use rustix::event::epoll::EventFlags;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Raised when the state changes its meaning; a program reads its own version and those before it.
const VERSION: u32 = 1;

/// How long the new program may take to read the state.
const CHECK_LIMIT: Duration = Duration::from_secs(5);

/// A descriptor, by its place among those that travel.
pub(super) type Place = usize;

/// A waiter, with its connection by its place.
pub(super) type TravellingWaiter = (usize, u64);

/// All of the keeper, as the next program finds it.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    generation: u64,
    next_seq: u64,
    listener: Place,
    containers_dir: Place,
    containers: Vec<ContainerLuggage>,
    execs: Vec<ExecLuggage>,
    connections: Vec<(Place, bool)>,
    scribe: ScribeState,
    /// Who asked for the upgrade.
    waiter: TravellingWaiter,
}

#[derive(Debug, Serialize, Deserialize)]
struct ContainerLuggage {
    record: Record,
    pidfd: Place,
    streams: StreamsLuggage,
    memory_events: Option<Place>,
    /// We are its parent.
    child: bool,
    /// It has ended, and its last output is being written.
    draining: Option<Exit>,
}

#[derive(Debug, Serialize, Deserialize)]
enum StreamsLuggage {
    None,
    Fifos {
        stdin: Option<Place>,
        stdout: Place,
        stderr: Place,
    },
    Terminal(Place),
    LostTerminal,
}

#[derive(Debug, Serialize, Deserialize)]
struct ExecLuggage {
    id: String,
    container: String,
    pid: i32,
    pidfd: Place,
    exited: Option<ExitStatus>,
    waiters: Vec<TravellingWaiter>,
}

/// Collects the descriptors that travel.
#[derive(Default)]
pub(super) struct Luggage<'a> {
    fds: Vec<BorrowedFd<'a>>,
}

impl<'a> Luggage<'a> {
    pub(super) fn put(&mut self, fd: &'a impl AsFd) -> Place {
        self.fds.push(fd.as_fd());
        self.fds.len() - 1
    }
}

/// The descriptors that arrived; each is taken once.
pub(super) struct Arrived(Vec<Option<OwnedFd>>);

impl Arrived {
    pub(super) fn take(&mut self, place: Place) -> Result<OwnedFd, String> {
        self.0
            .get_mut(place)
            .and_then(Option::take)
            .ok_or_else(|| format!("descriptor {place} did not arrive"))
    }
}

impl Keeper {
    pub(super) fn upgrade(&mut self, waiter: Waiter, fds: Vec<OwnedFd>) -> Outcome {
        let program = fds
            .into_iter()
            .next()
            .ok_or_else(|| Refusal::failed("no program"))?;
        if let Some(reason) = self.unfinished() {
            return Err(Refusal::state("keeper", reason));
        }
        let error = match self.replace_program(waiter, &program) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        // Descriptor 0 may be the socket by now.
        silence().map_err(Refusal::failed)?;
        Err(Refusal::failed(format!("upgrade: {error}")))
    }

    /// Returns only if it failed, and nothing has changed then.
    fn replace_program(
        &self,
        waiter: Waiter,
        program: &OwnedFd,
    ) -> Result<std::convert::Infallible, String> {
        let mut luggage = Luggage::default();
        let state = self.pack(waiter, &mut luggage)?;
        let state = memory_file(&state)?;
        check_program(program, &state)?;
        let (ours, theirs) = socket::pair().map_err(|error| error.to_string())?;
        socket::send(&ours, b"state", &[state.as_fd()]).map_err(|error| error.to_string())?;
        for fds in luggage.fds.chunks(socket::MAX_FDS) {
            socket::send(&ours, b"descriptors", fds).map_err(|error| error.to_string())?;
        }
        rustix::stdio::dup2_stdin(&theirs).map_err(|errno| errno.to_string())?;
        let arguments = resume_arguments(std::env::args_os())?;
        Err(linux::process::execve_fd(program, &arguments, &[]).to_string())
    }

    /// What can't travel: it is over in a moment.
    fn unfinished(&self) -> Option<&'static str> {
        let launching = self
            .containers
            .values()
            .any(|held| matches!(held.state, ContainerState::Launching(_)))
            || self
                .execs
                .values()
                .any(|held| matches!(held.state, ExecState::Launching(_)));
        if launching {
            return Some("a launch is under way");
        }
        if !self.scribe.is_settled()
            || !self
                .connections
                .values()
                .all(|connection| connection.is_settled())
        {
            return Some("messages are under way");
        }
        None
    }

    fn pack<'a>(&'a self, waiter: Waiter, luggage: &mut Luggage<'a>) -> Result<State, String> {
        let places: HashMap<Token, usize> = self
            .connections
            .keys()
            .enumerate()
            .map(|(place, token)| (*token, place))
            .collect();
        let connections = self
            .connections
            .values()
            .map(|held| (luggage.put(&held.peer.socket), held.subscribed))
            .collect();
        let listener = luggage.put(&self.listener);
        let containers_dir = luggage.put(&self.containers_dir);
        let containers = self
            .containers
            .values()
            .map(|held| self.pack_container(held, luggage))
            .collect();
        let mut execs = Vec::new();
        for (id, exec) in &self.execs {
            execs.push(ExecLuggage {
                id: id.clone(),
                container: exec.container.clone(),
                pid: exec.pid,
                pidfd: luggage.put(&exec.pidfd),
                exited: match exec.state {
                    ExecState::Exited(status) => Some(status),
                    _ => None,
                },
                waiters: travelling(&exec.waiters, &places),
            });
        }
        let waiter = travelling(&[waiter], &places)
            .pop()
            .ok_or("who asked is gone")?;
        Ok(State {
            version: VERSION,
            generation: self.generation,
            next_seq: self.next_seq,
            listener,
            containers_dir,
            containers,
            execs,
            connections,
            scribe: self
                .scribe
                .pack(luggage, |waiters| travelling(waiters, &places)),
            waiter,
        })
    }

    fn pack_container<'a>(
        &self,
        held: &'a Container,
        luggage: &mut Luggage<'a>,
    ) -> ContainerLuggage {
        let streams = match &held.streams {
            Streams::None => StreamsLuggage::None,
            Streams::LostTerminal => StreamsLuggage::LostTerminal,
            Streams::Terminal(master) => StreamsLuggage::Terminal(luggage.put(master)),
            Streams::Fifos {
                stdin,
                stdout,
                stderr,
            } => StreamsLuggage::Fifos {
                stdin: stdin.as_ref().map(|fd| luggage.put(fd)),
                stdout: luggage.put(stdout),
                stderr: luggage.put(stderr),
            },
        };
        ContainerLuggage {
            record: held.record.clone(),
            pidfd: luggage.put(&held.pidfd),
            streams,
            memory_events: held.memory_events.as_ref().map(|fd| luggage.put(fd)),
            child: self.children.contains_key(&held.record.identity.pid),
            draining: match &held.state {
                ContainerState::Draining(exit) => Some(exit.clone()),
                _ => None,
            },
        }
    }

    fn unpack(state: State, arrived: &mut Arrived) -> Result<Keeper, String> {
        let text = |error: linux::Error| error.to_string();
        let mut keeper = Keeper::new(Parts {
            listener: arrived.take(state.listener)?,
            containers_dir: arrived.take(state.containers_dir)?,
            scribe: state.scribe.mount_namespace(arrived)?,
            generation: state.generation,
            next_seq: state.next_seq,
        })
        .map_err(text)?;
        let mut tokens = Vec::new();
        for (place, subscribed) in state.connections {
            tokens.push(
                keeper
                    .add_connection(arrived.take(place)?, subscribed)
                    .map_err(text)?,
            );
        }
        let here = |waiters: Vec<TravellingWaiter>| -> Vec<Waiter> {
            waiters
                .into_iter()
                .filter_map(|(place, n)| Some((*tokens.get(place)?, n)))
                .collect()
        };
        for luggage in state.containers {
            keeper.unpack_container(luggage, arrived)?;
        }
        for exec in state.execs {
            if exec.exited.is_none() {
                keeper.children.insert(exec.pid, Who::Exec(exec.id.clone()));
            }
            let held = Exec {
                container: exec.container,
                pid: exec.pid,
                pidfd: arrived.take(exec.pidfd)?,
                terminal: None,
                state: exec.exited.map_or(ExecState::Running, ExecState::Exited),
                waiters: here(exec.waiters),
            };
            keeper.execs.insert(exec.id, held);
        }
        keeper.unpack_scribe(state.scribe, arrived, &here)?;
        for waiter in here(vec![state.waiter]) {
            keeper.answer(waiter, Ok((Answer::Done, Vec::new())));
        }
        Ok(keeper)
    }

    fn unpack_container(
        &mut self,
        luggage: ContainerLuggage,
        arrived: &mut Arrived,
    ) -> Result<(), String> {
        let id = luggage.record.id.clone();
        let streams = match luggage.streams {
            StreamsLuggage::None => Streams::None,
            StreamsLuggage::LostTerminal => Streams::LostTerminal,
            StreamsLuggage::Terminal(master) => Streams::Terminal(arrived.take(master)?),
            StreamsLuggage::Fifos {
                stdin,
                stdout,
                stderr,
            } => Streams::Fifos {
                stdin: stdin.map(|place| arrived.take(place)).transpose()?,
                stdout: arrived.take(stdout)?,
                stderr: arrived.take(stderr)?,
            },
        };
        let state = match (luggage.draining, &luggage.record.exit) {
            (Some(exit), _) => ContainerState::Draining(exit),
            (None, Some(exit)) => ContainerState::Exited(exit.clone()),
            (None, None) => ContainerState::Running,
        };
        let running = matches!(state, ContainerState::Running);
        let draining = matches!(state, ContainerState::Draining(_));
        let pidfd = arrived.take(luggage.pidfd)?;
        if luggage.child {
            self.children
                .insert(luggage.record.identity.pid, Who::Container(id.clone()));
        } else if running {
            let token = self.token(Source::Adopted(id.clone()));
            self.poller
                .add(&pidfd, token, EventFlags::IN)
                .map_err(|error| error.to_string())?;
        }
        let memory_events = luggage
            .memory_events
            .map(|place| arrived.take(place))
            .transpose()?;
        self.containers.insert(
            id.clone(),
            Container {
                record: luggage.record,
                pidfd,
                streams,
                memory_events,
                state,
            },
        );
        if draining {
            self.wait_for_drain(&id);
        }
        Ok(())
    }
}

/// This program's arguments, with the stage changed: `ps` goes on telling whose keeper it is.
fn resume_arguments(own: impl Iterator<Item = OsString>) -> Result<Vec<CString>, String> {
    let stage = |argument: OsString| {
        if argument == "--hold" {
            "--resume".into()
        } else {
            argument
        }
    };
    own.map(|argument| CString::new(stage(argument).into_vec()).map_err(|error| error.to_string()))
        .collect()
}

fn travelling(waiters: &[Waiter], places: &HashMap<Token, usize>) -> Vec<TravellingWaiter> {
    waiters
        .iter()
        .filter_map(|(token, n)| Some((*places.get(token)?, *n)))
        .collect()
}

fn memory_file(state: &State) -> Result<OwnedFd, String> {
    let fail = |cause: &dyn std::fmt::Display| format!("write state: {cause}");
    let file = rustix::fs::memfd_create("orlop-keeper-state", MemfdFlags::CLOEXEC)
        .map_err(|errno| fail(&errno))?;
    let mut file = File::from(file);
    let data = serde_json::to_vec(state).map_err(|cause| fail(&cause))?;
    file.write_all(&data)
        .and_then(|()| file.rewind())
        .map_err(|cause| fail(&cause))?;
    Ok(file.into())
}

/// Has the new program read the state.
fn check_program(program: &OwnedFd, state: &OwnedFd) -> Result<(), String> {
    let state = state.try_clone().map_err(|cause| cause.to_string())?;
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .args(["keeper", "--check"])
        .stdin(Stdio::from(
            state.try_clone().map_err(|cause| cause.to_string())?,
        ))
        .stdout(Stdio::null())
        .env_clear()
        .spawn()
        .map_err(|cause| format!("start the new program: {cause}"))?;
    let pidfd = linux::pidfd::open(child.id() as i32).map_err(|error| error.to_string())?;
    if !linux::pidfd::wait_exit(&pidfd, Some(CHECK_LIMIT)).map_err(|error| error.to_string())? {
        linux::pidfd::kill(&pidfd).map_err(|error| error.to_string())?;
    }
    let status = child.wait().map_err(|cause| cause.to_string())?;
    let mut state = File::from(state);
    state.rewind().map_err(|cause| cause.to_string())?;
    if status.success() {
        Ok(())
    } else {
        Err(format!(
            "the new program can't read this keeper's state: {status}"
        ))
    }
}

fn read_state(file: &File) -> Result<State, String> {
    let state: State =
        serde_json::from_reader(file).map_err(|cause| format!("read state: {cause}"))?;
    if state.version > VERSION {
        return Err(format!(
            "state has version {}, this program reads up to {VERSION}",
            state.version
        ));
    }
    Ok(state)
}

/// `keeper --check`: reads a state from descriptor 0.
///
/// # Errors
/// It makes no sense to this program.
pub(super) fn check() -> Result<(), String> {
    read_state(&own_stdin()?.into()).map(drop)
}

/// `keeper --resume`: goes on where the program before this one stopped.
///
/// # Errors
/// What could not be taken over; containers go on then, and a successor adopts them.
pub(super) fn resume() -> Result<(), String> {
    let text = |error: linux::Error| error.to_string();
    let socket = own_stdin()?;
    let mut buffer = Vec::new();
    let mut state = None;
    let mut arrived = Arrived(Vec::new());
    // The sender is gone: all that it sent is there, then comes the end.
    while let Some(message) = socket::recv(&socket, &mut buffer).map_err(text)? {
        match message.data.as_slice() {
            b"state" => state = message.fds.into_iter().next(),
            _ => arrived.0.extend(message.fds.into_iter().map(Some)),
        }
    }
    drop(socket);
    silence()?;
    environment::clear_umask();
    environment::become_subreaper().map_err(text)?; // `execve` has made it dumpable again
    let state = read_state(&File::from(state.ok_or("no state arrived")?))?;
    let mut keeper = Keeper::unpack(state, &mut arrived)?;
    drop(arrived);
    keeper.reap(); // whoever ended meanwhile
    keeper.run().map_err(text)
}

/// Which program this process runs, to compare with another process's.
///
/// # Errors
/// `fstat`'s.
pub(super) fn program_identity(program: impl AsFd) -> linux::Result<[u64; 4]> {
    let stat = rustix::fs::fstat(program).map_err(|errno| kernel("fstat program", errno))?;
    Ok([
        stat.st_dev,
        stat.st_ino,
        stat.st_mtime as u64,
        stat.st_mtime_nsec,
    ])
}
