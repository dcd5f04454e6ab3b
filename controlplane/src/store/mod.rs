//! Where the API server's objects are kept: keys and values with a revision for every write, optimistic
//! concurrency, and a watch from any revision that has not been compacted.
//!
//! [`Store`] is the one interface; its meaning is etcd v3's. [`sqlite`] is the engine that needs nothing else.
//! `suite` holds what every engine must do.

pub mod compaction;
pub mod sqlite;
#[cfg(test)]
mod suite;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

/// The number of a write. Every write of a store gets the next one; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with the value that it has, or had at the revision that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The write that created the key, and the last one that changed it.
    pub created: Revision,
    pub modified: Revision,
}

/// One write, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Arc<str>,
    /// What was written; for a deletion what the key held before.
    pub value: Bytes,
    pub created: Revision,
    pub revision: Revision,
    pub deleted: bool,
}

/// What of a range of keys to read.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Read only keys after this one.
    pub after: Option<String>,
    /// At most so many; 0 is all.
    pub limit: usize,
    /// As of this revision instead of now.
    pub at: Option<Revision>,
    /// Count what the limit leaves out, which costs as much as reading the keys.
    pub count: bool,
}

/// An answer to [`Store::list`], in the order of keys.
#[derive(Clone, Debug)]
pub struct Listing {
    pub records: Vec<Record>,
    /// The revision that was read at.
    pub revision: Revision,
    /// Whether the limit left anything out.
    pub more: bool,
    /// How much it left out, when that was asked for.
    pub remaining: usize,
}

/// What a store could not do.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("create {key}: the key exists")]
    Exists { key: String },
    /// The key was changed or deleted since the expected revision.
    #[error("write {key}: expected revision {expected}, found {}", found.map_or("none".to_owned(), |r| r.to_string()))]
    Conflict {
        key: String,
        expected: Revision,
        found: Option<Revision>,
    },
    /// The history up to `oldest` has been dropped.
    #[error("read at revision {requested}: history before {oldest} is compacted")]
    Compacted {
        requested: Revision,
        oldest: Revision,
    },
    #[error("read at revision {requested}: the newest is {newest}")]
    Future {
        requested: Revision,
        newest: Revision,
    },
    #[error("the disk that holds the store is full")]
    Full,
    #[error("{operation}: {cause}")]
    Engine {
        operation: &'static str,
        cause: String,
    },
    #[error("the store is closed")]
    Closed,
}

pub type Result<T> = std::result::Result<T, Error>;

/// A store of keys and values with revisions, as etcd v3 defines them.
///
/// A write that was acknowledged survives the death of the process, and the machine's as far as the disk
/// keeps what it has synced. Reads see every write that was acknowledged before they began.
pub trait Store: Send + Sync + 'static {
    /// The newest revision.
    fn revision(&self) -> BoxFuture<'_, Result<Revision>>;

    /// The value of `key`, `None` when there is none.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Record>>>;

    /// The keys that begin with `prefix`.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] for a revision that can't be read.
    fn list<'a>(&'a self, prefix: &'a str, options: ListOptions) -> BoxFuture<'a, Result<Listing>>;

    /// Writes a key that must not exist.
    fn create<'a>(&'a self, key: &'a str, value: Bytes) -> BoxFuture<'a, Result<Revision>>;

    /// Writes a key that was last written at `expected`.
    fn update<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Revision,
    ) -> BoxFuture<'a, Result<Revision>>;

    /// Deletes a key that was last written at `expected`. A watch tells `last` as the deleted value: it may
    /// differ from what the key held.
    fn delete<'a>(
        &'a self,
        key: &'a str,
        last: Bytes,
        expected: Revision,
    ) -> BoxFuture<'a, Result<Revision>>;

    /// Every write after `after` to a key that begins with `prefix`, in order, without a gap.
    ///
    /// # Errors
    /// [`Error::Compacted`] when the history since `after` is no longer whole.
    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> BoxFuture<'a, Result<Watch>>;

    /// Drops the history up to `to`: values that had been overwritten or deleted by then.
    fn compact(&self, to: Revision) -> BoxFuture<'_, Result<()>>;

    /// The oldest revision that can be read or watched from.
    fn oldest(&self) -> BoxFuture<'_, Result<Revision>>;
}

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    batches: mpsc::Receiver<Arc<[Event]>>,
}

impl Watch {
    /// The next writes, at least one; those that were committed together come together. `None` when the store
    /// was closed or this watch was too slow: watch again from the last revision seen.
    pub async fn next(&mut self) -> Option<Arc<[Event]>> {
        self.batches.recv().await
    }
}

/// The keys that begin with `prefix`, as a range.
fn keys_under(prefix: &str) -> Range<String> {
    // Keys are UTF-8, which holds no byte 0xff, so one more than the last character ends the range.
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if let Some(next) = char::from_u32(last as u32 + 1) {
            end.push(next);
            break;
        }
    }
    if end.is_empty() {
        end.push(char::MAX);
    }
    prefix.to_owned()..end
}
