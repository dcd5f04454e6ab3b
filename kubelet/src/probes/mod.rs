//! Probes: one task for each probe of each container instance, on the clock that the user asked for.
//!
//! A startup probe holds the other two back until it succeeds. A result reaches the worker when it changes, that is
//! when enough probes in a row agree.

mod check;
pub mod http;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container as Spec, Pod, Probe};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::ids::PodUid;
use crate::plan::ProbeResults;
use crate::pod::ProbeExt;
use crate::recorder::{Kind, Recorder};
use crate::runtime::Cri;
use crate::wakes::Wakes;

pub use check::{Outcome, resolve_port};

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Whether the container has started.
    Startup,
    /// Whether it is alive.
    Liveness,
    /// Whether it takes requests.
    Readiness,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What every probe needs.
#[derive(Clone)]
pub struct ProbeRunner {
    cri: Cri,
    recorder: Recorder,
    wakes: Wakes,
}

/// The probes of one pod: dropping it ends them.
pub struct PodProbes {
    runner: ProbeRunner,
    uid: PodUid,
    containers: HashMap<String, Probed>,
}

struct Probed {
    results: Arc<Mutex<ProbeResults>>,
    _tasks: JoinSet<()>,
}

impl ProbeRunner {
    /// A runner of this node.
    pub fn new(cri: Cri, recorder: Recorder, wakes: Wakes) -> Self {
        Self {
            cri,
            recorder,
            wakes,
        }
    }

    /// The probes of one pod, none yet.
    pub fn for_pod(&self, uid: PodUid) -> PodProbes {
        PodProbes {
            runner: self.clone(),
            uid,
            containers: HashMap::new(),
        }
    }
}

/// A running container that is to be probed.
pub struct Subject<'a> {
    /// Its pod.
    pub pod: &'a Arc<Pod>,
    /// Its specification.
    pub spec: &'a Spec,
    /// The runtime's id.
    pub container_id: &'a str,
    /// Where HTTP and TCP probes go, unless they say.
    pub pod_ip: Option<IpAddr>,
    /// How long ago it started.
    pub age: Duration,
    /// What is known from before the kubelet was restarted.
    pub known: ProbeResults,
}

impl PodProbes {
    /// Begins the probes of a container, unless they run.
    pub fn ensure(&mut self, subject: &Subject) {
        if self.containers.contains_key(subject.container_id) {
            return;
        }
        let spec = subject.spec;
        let probes = [
            (Purpose::Startup, &spec.startup_probe),
            (Purpose::Liveness, &spec.liveness_probe),
            (Purpose::Readiness, &spec.readiness_probe),
        ];
        let results = Arc::new(Mutex::new(subject.known));
        let started = tokio::sync::watch::Sender::new(
            spec.startup_probe.is_none() || subject.known.startup == Some(true),
        );
        let mut tasks = JoinSet::new();
        for (purpose, probe) in probes {
            let Some(probe) = probe else { continue };
            if purpose == Purpose::Startup && subject.known.startup == Some(true) {
                continue;
            }
            let task = Task {
                runner: self.runner.clone(),
                uid: self.uid.clone(),
                pod: subject.pod.clone(),
                container: spec.name.clone(),
                container_id: subject.container_id.to_owned(),
                pod_ip: subject.pod_ip,
                probe: probe.clone(),
                purpose,
                results: results.clone(),
                started: started.clone(),
            };
            tasks.spawn(task.run(subject.age));
        }
        if !tasks.is_empty() {
            let probed = Probed {
                results,
                _tasks: tasks,
            };
            self.containers
                .insert(subject.container_id.to_owned(), probed);
        }
    }

    /// Ends the probes of containers that `keep` doesn't want.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.containers.retain(|id, _| keep(id));
    }

    /// What the probes found last, by container id.
    pub fn results(&self) -> HashMap<String, ProbeResults> {
        self.containers
            .iter()
            .map(|(id, probed)| (id.clone(), *lock(&probed.results)))
            .collect()
    }
}

fn lock(results: &Mutex<ProbeResults>) -> MutexGuard<'_, ProbeResults> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    runner: ProbeRunner,
    uid: PodUid,
    pod: Arc<Pod>,
    container: String,
    container_id: String,
    pod_ip: Option<IpAddr>,
    probe: Probe,
    purpose: Purpose,
    results: Arc<Mutex<ProbeResults>>,
    started: tokio::sync::watch::Sender<bool>,
}

impl Task {
    async fn run(self, age: Duration) {
        let delay = Duration::from_secs(self.probe.initial_delay()).saturating_sub(age);
        let mut next = Instant::now() + delay;
        if self.purpose != Purpose::Startup {
            // The sender lives in this very task.
            let _ = self.started.subscribe().wait_for(|started| *started).await;
        }
        let period = Duration::from_secs(self.probe.period());
        let mut tally = Tally::default();
        let mut early = Early::new(next, period);
        loop {
            sleep_until(next).await;
            let outcome = self.check().await;
            next = match (&outcome, early.again(self.purpose, tally.successes_ever)) {
                // Nobody listens yet, and nobody was asked: it costs the container nothing to look again soon.
                (Outcome::Refused(_), Some(soon)) => soon,
                _ => {
                    self.count(&mut tally, outcome);
                    let now = Instant::now();
                    let mut due = next;
                    while due <= now {
                        due += period;
                    }
                    due
                }
            };
            if self.purpose == Purpose::Startup && lock(&self.results).startup.is_some() {
                return;
            }
        }
    }

    async fn check(&self) -> Outcome {
        let timeout = Duration::from_secs(self.probe.timeout());
        check::check(
            &self.runner.cri,
            &self.pod,
            &self.container,
            &self.container_id,
            self.pod_ip,
            &self.probe,
            timeout,
        )
        .await
    }

    fn count(&self, tally: &mut Tally, outcome: Outcome) {
        if let Outcome::Failure(message) | Outcome::Refused(message) = &outcome {
            let message = format!("{} probe failed: {message}", self.purpose.word());
            self.runner.recorder.container(
                &self.pod,
                &self.container,
                Kind::Warning,
                "Unhealthy",
                message,
            );
        }
        let good = matches!(outcome, Outcome::Success);
        let enough = if good {
            self.probe.success_threshold()
        } else {
            self.probe.failure_threshold()
        };
        if tally.add(good) < enough {
            return;
        }
        let mut results = lock(&self.results);
        let slot = match self.purpose {
            Purpose::Startup => &mut results.startup,
            Purpose::Liveness => &mut results.liveness,
            Purpose::Readiness => &mut results.readiness,
        };
        let news = *slot != Some(good);
        *slot = Some(good);
        drop(results);
        if news {
            if self.purpose == Purpose::Startup && good {
                self.started.send_replace(true);
            }
            self.runner.wakes.wake(&self.uid);
        }
    }
}

#[derive(Default)]
struct Tally {
    good: bool,
    in_a_row: u32,
    successes_ever: bool,
}

impl Tally {
    fn add(&mut self, good: bool) -> u32 {
        if self.good != good {
            self.in_a_row = 0;
        }
        self.good = good;
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.successes_ever |= good;
        self.in_a_row
    }
}

/// Looking again soon while a container that has just started doesn't listen yet. Such a probe never reached the
/// container, so it isn't one of those that the user counts; after one period the user's clock is all there is.
struct Early {
    until: Instant,
    pause: Duration,
}

impl Early {
    fn new(from: Instant, period: Duration) -> Self {
        Self {
            until: from + period,
            pause: Duration::from_millis(5),
        }
    }

    fn again(&mut self, purpose: Purpose, succeeded_before: bool) -> Option<Instant> {
        let next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(Duration::from_millis(250));
        (purpose != Purpose::Liveness && !succeeded_before && next < self.until).then_some(next)
    }
}
