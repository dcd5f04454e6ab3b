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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::store::sqlite::Sqlite;

    #[tokio::test]
    async fn history_that_is_old_enough_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Sqlite::open(&folder.path().join("store.db")).unwrap());
        let first = store.create("/a", Bytes::new()).await.unwrap();
        let second = store.update("/a", Bytes::new(), first).await.unwrap();
        let policy = Policy {
            age: Duration::from_millis(20),
            interval: Duration::from_millis(10),
        };
        let stop = CancellationToken::new();
        let (running, stopped) = (store.clone(), stop.clone());
        let task = tokio::spawn(async move { run(&*running, policy, stopped).await });
        while store.oldest().await.unwrap() < second {
            tokio::time::sleep(policy.interval).await;
        }
        stop.cancel();
        task.await.unwrap();
        assert!(store.watch("/", first).await.is_err());
        assert!(store.get("/a").await.unwrap().is_some());
    }
}
