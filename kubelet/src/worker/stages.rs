//! How far a pod got, and how long each stage took: what `orlop status` shows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// One stage of a pod's start.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// `sandbox`, `volumes`, `image a`, `create a`, `start a`, `running`, `ready`.
    pub name: String,
    /// Milliseconds after the kubelet first saw the pod.
    pub at_ms: f64,
    /// Milliseconds that it took; of a mere moment: since the kubelet first saw the pod.
    pub took_ms: f64,
}

/// The stages of one pod; cheap to clone.
#[derive(Clone)]
pub struct Stages {
    begun: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    stages: Vec<Stage>,
    waiting: Vec<String>,
}

/// A pod that restarts for years must not grow this.
const MAX_STAGES: usize = 64;

impl Stages {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            inner: Arc::default(),
        }
    }

    /// Runs `work` as a stage.
    pub async fn time<T>(&self, name: impl Into<String>, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let result = work.await;
        self.push(name.into(), began, began.elapsed());
        result
    }

    /// Notes a moment, the first time only.
    pub fn reached(&self, name: &str) {
        let known = self.lock().stages.iter().any(|s| s.name == name);
        if !known {
            self.push(name.to_owned(), self.begun, self.begun.elapsed());
        }
    }

    /// Says what the pod waits for.
    pub fn wait_for(&self, what: Vec<String>) {
        self.lock().waiting = what;
    }

    /// The stages so far, and what the pod waits for.
    pub fn snapshot(&self) -> (Vec<Stage>, Vec<String>) {
        let inner = self.lock();
        (inner.stages.clone(), inner.waiting.clone())
    }

    fn push(&self, name: String, began: Instant, took: Duration) {
        let mut inner = self.lock();
        if inner.stages.len() < MAX_STAGES {
            let at = began.duration_since(self.begun);
            inner.stages.push(Stage {
                name,
                at_ms: millis(at),
                took_ms: millis(took),
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
