//! One batch of one stream: look, show, write, remove.

use super::container::Container;
use super::entries;
use super::journal::Intent;
use super::output::MAX_PEEK;
use super::protocol::FromScribe;
use super::server::Scribe;
use std::time::Instant;

/// How a batch went.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There may be more.
    Again,
    /// Nothing to do until something happens.
    Idle,
    /// Look again after a pause.
    Pause,
}

impl Scribe {
    /// Looks at a stream, writes one batch at most, and queues it again if there may be more.
    pub(super) fn advance(&mut self, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(output) = container.outputs.get_mut(stream) else {
            return;
        };
        output.queued = false;
        let may_have_more = output.pump();
        let step = if self.held_back(id) {
            Step::Pause
        } else {
            self.write_batch(id, stream)
        };
        match step {
            Step::Again => self.make_ready(id, stream),
            Step::Idle if may_have_more => self.make_ready(id, stream),
            Step::Idle => self.settle(id, stream),
            Step::Pause => self.pause(id, stream),
        }
    }

    /// Whether an attached client is behind, and the output waits for it. One that makes no progress is cut off.
    fn held_back(&mut self, id: &str) -> bool {
        let Some(container) = self.containers.get_mut(id) else {
            return false;
        };
        let now = Instant::now();
        let mut cut_off = Vec::new();
        let mut behind = false;
        for client in &mut container.clients {
            match client.behind() {
                None => {}
                Some(until) if until > now => behind = true,
                Some(_) => cut_off.push(client.token),
            }
        }
        for token in cut_off {
            self.drop_client(id, token);
            self.log(format!(
                "{id}: an attached client read nothing for too long and was cut off"
            ));
        }
        behind
    }

    fn write_batch(&mut self, id: &str, stream: usize) -> Step {
        let Some(container) = self.containers.get_mut(id) else {
            return Step::Idle;
        };
        let output = &container.outputs[stream];
        let peek = match output.peek(&self.scratch, &mut self.peeked) {
            Ok(peek) => peek,
            Err(errno) => {
                self.log(format!("{id}: look at output: {errno}"));
                return Step::Pause;
            }
        };
        self.show(id, stream);
        let Some(container) = self.containers.get_mut(id) else {
            return Step::Idle;
        };
        let output = &mut container.outputs[stream];
        let mut ended = output.hung_up || output.drain.is_some();
        self.formatted.clear();
        // A look that took in less than there is has met the limit of pieces: what it saw can't become more.
        ended |= peek.more && self.peeked.len() < MAX_PEEK;
        let stamp = entries::timestamp(wall_clock_ns());
        let mut taken = entries::format(
            &self.peeked,
            output.name,
            &stamp,
            ended,
            &mut self.formatted,
        );
        if taken == 0 {
            if self.peeked.is_empty() {
                return Step::Idle;
            }
            if !output.is_full() {
                return Step::Idle;
            }
            taken = entries::format(&self.peeked, output.name, &stamp, true, &mut self.formatted);
        }
        self.commit(id, stream, taken)
    }

    /// Shows attached clients what they have not seen.
    fn show(&mut self, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let output = &mut container.outputs[stream];
        let number = if stream == 1 { 2 } else { 1 };
        let new = self.peeked.get(output.seen..).unwrap_or_default();
        output.seen = output.seen.max(self.peeked.len());
        let mut gone = Vec::new();
        if !new.is_empty() {
            for client in &mut container.clients {
                if client.send(number, new).is_err() {
                    gone.push(client.token);
                }
            }
        }
        let tokens: Vec<_> = container
            .clients
            .iter()
            .map(|client| client.token)
            .collect();
        gone.into_iter()
            .for_each(|token| self.drop_client(id, token));
        tokens
            .into_iter()
            .for_each(|token| self.watch_client(id, token));
    }

    /// Appends the formatted entries to the log, and removes the `taken` bytes that they say from the pipe.
    fn commit(&mut self, id: &str, stream: usize, taken: usize) -> Step {
        let (Some(container), Some(journal)) = (self.containers.get_mut(id), &mut self.journal)
        else {
            return Step::Pause;
        };
        let mut problem = None;
        if container.io.log_path.is_some() {
            if container.log.is_none() {
                problem = container.reopen_log().err().map(|cause| cause.to_string());
            }
            if let Some(log) = &mut container.log {
                let intent = Intent {
                    id: id.to_owned(),
                    stream,
                    file: log.id,
                    offset: log.length,
                    length: self.formatted.len() as u64,
                    raw: taken as u64,
                    spool: journal.position(),
                };
                problem = journal
                    .intend(&intent)
                    .map_err(|errno| errno.to_string())
                    .err();
                if problem.is_none() {
                    problem = log
                        .append(&self.formatted)
                        .err()
                        .map(|cause| cause.to_string());
                }
            }
        }
        if let Some(cause) = problem {
            return self.log_failed(id, stream, taken, &cause);
        }
        if let Err(errno) = journal.remove(&container.outputs[stream].pipe, taken as u64) {
            self.log(format!("{id}: remove what was logged: {errno}"));
            return Step::Pause;
        }
        self.taken(id, stream, taken);
        self.log_works_again(id);
        Step::Again
    }

    fn taken(&mut self, id: &str, stream: usize, taken: usize) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let output = &mut container.outputs[stream];
        output.seen = output.seen.saturating_sub(taken);
        if let Some(left) = &mut output.drain {
            *left = left.saturating_sub(taken as u64);
        }
    }

    /// A log that can't be written holds its container back only until the pipe is full; from then on the oldest output
    /// is given up, so that a full disk stops a log and not a program.
    fn log_failed(&mut self, id: &str, stream: usize, taken: usize, cause: &str) -> Step {
        let (Some(container), Some(journal)) = (self.containers.get_mut(id), &mut self.journal)
        else {
            return Step::Pause;
        };
        let first = !std::mem::replace(&mut container.log_failing, true);
        let output = &container.outputs[stream];
        let give_up = output.is_full() || output.drain.is_some();
        let given_up = give_up && journal.remove(&output.pipe, taken as u64).is_ok();
        if given_up {
            container.lost += taken as u64;
            self.taken(id, stream, taken);
        }
        if first {
            self.log(format!("{id}: write log: {cause}; trying again"));
        }
        if given_up { Step::Again } else { Step::Pause }
    }

    fn log_works_again(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if std::mem::take(&mut container.log_failing) {
            let lost = std::mem::take(&mut container.lost);
            self.log(format!(
                "{id}: the log is written again; {lost} bytes of output were lost"
            ));
        }
    }

    /// A stream has nothing more: if the container has ended and this was its last, says so.
    fn settle(&mut self, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if let Some(left) = &mut container.outputs[stream].drain {
            *left = 0;
        }
        self.tell_if_drained(id);
    }

    fn tell_if_drained(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if !container.draining || container.drained || !is_drained(container) {
            return;
        }
        container.drained = true;
        self.tell_keeper(&FromScribe::Drained { id: id.to_owned() });
        self.end_clients(id);
    }
}

fn is_drained(container: &Container) -> bool {
    container
        .outputs
        .iter()
        .all(|output| output.drain == Some(0))
}

/// Nanoseconds since 1970, UTC.
fn wall_clock_ns() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
