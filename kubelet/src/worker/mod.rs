//! One worker a pod: it looks at what is wanted and what there is, does what the plan says, and shows the status.
//!
//! It is woken by a change of the pod, of the runtime's containers, of a probe's result, of an object that the pod
//! refers to, or by the clock; between wakes it holds no more than a channel's end.
//!
//! ```text
//! run ──(sync, wait)*──▶ stop wanted ──▶ terminate ──▶ cleaned up, deleted from the API
//!  └─ended by itself──▶ wait ─────────────▲
//! ```

pub mod stages;
mod start;
mod stop;
mod sync;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::ids::PodUid;
use crate::objects::{Present, Reference};
use crate::plan::{Memory, ProbeResults};
use crate::pod::PodExt;
use crate::probes::PodProbes;
use crate::runtime::view::PodRuntime;
use crate::shared::Shared;
use crate::status::{Facts, Target, Verdict, pod_status};
use crate::volumes::Places;
use stages::Stages;
pub(crate) use stop::remove_container;

/// What is wanted of a pod.
#[derive(Clone)]
pub struct Desired {
    /// The pod, as its source has it.
    pub pod: Arc<Pod>,
    /// It is to end.
    pub stop: Option<Stop>,
}

/// How a pod is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Seconds that its containers have.
    pub grace_seconds: i64,
    /// There is no object in the API to be deleted (any more).
    pub gone: bool,
}

/// A pod's worker.
pub struct Worker {
    shared: Arc<Shared>,
    uid: PodUid,
    desired: watch::Receiver<Desired>,
    wake: Arc<tokio::sync::Notify>,
    memory: Memory,
    probes: PodProbes,
    stages: Stages,
    seen_at: Timestamp,
    verdict: Option<Verdict>,
    /// The pod ended by itself, and was cleaned up but for its traces.
    finished: bool,
    references: BTreeSet<Reference>,
    present: Present,
    /// The pod's ids on the host, if it has a user namespace of its own.
    user: Option<cri_api::v1::IdMapping>,
    places: Option<Places>,
    volume_inputs: Option<sync::VolumeInputs>,
    token_refresh: Option<Timestamp>,
    volume_retry: Retry,
    sandbox_retry: Retry,
    kills: JoinSet<(String, bool)>,
    /// Calls that make a sandbox: they are never abandoned.
    sandbox_calls: TaskTracker,
    /// Back-offs that an event has told of: until when, by container.
    announced: HashMap<String, i64>,
    /// Containers whose preStop hook has begun.
    pre_stopped: Arc<std::sync::Mutex<HashSet<String>>>,
}

/// When to try again what failed, each time later.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Retry {
    wait: Duration,
    at: Option<Instant>,
}

impl Retry {
    const MIN: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_secs(60);

    fn failed(&mut self) {
        self.wait = (self.wait * 2).clamp(Self::MIN, Self::MAX);
        self.at = Some(Instant::now() + self.wait.mul_f64(rand::random_range(0.9..1.1)));
    }

    fn succeeded(&mut self) {
        *self = Self::default();
    }

    fn waits(&self) -> Option<Instant> {
        self.at.filter(|at| *at > Instant::now())
    }
}

impl Worker {
    /// A worker for the pod that `desired` holds now.
    pub fn new(shared: Arc<Shared>, desired: watch::Receiver<Desired>, stages: Stages) -> Self {
        let pod = desired.borrow().pod.clone();
        let uid = pod.uid();
        let wake = shared.wakes.register(&uid);
        shared.cache.expect(&uid, pod.namespace(), pod.name());
        Self {
            probes: shared.probes.for_pod(uid.clone()),
            uid,
            desired,
            wake,
            memory: Memory::default(),
            stages,
            seen_at: Timestamp::now(),
            verdict: None,
            finished: false,
            references: BTreeSet::new(),
            present: Present::default(),
            user: None,
            places: None,
            volume_inputs: None,
            token_refresh: None,
            volume_retry: Retry::default(),
            sandbox_retry: Retry::default(),
            kills: JoinSet::new(),
            sandbox_calls: TaskTracker::new(),
            announced: HashMap::new(),
            pre_stopped: Arc::default(),
            shared,
        }
    }

    /// Works until the pod is gone from this node.
    pub async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            self.observe_target(&desired.pod);
            if desired.stop.is_some() {
                Box::pin(self.terminate()).await;
                return;
            }
            let mut stop = self.desired.clone();
            let next = tokio::select! {
                biased;
                // What is under way is abandoned; whatever it made, the cache and the clean-up know.
                _ = stop.wait_for(|d| d.stop.is_some()) => continue,
                next = Box::pin(self.sync(desired.pod)) => next,
            };
            self.wait(next).await;
        }
    }

    async fn wait(&mut self, until: Option<Instant>) {
        // Without a time, far in the future.
        let until = until.unwrap_or_else(|| Instant::now() + Duration::from_secs(365 * 24 * 3600));
        tokio::select! {
            changed = self.desired.changed() => {
                if changed.is_err() {
                    // The kubelet ends and leaves the pod as it is.
                    std::future::pending::<()>().await;
                }
            }
            () = self.wake.notified() => {}
            Some(ended) = self.kills.join_next() => self.note_kill(ended),
            () = tokio::time::sleep_until(until) => {}
        }
    }

    fn note_kill(&mut self, ended: Result<(String, bool), tokio::task::JoinError>) {
        if let Ok((id, _)) = ended {
            self.memory.killing.remove(&id);
        }
    }

    /// The object that shows this pod in the API; a static pod's is its mirror, which its source tells.
    fn observe_target(&self, pod: &Pod) {
        if !pod.is_static() {
            let target = Target {
                uid: self.uid.as_str().to_owned(),
                namespace: pod.namespace().to_owned(),
                name: pod.name().to_owned(),
            };
            let status = pod.status.clone().unwrap_or_default();
            self.shared.writer.observe(&self.uid, target, &status);
        }
    }

    fn runtime(&self, pod: &Pod) -> PodRuntime {
        self.shared
            .cache
            .pod(&self.uid)
            .unwrap_or_else(|| PodRuntime::new(self.uid.clone(), pod.namespace(), pod.name()))
    }

    /// Makes the status and hands it to the writer.
    fn show(
        &mut self,
        pod: &Pod,
        runtime: &PodRuntime,
        backing_off: &std::collections::BTreeMap<String, i64>,
        ended: bool,
    ) {
        let nothing = PodStatus::default();
        let before = self.shared.writer.wanted(&self.uid);
        let mut before = before
            .as_deref()
            .or(pod.status.as_ref())
            .cloned()
            .unwrap_or(nothing);
        // Conditions of others are as the API has them now, not as we last wrote them.
        if let Some(conditions) = pod.status.as_ref().and_then(|s| s.conditions.as_ref()) {
            let known: HashSet<String> = before
                .conditions
                .iter()
                .flatten()
                .map(|c| c.type_.clone())
                .collect();
            let new = conditions
                .iter()
                .filter(|c| !known.contains(&c.type_) || is_gate(pod, &c.type_))
                .cloned();
            let new: Vec<_> = new.collect();
            let list = before.conditions.get_or_insert_default();
            list.retain(|c| !new.iter().any(|n| n.type_ == c.type_));
            list.extend(new);
        }
        let status = pod_status(&Facts {
            pod,
            before: &before,
            runtime,
            memory: &self.memory,
            backing_off,
            runtime_name: &self.shared.runtime_name,
            node_ips: &self.shared.config.node_ips,
            seen_at: self.seen_at,
            ended,
            verdict: self.verdict.as_ref(),
            now: Timestamp::now(),
        });
        self.note_stages(&status);
        self.shared.writer.set(&self.uid, status);
    }

    fn note_stages(&self, status: &PodStatus) {
        if status.phase.as_deref() == Some("Running") {
            self.stages.reached("running");
        }
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        if ready {
            self.stages.reached("ready");
        }
        let all = status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten());
        let waiting = { all }.filter_map(|c| {
            let waiting = c.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let message = waiting
                .message
                .as_deref()
                .map(|m| format!(": {m}"))
                .unwrap_or_default();
            Some(format!("{}: {reason}{message}", c.name))
        });
        self.stages.wait_for(waiting.collect());
    }
}

fn is_gate(pod: &Pod, condition: &str) -> bool {
    pod.pod_spec()
        .readiness_gates
        .iter()
        .flatten()
        .any(|g| g.condition_type == condition)
}

/// What the API remembers of the probes of containers that ran before this kubelet did.
pub(crate) fn remembered_probes(pod: &Pod) -> HashMap<String, ProbeResults> {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|s| {
        s.container_statuses
            .iter()
            .flatten()
            .chain(s.init_container_statuses.iter().flatten())
    });
    all.filter_map(|c| {
        let id = c.container_id.as_deref()?.split_once("://")?.1.to_owned();
        let results = ProbeResults {
            startup: c.started.filter(|started| *started),
            liveness: None,
            readiness: c.ready.then_some(true),
        };
        Some((id, results))
    })
    .collect()
}

/// Nanoseconds since the epoch, now.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}
