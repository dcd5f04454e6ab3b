//! A successor finds the containers of a keeper that was killed.

use super::error::Refusal;
use super::held::{Container, ContainerState};
use super::protocol::{Answer, ExitStatus};
use super::record::Record;
use super::server::{Keeper, Outcome, Source, now};
use super::stdio::{Streams, has_fifos};
use rustix::event::epoll::EventFlags;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

impl Keeper {
    /// Takes over every container that is recorded, running or not; half-made ones are swept away.
    pub(super) fn adopt_all(&mut self) {
        let names = match self.recorded_ids() {
            Ok(names) => names,
            Err(errno) => {
                self.log(format!("read the predecessor's records: {errno}"));
                return;
            }
        };
        for id in names {
            let record = self
                .open_container_dir(&id)
                .ok()
                .and_then(|dir| Record::read(dir.as_fd()));
            match record.filter(|record| record.id == id) {
                Some(record) => {
                    if let Err(error) = self.adopt(record) {
                        self.log(format!("adopt {id}: {error}"));
                    }
                }
                None => {
                    self.remove_container_dir(&id);
                    self.log(format!(
                        "{id}: half made when the keeper before this one died; swept away"
                    ));
                }
            }
        }
    }

    fn recorded_ids(&self) -> Result<Vec<String>, rustix::io::Errno> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.containers_dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn adopt(&mut self, record: Record) -> linux::Result<()> {
        let id = record.id.clone();
        if let Some(exit) = &record.exit {
            let pidfd = self.own_pidfd()?; // never signalled nor watched: the container has ended
            let state = ContainerState::Exited(exit.clone());
            let container = Container {
                record,
                pidfd,
                streams: Streams::None,
                memory_events: None,
                state,
            };
            self.containers.insert(id, container);
            return Ok(());
        }
        let dir = self.open_container_dir(&id)?;
        let streams = match &record.io {
            None => Streams::None,
            Some(io) if has_fifos(io) => Streams::reopen_fifos(dir.as_fd(), io.stdin)?,
            Some(_) => Streams::LostTerminal,
        };
        // Gone with its cgroup, or out of sight: then nobody can tell whether memory ran out.
        let memory_events = record
            .memory_events
            .as_ref()
            .and_then(|path| Some(File::open(path).ok()?.into()));
        let confirmed = record.identity.confirm();
        let alive = confirmed.is_some();
        let pidfd = confirmed.map_or_else(|| self.own_pidfd(), Ok)?;
        let container = Container {
            record,
            pidfd,
            streams,
            memory_events,
            state: ContainerState::Running,
        };
        self.give_to_scribe(&id, &container);
        self.containers.insert(id.clone(), container);
        if !alive {
            self.container_ended(&id, ExitStatus::UNKNOWN);
            return Ok(());
        }
        let token = self.token(Source::Adopted(id.clone()));
        if let Some(container) = self.containers.get(&id) {
            self.poller.add(&container.pidfd, token, EventFlags::IN)?;
        }
        Ok(())
    }

    fn own_pidfd(&self) -> linux::Result<OwnedFd> {
        linux::pidfd::open(std::process::id() as i32)
    }

    /// Takes a terminal's master back from someone who held a duplicate.
    pub(super) fn return_terminal(&mut self, id: &str, fds: Vec<OwnedFd>) -> Outcome {
        let container = self
            .containers
            .get_mut(id)
            .ok_or_else(|| Refusal::not_found(id))?;
        let master = fds
            .into_iter()
            .next()
            .ok_or_else(|| Refusal::failed("no descriptor"))?;
        if matches!(container.streams, Streams::LostTerminal) {
            container.streams = Streams::terminal(master)?;
            if let Some(container) = self.containers.remove(id) {
                self.give_to_scribe(id, &container);
                self.containers.insert(id.to_owned(), container);
            }
        }
        now(Answer::Done)
    }
}
