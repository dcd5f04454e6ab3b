//! The embedded engine: one SQLite file in WAL mode, and one thread that alone touches it.
//!
//! Writes that wait while the disk syncs are committed together. Each is acknowledged after the sync and after
//! the watches were told, so whoever got an acknowledgement finds its write in every watch's queue.

mod log;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as thread_channel;
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::{Error, Event, ListOptions, Listing, Record, Result, Revision, Store, Watch};
use log::Log;

/// Writes that are committed together, at most.
const GROUP_LIMIT: usize = 256;

/// Commits that a watch may lag behind before it is ended.
const WATCH_QUEUE: usize = 1024;

/// The store in a SQLite file. Clones share it; the file is closed when the last one is dropped.
#[derive(Clone)]
pub struct Sqlite {
    engine: Arc<Engine>,
}

struct Engine {
    requests: Option<thread_channel::Sender<Request>>,
    newest: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its requests' `Closed`.
            let _ = thread.join();
        }
    }
}

/// Why a store file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("create {}: {source}", path.display())]
    Create {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("open {}: another process has it open; stop that one first", path.display())]
    Busy { path: PathBuf },
    #[error("open {}: it has schema {found}, this program reads {expected}", path.display())]
    Schema {
        path: PathBuf,
        found: i64,
        expected: i64,
    },
    #[error("open {}: {source}", path.display())]
    Sqlite {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("start the store's thread: {0}")]
    Thread(std::io::Error),
}

type Reply<T> = oneshot::Sender<Result<T>>;

enum Request {
    Write(Write, Reply<Revision>),
    Get(String, Reply<Option<Record>>),
    List(String, ListOptions, Reply<Listing>),
    Watch(String, Revision, Reply<Watch>),
    Compact(Revision, Reply<()>),
    Oldest(Reply<Revision>),
}

/// A write and the state that it expects.
struct Write {
    key: String,
    value: Bytes,
    expects: Expects,
    deletes: bool,
}

#[derive(Clone, Copy)]
enum Expects {
    Absent,
    At(Revision),
}

impl Sqlite {
    /// Opens the store at `path`, mode 0600, or makes it.
    ///
    /// # Errors
    /// [`OpenError::Busy`] when another process has it open: one file belongs to one server.
    pub fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        let log = Log::open(path)?;
        let newest = Arc::new(AtomicU64::new(log.newest().0));
        let (requests, inbox) = thread_channel::channel();
        let worker = Worker {
            log,
            newest: newest.clone(),
            watches: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || worker.run(&inbox))
            .map_err(OpenError::Thread)?;
        Ok(Self {
            engine: Arc::new(Engine {
                requests: Some(requests),
                newest,
                thread: Some(thread),
            }),
        })
    }

    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> BoxFuture<'_, Result<T>> {
        let (reply, answer) = oneshot::channel();
        let sent = self
            .engine
            .requests
            .as_ref()
            .is_some_and(|r| r.send(request(reply)).is_ok());
        async move {
            if !sent {
                return Err(Error::Closed);
            }
            answer.await.unwrap_or(Err(Error::Closed))
        }
        .boxed()
    }

    fn write(
        &self,
        key: &str,
        value: Bytes,
        expects: Expects,
        deletes: bool,
    ) -> BoxFuture<'_, Result<Revision>> {
        let write = Write {
            key: key.to_owned(),
            value,
            expects,
            deletes,
        };
        self.ask(|reply| Request::Write(write, reply))
    }
}

impl Store for Sqlite {
    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        std::future::ready(Ok(Revision(self.engine.newest.load(Ordering::Acquire)))).boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>>> {
        self.ask(|reply| Request::Get(key.to_owned(), reply))
    }

    fn list<'a>(&'a self, prefix: &'a str, options: ListOptions) -> BoxFuture<'a, Result<Listing>> {
        self.ask(|reply| Request::List(prefix.to_owned(), options, reply))
    }

    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision>> {
        self.write(key, value, Expects::Absent, false)
    }

    fn update<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Revision,
    ) -> BoxFuture<'a, Result<Revision>> {
        self.write(key, value, Expects::At(expected), false)
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        last: Bytes,
        expected: Revision,
    ) -> BoxFuture<'a, Result<Revision>> {
        self.write(key, last, Expects::At(expected), true)
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch>> {
        self.ask(|reply| Request::Watch(prefix.to_owned(), after, reply))
    }

    fn compact(&self, to: Revision) -> BoxFuture<'_, Result<()>> {
        self.ask(|reply| Request::Compact(to, reply))
    }

    fn oldest(&self) -> BoxFuture<'_, Result<Revision>> {
        self.ask(Request::Oldest)
    }
}

/// The thread that owns the file.
struct Worker {
    log: Log,
    newest: Arc<AtomicU64>,
    watches: Vec<Watcher>,
}

struct Watcher {
    prefix: String,
    batches: mpsc::Sender<Arc<[Event]>>,
}

impl Worker {
    fn run(mut self, inbox: &thread_channel::Receiver<Request>) {
        let mut next = inbox.recv().ok();
        while let Some(request) = next {
            next = match request {
                Request::Write(write, reply) => {
                    let (group, other) = gather((write, reply), inbox);
                    self.commit(group);
                    other
                }
                other => {
                    self.answer(other);
                    None
                }
            };
            next = next.or_else(|| inbox.recv().ok());
        }
    }

    fn answer(&mut self, request: Request) {
        // Whoever asked may have gone away; that is no concern of the store.
        match request {
            Request::Write(write, reply) => self.commit(vec![(write, reply)]),
            Request::Get(key, reply) => drop(reply.send(self.log.get(&key))),
            Request::List(prefix, options, reply) => {
                drop(reply.send(self.log.list(&prefix, &options)))
            }
            Request::Watch(prefix, after, reply) => drop(reply.send(self.watch(prefix, after))),
            Request::Compact(to, reply) => drop(reply.send(self.log.compact(to))),
            Request::Oldest(reply) => drop(reply.send(Ok(self.log.oldest()))),
        }
    }

    fn watch(&mut self, prefix: String, after: Revision) -> Result<Watch> {
        let missed = self.log.since(&prefix, after)?;
        let (batches, receiver) = mpsc::channel(WATCH_QUEUE);
        if !missed.is_empty() {
            // The queue is new and empty, so this can't fail.
            let _ = batches.try_send(missed.into());
        }
        self.watches.push(Watcher { prefix, batches });
        Ok(Watch { batches: receiver })
    }

    fn commit(&mut self, group: Vec<(Write, Reply<Revision>)>) {
        let mut replies = Vec::with_capacity(group.len());
        let mut events: Vec<Event> = Vec::with_capacity(group.len());
        let committed = self.log.transaction(|transaction| {
            for (write, reply) in group {
                let outcome = transaction.apply(&write);
                replies.push((
                    reply,
                    outcome.as_ref().map(|e| e.revision).map_err(Clone::clone),
                ));
                events.extend(outcome.ok());
            }
        });
        if committed.is_ok() {
            self.newest.store(self.log.newest().0, Ordering::Release);
            self.publish(events);
        }
        for (reply, outcome) in replies {
            let outcome = committed.clone().and(outcome);
            drop(reply.send(outcome));
        }
    }

    fn publish(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let events: Arc<[Event]> = events.into();
        self.watches.retain(|watcher| {
            let batch = if events.iter().all(|e| e.key.starts_with(&watcher.prefix)) {
                events.clone()
            } else {
                events
                    .iter()
                    .filter(|e| e.key.starts_with(&watcher.prefix))
                    .cloned()
                    .collect()
            };
            // A watch whose queue is full is too slow, one whose queue is closed is over.
            if batch.is_empty() {
                !watcher.batches.is_closed()
            } else {
                watcher.batches.try_send(batch).is_ok()
            }
        });
    }
}

/// The write, those that wait behind it, and the first request that is not one.
fn gather(
    first: (Write, Reply<Revision>),
    inbox: &thread_channel::Receiver<Request>,
) -> (Vec<(Write, Reply<Revision>)>, Option<Request>) {
    let mut group = vec![first];
    while group.len() < GROUP_LIMIT {
        match inbox.try_recv() {
            Ok(Request::Write(write, reply)) => group.push((write, reply)),
            Ok(other) => return (group, Some(other)),
            Err(_) => break,
        }
    }
    (group, None)
}

#[cfg(test)]
mod tests;
