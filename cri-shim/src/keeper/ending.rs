//! Ends: reaping, waiting for the last output, publishing, forgetting.

use super::error::Refusal;
use super::held::{ContainerState, ExecState, Who};
use super::poll::Token;
use super::protocol::{Answer, Exit, ExitStatus, FromKeeper};
use super::server::{Keeper, Outcome, Waiter, now};
use super::stdio::Streams;
use rustix::event::epoll::EventFlags;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long a container's end waits for its output to be written: a log on a frozen disk must not hold it back.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How long the status of a process that isn't our child may take to be collected by its parent.
const REAP_LIMIT: Duration = Duration::from_millis(200);

impl Keeper {
    /// Reaps all children that have ended, also those that containers left behind.
    pub(super) fn reap(&mut self) {
        loop {
            match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    self.handle_end(
                        pid.as_raw_nonzero().get(),
                        ExitStatus::from_wait(status.as_raw()),
                    );
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn handle_end(&mut self, pid: i32, status: ExitStatus) {
        if self.scribe.is(pid) {
            self.scribe_ended(status);
            return;
        }
        let Some(who) = self.children.remove(&pid) else {
            return;
        };
        // Its status descriptor has ended with it: first decide the launch, then tell the end.
        self.handle_status(&who);
        match who {
            Who::Container(id) => self.container_ended(&id, status),
            Who::Exec(id) => self.exec_ended(&id, status),
        }
    }

    /// A container that a predecessor started has ended. We are not its parent: its status is shown by procfs until the
    /// parent (most likely pid 1) has reaped it, and after that by the pidfd, where the kernel has that.
    pub(super) fn handle_adopted_end(&mut self, token: Token, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let seen = container.record.identity.zombie_status();
        let told = || linux::pidfd_info::wait_status(&container.pidfd);
        match seen.map_or_else(told, |raw| Ok(Some(raw))) {
            Ok(Some(raw)) => self.adopted_ended(token, id, ExitStatus::from_wait(raw)),
            Ok(None)
                if !self
                    .unreaped
                    .iter()
                    .any(|(_, waiting, _)| *waiting == token) =>
            {
                // From now on only the reaping wakes us (EPOLLHUP, which is always watched for).
                if self
                    .poller
                    .modify(&container.pidfd, token, EventFlags::empty())
                    .is_ok()
                {
                    self.unreaped
                        .push_back((Instant::now() + REAP_LIMIT, token, id.to_owned()));
                }
            }
            Ok(None) | Err(_) => self.adopted_ended(token, id, ExitStatus::UNKNOWN),
        }
    }

    fn adopted_ended(&mut self, token: Token, id: &str, status: ExitStatus) {
        self.sources.remove(&token);
        self.unreaped.retain(|(_, waiting, _)| *waiting != token);
        if let Some(container) = self.containers.get(id) {
            self.poller.remove(&container.pidfd);
        }
        self.container_ended(id, status);
    }

    /// Gives up on statuses that nobody collects, and publishes the ends that waited too long for the scribe.
    pub(super) fn publish_overdue(&mut self) {
        let now = Instant::now();
        while let Some((_, token, id)) = self
            .unreaped
            .pop_front_if(|(deadline, _, _)| *deadline <= now)
        {
            self.adopted_ended(token, &id, ExitStatus::UNKNOWN);
        }
        while let Some((_, id)) = self.drains.pop_front_if(|(deadline, _)| *deadline <= now) {
            self.publish(&id);
        }
    }

    pub(super) fn container_ended(&mut self, id: &str, status: ExitStatus) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let oom = container.memory_events.take().is_some_and(|counter| {
            // ENODEV: the cgroup has been removed under us, so nobody wants to know.
            linux::cgroup::oom_kills(counter.as_fd()).is_ok_and(|kills| kills > 0)
        });
        let finished_at_ns = wall_clock_ns();
        let exit = Exit {
            seq: 0,
            id: id.to_owned(),
            exec_id: None,
            status,
            finished_at_ns,
            oom,
        };
        let prints = !matches!(container.streams, Streams::None | Streams::LostTerminal);
        container.state = ContainerState::Draining(exit);
        if prints {
            self.ask_scribe_to_drain(id);
            self.wait_for_drain(id);
        } else {
            self.publish(id);
        }
    }

    pub(super) fn wait_for_drain(&mut self, id: &str) {
        self.drains
            .push_back((Instant::now() + DRAIN_LIMIT, id.to_owned()));
    }

    /// The scribe has written a container's last output.
    pub(super) fn drained(&mut self, id: &str) {
        self.drains.retain(|(_, waiting)| waiting != id);
        self.publish(id);
    }

    fn publish(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let ContainerState::Draining(exit) = &container.state else {
            return;
        };
        let exit = Exit {
            seq: self.next_seq,
            ..exit.clone()
        };
        self.next_seq += 1;
        container.state = ContainerState::Exited(exit.clone());
        container.record.exit = Some(exit.clone());
        let record = container.record.clone();
        if let Err(error) = self
            .open_container_dir(id)
            .and_then(|dir| record.write(dir.as_fd()))
        {
            self.log(format!(
                "{id}: {error}; a successor of this keeper would not know its exit code"
            ));
        }
        self.tell_subscribers(&FromKeeper::Exit(exit));
    }

    fn exec_ended(&mut self, id: &str, status: ExitStatus) {
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        exec.state = ExecState::Exited(status);
        let container = exec.container.clone();
        let waiters = std::mem::take(&mut exec.waiters);
        if !waiters.is_empty() {
            self.execs.remove(id);
        }
        for waiter in waiters {
            self.answer(waiter, Ok((Answer::ExecExit(status), Vec::new())));
        }
        let exec_id = Some(id.to_owned());
        let finished_at_ns = wall_clock_ns();
        let exit = Exit {
            seq: 0,
            id: container,
            exec_id,
            status,
            finished_at_ns,
            oom: false,
        };
        self.tell_subscribers(&FromKeeper::Exit(exit));
    }

    pub(super) fn exec_exit(&mut self, waiter: Waiter, id: &str) -> Outcome {
        let exec = self
            .execs
            .get_mut(id)
            .ok_or_else(|| Refusal::not_found(id))?;
        if let ExecState::Exited(status) = exec.state {
            self.execs.remove(id);
            return now(Answer::ExecExit(status));
        }
        exec.waiters.push(waiter);
        Ok(None)
    }

    pub(super) fn forget(&mut self, id: &str) -> Outcome {
        match self.containers.get(id).map(|container| &container.state) {
            None => return now(Answer::Done),
            Some(ContainerState::Exited(_)) => {}
            Some(_) => return Err(Refusal::state(id, "still runs")),
        }
        self.drop_container(id);
        // Execs that outlived it are reaped as nobody's.
        let children = &mut self.children;
        let mut waiters = Vec::new();
        self.execs.retain(|_, exec| {
            let stays = exec.container != id;
            if !stays {
                children.remove(&exec.pid);
                waiters.append(&mut exec.waiters);
            }
            stays
        });
        for waiter in waiters {
            self.answer(waiter, Err(Refusal::not_found(id)));
        }
        now(Answer::Done)
    }

    /// Lets go of all that belongs to a container, except its process.
    pub(super) fn drop_container(&mut self, id: &str) {
        let Some(container) = self.containers.remove(id) else {
            return;
        };
        self.children.remove(&container.record.identity.pid);
        if !matches!(container.streams, Streams::None | Streams::LostTerminal) {
            self.tell_scribe_to_drop(id);
        }
        self.remove_container_dir(id);
    }

    pub(super) fn resize(&mut self, id: &str, width: u16, height: u16) -> Outcome {
        let container = self
            .containers
            .get(id)
            .ok_or_else(|| Refusal::not_found(id))?;
        let master = container
            .streams
            .master()
            .ok_or_else(|| Refusal::state(id, "has no terminal"))?;
        let size = rustix::termios::Winsize {
            ws_row: height,
            ws_col: width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(master, size)
            .map_err(|errno| linux::Error::new("set terminal size of", id, errno.raw_os_error()))?;
        now(Answer::Done)
    }
}

/// Nanoseconds since 1970, UTC.
fn wall_clock_ns() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
