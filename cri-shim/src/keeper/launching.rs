//! Starting containers and execs: from the request to the end of its status descriptor.

use super::error::Refusal;
use super::held::{Container, ContainerState, Exec, ExecState, Launching, Who};
use super::poll::{kernel, set_nonblocking};
use super::protocol::{Answer, IoSpec};
use super::record::{Identity, Record};
use super::server::{Keeper, Outcome, Source, Waiter};
use super::stdio::{self, Streams};
use oci_runtime::{CgroupPlan, ExecPlan, LaunchPlan, Launched, Stdio};
use rustix::event::epoll::EventFlags;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

impl Keeper {
    pub(super) fn launch(
        &mut self,
        waiter: Waiter,
        id: String,
        io: IoSpec,
        size: Option<(u16, u16)>,
        memory_path: Option<PathBuf>,
        fds: Vec<OwnedFd>,
    ) -> Outcome {
        if let Some(outcome) = self.join_launch(waiter, &id) {
            return outcome;
        }
        let mut fds = fds.into_iter();
        let plan: LaunchPlan = read_plan(fds.next())?;
        let memory_events = memory_path.and_then(|path| Some((path, fds.next()?)));
        let dir = self.make_container_dir(&id)?;
        let started = start_container(dir.as_fd(), &plan, fds.collect(), &io, size);
        let (launched, streams) = started.inspect_err(|_| self.remove_container_dir(&id))?;
        self.hold(waiter, id, Some(io), launched, streams, memory_events)
    }

    pub(super) fn launch_pod_init(
        &mut self,
        waiter: Waiter,
        id: String,
        user: bool,
        fds: Vec<OwnedFd>,
    ) -> Outcome {
        if let Some(outcome) = self.join_launch(waiter, &id) {
            return outcome;
        }
        let mut fds = fds.into_iter();
        let cgroup: CgroupPlan = read_plan(fds.next())?;
        let user_namespace = if user { fds.next() } else { None };
        self.make_container_dir(&id)?;
        let launched = oci_runtime::launch_pod_init(&cgroup, fds.collect(), user_namespace)
            .inspect_err(|_| self.remove_container_dir(&id))?;
        self.hold(waiter, id, None, launched, Streams::None, None)
    }

    /// A repeated request joins what is there.
    fn join_launch(&mut self, waiter: Waiter, id: &str) -> Option<Outcome> {
        let container = self.containers.get_mut(id)?;
        Some(match &mut container.state {
            ContainerState::Launching(launching) => {
                launching.waiters.push(waiter);
                Ok(None)
            }
            ContainerState::Running => container
                .handles()
                .map(|fds| {
                    Some((
                        Answer::Launched {
                            pid: container.record.identity.pid,
                        },
                        fds,
                    ))
                })
                .map_err(Refusal::from),
            ContainerState::Draining(_) | ContainerState::Exited(_) => {
                Err(Refusal::state(id, "has ended"))
            }
        })
    }

    /// Keeps the cloned process, and lets the scribe read its streams.
    fn hold(
        &mut self,
        waiter: Waiter,
        id: String,
        io: Option<IoSpec>,
        launched: Launched,
        streams: Streams,
        memory_events: Option<(PathBuf, OwnedFd)>,
    ) -> Outcome {
        let who = Who::Container(id.clone());
        self.children.insert(launched.pid, who.clone());
        let identity = Identity::observe(launched.pid, &launched.pidfd);
        let (memory_path, memory_events) = memory_events.unzip();
        let record = Record::new(&id, identity, io, memory_path);
        if let Err(error) = self
            .open_container_dir(&id)
            .and_then(|dir| record.write(dir.as_fd()))
        {
            self.log(format!(
                "{id}: {error}; a successor of this keeper would not find it"
            ));
        }
        let watched = self.watch_launch(who, launched.status, waiter);
        let launching = watched.inspect_err(|_| {
            self.abandon(launched.pid, &launched.pidfd);
            self.remove_container_dir(&id);
        })?;
        let state = ContainerState::Launching(launching);
        let container = Container {
            record,
            pidfd: launched.pidfd,
            streams,
            memory_events,
            state,
        };
        self.give_to_scribe(&id, &container);
        self.containers.insert(id, container);
        Ok(None)
    }

    pub(super) fn exec(
        &mut self,
        waiter: Waiter,
        container: String,
        exec: String,
        terminal: bool,
        size: Option<(u16, u16)>,
        fds: Vec<OwnedFd>,
    ) -> Outcome {
        match self.containers.get(&container) {
            None => return Err(Refusal::not_found(&container)),
            Some(held) if !held.is_alive() => return Err(Refusal::state(&container, "has ended")),
            Some(_) => {}
        }
        if let Some(held) = self.execs.get_mut(&exec) {
            return match &mut held.state {
                ExecState::Launching(launching) => {
                    launching.waiters.push(waiter);
                    Ok(None)
                }
                ExecState::Running => {
                    Ok(Some((Answer::Launched { pid: held.pid }, held.handles()?)))
                }
                ExecState::Exited(_) => Err(Refusal::state(&exec, "has ended")),
            };
        }
        let mut fds = fds.into_iter();
        let plan: ExecPlan = read_plan(fds.next())?;
        let stdio = if terminal {
            Stdio::Terminal {
                size,
                relayed: false,
            }
        } else {
            match (fds.next(), fds.next(), fds.next()) {
                (Some(stdin), Some(stdout), Some(stderr)) => Stdio::Fds {
                    stdin,
                    stdout,
                    stderr,
                },
                _ => return Err(Refusal::failed("exec without its streams")),
            }
        };
        let launched = oci_runtime::exec(&plan, fds.collect(), stdio)?;
        let who = Who::Exec(exec.clone());
        self.children.insert(launched.pid, who.clone());
        let nonblocking = launched.terminal.as_ref().map_or(Ok(()), set_nonblocking);
        let watched = nonblocking
            .map_err(Refusal::from)
            .and_then(|()| self.watch_launch(who, launched.status, waiter));
        let launching = watched.inspect_err(|_| self.abandon(launched.pid, &launched.pidfd))?;
        let state = ExecState::Launching(launching);
        let (pid, pidfd, terminal) = (launched.pid, launched.pidfd, launched.terminal);
        self.execs.insert(
            exec,
            Exec {
                container,
                pid,
                pidfd,
                terminal,
                state,
                waiters: Vec::new(),
            },
        );
        Ok(None)
    }

    /// A process that can't be watched must not run on unheld. It is reaped as nobody's.
    fn abandon(&mut self, pid: i32, pidfd: &OwnedFd) {
        self.children.remove(&pid);
        if let Err(error) = linux::pidfd::kill(pidfd) {
            self.log(format!("kill process {pid}, which can't be held: {error}"));
        }
    }

    fn watch_launch(
        &mut self,
        who: Who,
        status: OwnedFd,
        waiter: Waiter,
    ) -> Result<Launching, Refusal> {
        set_nonblocking(&status)?;
        let token = self.token(Source::Status(who));
        self.poller.add(&status, token, EventFlags::IN)?;
        Ok(Launching {
            status,
            token,
            bytes: Vec::new(),
            waiters: vec![waiter],
        })
    }

    /// Reads a launch's status; at its end the launch is decided.
    pub(super) fn handle_status(&mut self, who: &Who) {
        let launching = match who {
            Who::Container(id) => match self.containers.get_mut(id).map(|held| &mut held.state) {
                Some(ContainerState::Launching(launching)) => launching,
                _ => return,
            },
            Who::Exec(id) => match self.execs.get_mut(id).map(|held| &mut held.state) {
                Some(ExecState::Launching(launching)) => launching,
                _ => return,
            },
        };
        if !read_to_end(&launching.status, &mut launching.bytes) {
            return;
        }
        let (token, waiters) = (launching.token, std::mem::take(&mut launching.waiters));
        let outcome = oci_runtime::read_status(&launching.bytes).map_err(Refusal::from);
        self.poller.remove(&launching.status);
        self.sources.remove(&token);
        match who {
            Who::Container(id) => self.decide_container(id, outcome, waiters),
            Who::Exec(id) => self.decide_exec(id, outcome, waiters),
        }
    }

    fn decide_container(&mut self, id: &str, outcome: Result<(), Refusal>, waiters: Vec<Waiter>) {
        if let Err(refusal) = outcome {
            // Its process ends by itself, and is reaped as nobody's.
            self.drop_container(id);
            waiters
                .into_iter()
                .for_each(|waiter| self.answer(waiter, Err(refusal.clone())));
            return;
        }
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.state = ContainerState::Running;
        let pid = container.record.identity.pid;
        for waiter in waiters {
            let handles = self.containers.get(id).map(Container::handles);
            let result = match handles {
                Some(Ok(fds)) => Ok((Answer::Launched { pid }, fds)),
                Some(Err(error)) => Err(error.into()),
                None => Err(Refusal::not_found(id)),
            };
            self.answer(waiter, result);
        }
    }

    fn decide_exec(&mut self, id: &str, outcome: Result<(), Refusal>, waiters: Vec<Waiter>) {
        if let Err(refusal) = outcome {
            if let Some(exec) = self.execs.remove(id) {
                self.children.remove(&exec.pid);
            }
            waiters
                .into_iter()
                .for_each(|waiter| self.answer(waiter, Err(refusal.clone())));
            return;
        }
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        exec.state = ExecState::Running;
        let pid = exec.pid;
        for waiter in waiters {
            let handles = self.execs.get(id).map(Exec::handles);
            let result = match handles {
                Some(Ok(fds)) => Ok((Answer::Launched { pid }, fds)),
                Some(Err(error)) => Err(error.into()),
                None => Err(Refusal::not_found(id)),
            };
            self.answer(waiter, result);
        }
        // Whoever asked for the exec holds its terminal, and lets it hang up by letting go.
        if let Some(exec) = self.execs.get_mut(id) {
            exec.terminal = None;
        }
    }

    fn make_container_dir(&self, id: &str) -> Result<OwnedFd, Refusal> {
        if !is_valid_id(id) {
            return Err(Refusal::failed(format!("{id:?} is no container id")));
        }
        match rustix::fs::mkdirat(&self.containers_dir, id, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            // Left over by a predecessor that died before there was a process.
            Err(Errno::EXIST) => self.empty_container_dir(id),
            Err(errno) => return Err(linux::Error::new("mkdirat", id, errno.raw_os_error()).into()),
        }
        Ok(self.open_container_dir(id)?)
    }

    pub(super) fn open_container_dir(&self, id: &str) -> linux::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.containers_dir, id, flags, Mode::empty())
            .map_err(|errno| kernel("open container's directory", errno))
    }

    fn empty_container_dir(&self, id: &str) {
        if let Ok(dir) = self.open_container_dir(id) {
            stdio::remove_fifos(dir.as_fd());
            Record::remove(dir.as_fd());
        }
    }

    pub(super) fn remove_container_dir(&self, id: &str) {
        self.empty_container_dir(id);
        // A leftover is emptied and used again, or swept by the successor.
        let _ = rustix::fs::unlinkat(&self.containers_dir, id, AtFlags::REMOVEDIR);
    }
}

fn start_container(
    dir: std::os::fd::BorrowedFd<'_>,
    plan: &LaunchPlan,
    fds: Vec<OwnedFd>,
    io: &IoSpec,
    size: Option<(u16, u16)>,
) -> Result<(Launched, Streams), Refusal> {
    if io.terminal {
        let mut launched = oci_runtime::launch(
            plan,
            fds,
            Stdio::Terminal {
                size,
                relayed: false,
            },
        )?;
        let master = launched
            .terminal
            .take()
            .ok_or_else(|| Refusal::failed("launch made no terminal"))?;
        let streams = Streams::terminal(master).inspect_err(|_| {
            // A process without a terminal that we hold would run on unheld. It is gone, or ours to kill.
            let _ = linux::pidfd::kill(&launched.pidfd);
        })?;
        return Ok((launched, streams));
    }
    let (inner, streams) = Streams::create_fifos(dir, io.stdin, io.stdin_once)?;
    Ok((oci_runtime::launch(plan, fds, inner)?, streams))
}

/// Ids become directory names.
fn is_valid_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 200
        && !id.starts_with('.')
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn read_plan<T: DeserializeOwned>(fd: Option<OwnedFd>) -> Result<T, Refusal> {
    let fail = |cause: &dyn std::fmt::Display| Refusal::failed(format!("read plan: {cause}"));
    let mut file = File::from(fd.ok_or_else(|| fail(&"no descriptor"))?);
    let mut data = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut data))
        .map_err(|cause| fail(&cause))?;
    serde_json::from_slice(&data).map_err(|cause| fail(&cause))
}

/// Appends what can be read without waiting; true at the end (or an error, after which nothing follows).
fn read_to_end(fd: &OwnedFd, bytes: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => return true,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_valid_id;

    #[test]
    fn an_id_can_not_leave_its_directory() {
        for id in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a\0",
            "a b",
            &"x".repeat(201),
        ] {
            assert!(!is_valid_id(id), "{id:?}");
        }
        for id in ["web", "3f2a", "a-b_c.d"] {
            assert!(is_valid_id(id), "{id:?}");
        }
    }
}
