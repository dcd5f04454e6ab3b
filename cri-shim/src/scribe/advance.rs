//! One batch of one stream: take, show, write, finish.

use super::container::Container;
use super::entries;
use super::journal::Intent;
use super::output::Output;
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
    /// Takes what a stream has, writes one batch at most, and queues it again if there may be more.
    pub(super) fn advance(&mut self, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(output) = container.outputs.get_mut(stream) else {
            return;
        };
        output.queued = false;
        if self.held_back(id) {
            return self.pause(id, stream);
        }
        let Some(output) = self.output(id, stream) else {
            return;
        };
        let may_have_more = match output.fill() {
            Ok(may_have_more) => may_have_more,
            Err(cause) => {
                self.log(format!("{id}: spool output: {cause}"));
                return self.pause(id, stream);
            }
        };
        self.show(id, stream);
        match self.write_batch(id, stream) {
            Step::Again => self.make_ready(id, stream),
            Step::Idle if may_have_more => self.make_ready(id, stream),
            Step::Idle => self.settle(id, stream),
            Step::Pause => self.pause(id, stream),
        }
    }

    fn output(&mut self, id: &str, stream: usize) -> Option<&mut Output> {
        self.containers.get_mut(id)?.outputs.get_mut(stream)
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

    /// Shows attached clients what they have not seen.
    fn show(&mut self, id: &str, stream: usize) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(output) = container.outputs.get_mut(stream) else {
            return;
        };
        let number = if stream == 1 { 2 } else { 1 };
        let new = output.spool.pending.get(output.seen..).unwrap_or_default();
        let mut gone = Vec::new();
        if !new.is_empty() {
            for client in &mut container.clients {
                if client.send(number, new).is_err() {
                    gone.push(client.token);
                }
            }
        }
        output.seen = output.spool.pending.len();
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

    fn write_batch(&mut self, id: &str, stream: usize) -> Step {
        let Some(container) = self.containers.get_mut(id) else {
            return Step::Idle;
        };
        let Some(output) = container.outputs.get(stream) else {
            return Step::Idle;
        };
        let ended = output.ended || output.drain.is_some();
        self.formatted.clear();
        let stamp = entries::timestamp(wall_clock_ns());
        let taken = entries::format(
            &output.spool.pending,
            output.name,
            &stamp,
            ended,
            &mut self.formatted,
        );
        if taken == 0 {
            return Step::Idle;
        }
        match self.append(id, stream, taken) {
            Ok(()) => {
                self.finish(id, stream, taken);
                self.log_works_again(id);
                Step::Again
            }
            Err(cause) => self.log_failed(id, stream, taken, &cause),
        }
    }

    /// Appends the formatted entries, which say `taken` bytes of the spool, to the log.
    fn append(&mut self, id: &str, stream: usize, taken: usize) -> Result<(), String> {
        let Some(container) = self.containers.get_mut(id) else {
            return Ok(());
        };
        if container.io.log_path.is_none() {
            return Ok(());
        }
        if container.log.is_none() {
            container.reopen_log().map_err(|cause| cause.to_string())?;
        }
        let (Some(log), Some(journal)) = (&mut container.log, &self.journal) else {
            return Err("no journal".to_owned());
        };
        let done = container.outputs[stream].spool.done();
        let intent = Intent {
            id: id.to_owned(),
            stream,
            file: log.id,
            offset: log.length,
            length: self.formatted.len() as u64,
            done: (done, done + taken as u64),
        };
        journal
            .intend(&intent)
            .map_err(|cause| format!("write intent: {cause}"))?;
        log.append(&self.formatted)
            .map_err(|cause| cause.to_string())
    }

    /// The first `taken` bytes of a spool are done with.
    fn finish(&mut self, id: &str, stream: usize, taken: usize) {
        let Some(output) = self.output(id, stream) else {
            return;
        };
        output.seen = output.seen.saturating_sub(taken);
        if let Some(left) = &mut output.drain {
            *left = left.saturating_sub(taken as u64);
        }
        if let Err(cause) = output.spool.finish(taken) {
            self.log(format!("{id}: count what is written: {cause}"));
        }
    }

    /// A log that can't be written holds its container back only until spool and pipe are full; from then on the oldest
    /// output is given up, so that a full disk stops a log and not a program.
    fn log_failed(&mut self, id: &str, stream: usize, taken: usize, cause: &str) -> Step {
        let Some(container) = self.containers.get_mut(id) else {
            return Step::Idle;
        };
        let first = !std::mem::replace(&mut container.log_failing, true);
        let output = &container.outputs[stream];
        let give_up = output.is_stuffed() || output.drain.is_some();
        if give_up {
            container.lost += taken as u64;
            self.finish(id, stream, taken);
        }
        if first {
            self.log(format!("{id}: write log: {cause}; trying again"));
        }
        if give_up { Step::Again } else { Step::Pause }
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
        if let Some(left) = container
            .outputs
            .get_mut(stream)
            .and_then(|output| output.drain.as_mut())
        {
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
