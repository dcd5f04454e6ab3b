//! Keeps the history as long as a watch may want to resume from it, and no longer.

use std::collections::VecDeque;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Error, Revision, Store};

/// How much history to keep.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// History of this age is dropped.
    pub age: Duration,
    /// How often to look. A revision's age is known this exactly.
    pub interval: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(300),
            interval: Duration::from_secs(60),
        }
    }
}

/// Compacts `store` until `stop` is cancelled or the store is closed.
pub async fn run(store: &dyn Store, policy: Policy, stop: CancellationToken) {
    let kept = policy
        .age
        .as_nanos()
        .div_ceil(policy.interval.as_nanos().max(1)) as usize;
    let mut seen: VecDeque<Revision> = VecDeque::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(policy.interval) => {}
        }
        let Ok(newest) = store.revision().await else {
            return;
        };
        seen.push_back(newest);
        if seen.len() <= kept {
            continue;
        }
        let Some(old) = seen.pop_front() else {
            continue;
        };
        match store.compact(old).await {
            Ok(()) => {}
            Err(Error::Closed) => return,
            Err(error) => tracing::warn!(%error, revision = %old, "compact the store"),
        }
    }
}
