//! Brings the store's writes into the cache, in order.

use std::sync::Arc;

use super::{Cache, ROOT, Resource};
use crate::store::{self, Event, ListOptions, Revision, Watch};

/// How many of the last writes are replayed at a start, so that clients of the server before can go on with
/// their watches.
const REPLAYED: u64 = 1000;

/// Records that are read at once at a start, so that not all of the store is in memory twice.
const LOADED_AT_ONCE: usize = 1000;

/// Why the cache no longer follows the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum FeedError {
    #[error("follow the store from revision {from}: {source}")]
    Watch {
        from: Revision,
        source: store::Error,
    },
}

impl Cache {
    /// Fills the cache and returns the watch that continues it.
    pub(super) async fn load(&self) -> store::Result<Watch> {
        let newest = self.store.revision().await?;
        let start = Revision(newest.0.saturating_sub(REPLAYED)).max(self.store.oldest().await?);
        for resource in &self.resources {
            resource.start_at(start);
        }
        let mut after = None;
        loop {
            let options = ListOptions {
                after: after.take(),
                limit: LOADED_AT_ONCE,
                at: Some(start),
                count: false,
            };
            let listing = self.store.list(ROOT, options).await?;
            for record in &listing.records {
                if let Some((resource, key)) = self.locate(&record.key) {
                    resource.load(key, &record.value, record.modified);
                }
            }
            after = listing.records.last().map(|last| last.key.to_string());
            if !listing.more {
                break;
            }
        }
        self.applied.send_replace(start);
        let mut watch = self.store.watch(ROOT, start).await?;
        while self.applied() < newest {
            let Some(batch) = watch.next().await else {
                return Err(store::Error::Closed);
            };
            self.apply(&batch);
        }
        Ok(watch)
    }

    /// Applies every write until the store is closed. A watch that was too slow is resumed.
    pub(super) async fn follow(self: Arc<Self>, mut watch: Watch) {
        loop {
            while let Some(batch) = watch.next().await {
                self.apply(&batch);
            }
            match self.store.watch(ROOT, self.applied()).await {
                Ok(resumed) => watch = resumed,
                Err(store::Error::Closed) => return,
                Err(source) => {
                    // Nothing that is read from here would be true any more.
                    tracing::error!(error = %FeedError::Watch { from: self.applied(), source }, "the cache stopped");
                    return;
                }
            }
        }
    }

    fn apply(&self, batch: &[Event]) {
        for event in batch {
            if let Some((resource, key)) = self.locate(&event.key) {
                resource.apply(key, event);
            }
        }
        if let Some(last) = batch.last() {
            self.applied.send_replace(last.revision);
        }
    }

    /// The resource that a key of the store belongs to, and its key there (`NAMESPACE/NAME` or `NAME`).
    fn locate<'a>(&self, key: &'a str) -> Option<(&Resource, &'a str)> {
        let mut slashes = key.strip_prefix(ROOT)?.match_indices('/').skip(1);
        let end = ROOT.len() + slashes.next()?.0 + 1;
        let (prefix, rest) = key.split_at(end);
        Some((self.by_prefix.get(prefix)?, rest))
    }
}
