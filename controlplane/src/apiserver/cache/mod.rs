//! Every object in memory, as compact JSON, fed by one watch of the store.
//!
//! Reads are answered from here. A read first asks the store for its newest revision and waits until the feed has
//! come that far, so it sees every write that was acknowledged before it began (as upstream's consistent reads
//! from cache do). Watches get the same bytes that lists give: each event is written once and shared.

mod feed;
mod filter;
mod resource;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use filter::Filter;
pub use resource::{ChangeType, Resource, Seen, Subscription};

use super::failure::{Failure, Result};
use super::kind::Kind;
use crate::store::{Revision, Store};

/// Where every key of the API begins in the store.
const ROOT: &str = "/registry/";

/// All resources, and how far the feed has come.
pub struct Cache {
    store: Arc<dyn Store>,
    resources: Vec<Arc<Resource>>,
    by_prefix: HashMap<String, Arc<Resource>>,
    applied: watch::Sender<Revision>,
}

impl Cache {
    /// Reads all of `store` into memory and follows it from then on, until `stop` is cancelled.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn start(
        store: Arc<dyn Store>,
        kinds: &'static [Kind],
        stop: CancellationToken,
    ) -> crate::store::Result<Arc<Self>> {
        let mut by_prefix = HashMap::new();
        let mut resources: Vec<Arc<Resource>> = Vec::new();
        for kind in kinds {
            let resource = Arc::new(Resource::new(kind));
            by_prefix
                .entry(resource.prefix().to_owned())
                .or_insert_with(|| resource.clone());
            resources.push(resource);
        }
        let cache = Arc::new(Self {
            store,
            resources,
            by_prefix,
            applied: watch::Sender::new(Revision::default()),
        });
        let watch = cache.load().await?;
        let following = cache.clone();
        tokio::spawn(async move {
            stop.run_until_cancelled(following.follow(watch)).await;
        });
        Ok(cache)
    }

    pub fn resources(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// The resource that is served under this group and plural name; `version` may be empty for any.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| {
            r.kind.group == group
                && r.kind.plural == plural
                && (version.is_empty() || r.kind.version == version)
        })
    }

    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// How far the cache is.
    pub fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Tells of every advance of the cache.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.applied.subscribe()
    }

    /// Waits until every write that was acknowledged before this call is in the cache.
    pub async fn catch_up(&self) -> Result<Revision> {
        let newest = self.store.revision().await?;
        self.wait_for(newest).await?;
        Ok(newest)
    }

    /// Waits until the cache holds `revision`, for three seconds at most, as upstream does.
    pub async fn wait_for(&self, revision: Revision) -> Result<()> {
        if self.applied() >= revision {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        let arrived = applied.wait_for(|applied| *applied >= revision);
        match tokio::time::timeout(std::time::Duration::from_secs(3), arrived).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Failure::unavailable("the server is shutting down")),
            Err(_) => Err(Failure::revision_in_future(revision, self.applied())),
        }
    }
}
