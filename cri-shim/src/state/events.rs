//! The log of what happened to containers.
//!
//! CRI's events carry no number, so their times serve as one: each is later than the one before. A reader that
//! comes back names the last time that it saw (the gRPC metadata [`Events::SINCE`]) and resumes after it, as long as
//! the log still holds what followed.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use cri_api::v1::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;

use super::now_ns;

/// How many events the log holds, and by how many a slow reader may fall behind.
const KEPT: usize = 1024;

/// One event, as it is sent.
pub type Event = ContainerEventResponse;

#[derive(Debug)]
pub struct Events {
    log: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
}

impl Events {
    /// The gRPC metadata by which a reader resumes.
    pub const SINCE: &'static str = "orlop-events-since";

    pub fn new() -> Self {
        Self {
            log: Mutex::new(VecDeque::new()),
            sender: broadcast::Sender::new(KEPT),
        }
    }

    /// Adds an event; `fill` completes it with the sandbox's and the containers' statuses.
    pub fn add(&self, container_id: &str, kind: ContainerEventType, fill: impl FnOnce(&mut Event)) {
        let mut event = Event {
            container_id: container_id.into(),
            container_event_type: kind as i32,
            ..Event::default()
        };
        fill(&mut event);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let after = log.back().map_or(0, |last| last.created_at + 1);
        event.created_at = now_ns().max(after);
        if log.len() == KEPT {
            log.pop_front();
        }
        log.push_back(event.clone());
        // Sent under the lock: a subscription sees an event in the log or on the channel, never in both or neither.
        // Without a reader there is nobody to tell.
        let _ = self.sender.send(event);
    }

    /// The events after `since` that the log holds, and the channel of those to come. `None` for `since` means only
    /// those to come.
    pub fn subscribe(&self, since: Option<i64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = since.map(|since| {
            log.iter()
                .filter(|event| event.created_at > since)
                .cloned()
                .collect()
        });
        (missed.unwrap_or_default(), self.sender.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_resumes_where_it_was() {
        let events = Events::new();
        for id in ["a", "b", "c"] {
            events.add(id, ContainerEventType::ContainerCreatedEvent, |_| {});
        }
        let (all, mut to_come) = events.subscribe(Some(0));
        assert!(
            all.windows(2)
                .all(|pair| pair[0].created_at < pair[1].created_at)
        );
        let (rest, _) = events.subscribe(Some(all[0].created_at));
        assert_eq!(
            rest.iter()
                .map(|event| event.container_id.as_str())
                .collect::<Vec<_>>(),
            ["b", "c"]
        );
        events.add("d", ContainerEventType::ContainerStoppedEvent, |_| {});
        assert_eq!(to_come.try_recv().unwrap().container_id, "d");
        assert!(events.subscribe(None).0.is_empty());
    }
}
