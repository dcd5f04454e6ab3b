//! A queue of keys to reconcile: a key waits once however often it is added, is worked on by one worker at a
//! time, and comes back after a growing, jittered delay when its reconcile fails.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// A shared, de-duplicating queue. Cloning gives another handle to the same queue.
pub struct Queue<K>(Arc<Shared<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`.
    waiting: HashSet<K>,
    /// Keys a worker holds; the flag says that the key was added again meanwhile.
    running: HashMap<K, bool>,
    delayed: BTreeSet<(Instant, K)>,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash + Ord + Display + Send + Sync + 'static> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash + Ord + Display + Send + Sync + 'static> Queue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                waiting: HashSet::new(),
                running: HashMap::new(),
                delayed: BTreeSet::new(),
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for `key` to be reconciled as soon as a worker is free.
    pub fn add(&self, key: K) {
        self.state().enqueue(key);
        self.0.changed.notify_one();
    }

    /// Asks for `key` to be reconciled once `delay` has passed. Does not hold back an earlier request.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.state().delayed.insert((Instant::now() + delay, key));
        self.0.changed.notify_one();
    }

    async fn next(&self) -> K {
        loop {
            let wake = {
                let mut state = self.state();
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.0.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match wake {
                Some(at) => tokio::select! {
                    () = self.0.changed.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.0.changed.notified().await,
            }
        }
    }

    /// Gives `key` back; `failed` brings it back later, each time later than the time before.
    fn finish(&self, key: K, failed: bool) {
        let mut state = self.state();
        if state.running.remove(&key) == Some(true) {
            state.enqueue(key.clone());
        }
        if failed {
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let delay = retry_delay(*failures);
            *failures = failures.saturating_add(1);
            state.delayed.insert((Instant::now() + delay, key));
        } else {
            state.failures.remove(&key);
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Reconciles keys with `workers` workers until `shutdown`. `reconcile` answers with the delay after which
    /// it wants the key again, if at all; an error is logged once, here, and the key comes back.
    pub async fn run<F, R, E>(
        &self,
        name: &'static str,
        workers: usize,
        shutdown: CancellationToken,
        reconcile: F,
    ) where
        F: Fn(K) -> R + Clone + Send + 'static,
        R: Future<Output = Result<Option<Duration>, E>> + Send,
        E: Display,
    {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..workers {
            let (queue, reconcile, shutdown) = (self.clone(), reconcile.clone(), shutdown.clone());
            tasks.spawn(async move {
                loop {
                    let key = tokio::select! {
                        () = shutdown.cancelled() => return,
                        key = queue.next() => key,
                    };
                    match reconcile(key.clone()).await {
                        Ok(again) => {
                            queue.finish(key.clone(), false);
                            if let Some(delay) = again {
                                queue.add_after(key, delay);
                            }
                        }
                        Err(error) => {
                            tracing::debug!(controller = name, %key, %error, "reconcile failed, will retry");
                            queue.finish(key, true);
                        }
                    }
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl<K: Clone + Eq + Hash + Ord> State<K> {
    fn enqueue(&mut self, key: K) {
        if let Some(again) = self.running.get_mut(&key) {
            *again = true;
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some((at, _)) = self.delayed.first() {
            if *at > now {
                return;
            }
            if let Some((_, key)) = self.delayed.pop_first() {
                self.enqueue(key);
            }
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.running.insert(key.clone(), false);
        Some(key)
    }
}

fn retry_delay(failures: u32) -> Duration {
    let full = FIRST_RETRY
        .saturating_mul(1 << failures.min(14))
        .min(LAST_RETRY);
    full.mul_f64(rand::rng().random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_key_added_many_times_is_reconciled_once() {
        let queue = Queue::new();
        for _ in 0..10 {
            queue.add("a".to_string());
        }
        let count = Arc::new(AtomicUsize::new(0));
        let (seen, stop) = (count.clone(), CancellationToken::new());
        let running = queue.run("test", 2, stop.clone(), move |_| {
            let seen = seen.clone();
            async move {
                seen.fetch_add(1, Ordering::SeqCst);
                Ok::<_, String>(None)
            }
        });
        tokio::select! { () = running => {}, () = tokio::time::sleep(Duration::from_millis(50)) => {} }
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_failed_key_comes_back_until_it_succeeds() {
        let queue = Queue::new();
        queue.add("a".to_string());
        let (count, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let (seen, done) = (count.clone(), stop.clone());
        queue
            .run("test", 1, stop, move |_| {
                let (seen, done) = (seen.clone(), done.clone());
                async move {
                    if seen.fetch_add(1, Ordering::SeqCst) < 3 {
                        return Err("not yet");
                    }
                    done.cancel();
                    Ok(None)
                }
            })
            .await;
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn a_key_added_while_it_runs_runs_again_and_never_twice_at_once() {
        let queue = Queue::new();
        queue.add(1u32.to_string());
        let first = queue.next().await;
        queue.add(first.clone());
        assert!(
            tokio::time::timeout(Duration::from_millis(10), queue.next())
                .await
                .is_err()
        );
        queue.finish(first.clone(), false);
        assert_eq!(queue.next().await, first);
    }
}
