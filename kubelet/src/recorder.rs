//! Events: what happened to a pod, for `kubectl describe`. The same thing again raises a count instead of making
//! another object; an object that says too much is cut short.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::pod::PodExt;

/// Events that wait to be written; more are dropped, since a node in trouble must not be drowned by saying so.
const QUEUE: usize = 1000;
/// Distinct events that are remembered for counting.
const REMEMBERED: usize = 4096;
/// Events of one object in a burst, and the time in which one more is allowed (upstream's spam filter).
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// What upstream shows of a message.
const MAX_MESSAGE: usize = 1024;

/// Whether something went as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It did.
    Normal,
    /// It didn't.
    Warning,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    namespace: String,
    uid: String,
    field_path: Option<String>,
    kind: Kind,
    reason: &'static str,
    message: String,
}

struct Record {
    key: Key,
    object: ObjectReference,
    at: Timestamp,
}

/// Takes events; cheap to clone, never blocks.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Record>,
}

impl Recorder {
    /// A recorder for this node, with the task that writes.
    pub fn start(client: kube::Client, node_name: &str) -> Self {
        let (queue, records) = mpsc::channel(QUEUE);
        let writer = Writer {
            client,
            node_name: node_name.to_owned(),
            known: HashMap::new(),
            budgets: HashMap::new(),
        };
        tokio::spawn(writer.run(records));
        Self { queue }
    }

    /// Something happened to a pod as a whole.
    pub fn pod(&self, pod: &Pod, kind: Kind, reason: &'static str, message: impl Into<String>) {
        self.record(reference(pod, None), kind, reason, message.into());
    }

    /// Something happened to a container of a pod.
    pub fn container(
        &self,
        pod: &Pod,
        container: &str,
        kind: Kind,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let list = if pod.init_containers().iter().any(|c| c.name == container) {
            "initContainers"
        } else {
            "containers"
        };
        let path = format!("spec.{list}{{{container}}}");
        self.record(reference(pod, Some(path)), kind, reason, message.into());
    }

    fn record(
        &self,
        object: ObjectReference,
        kind: Kind,
        reason: &'static str,
        mut message: String,
    ) {
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE)
                .rev()
                .find(|at| message.is_char_boundary(*at))
                .unwrap_or(0);
            message.truncate(end);
        }
        let key = Key {
            namespace: object.namespace.clone().unwrap_or_else(|| "default".into()),
            uid: object.uid.clone().unwrap_or_default(),
            field_path: object.field_path.clone(),
            kind,
            reason,
            message,
        };
        if self
            .queue
            .try_send(Record {
                key,
                object,
                at: Timestamp::now(),
            })
            .is_err()
        {
            tracing::debug!(reason, "an event was dropped: too many wait");
        }
    }
}

fn reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace().into()),
        name: Some(pod.name().into()),
        uid: Some(pod.uid().as_str().into()),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

struct Known {
    name: String,
    count: i32,
    used: Instant,
}

struct Budget {
    left: f64,
    updated: Instant,
}

struct Writer {
    client: kube::Client,
    node_name: String,
    known: HashMap<Key, Known>,
    budgets: HashMap<String, Budget>,
}

impl Writer {
    async fn run(mut self, mut records: mpsc::Receiver<Record>) {
        while let Some(record) = records.recv().await {
            if !self.within_budget(&record.key.uid) {
                continue;
            }
            if let Err(error) = self.write(&record).await {
                tracing::debug!(reason = record.key.reason, %error, "an event was not taken");
            }
            self.trim();
        }
    }

    fn within_budget(&mut self, uid: &str) -> bool {
        let now = Instant::now();
        let budget = self.budgets.entry(uid.to_owned()).or_insert(Budget {
            left: BURST,
            updated: now,
        });
        let gained = now.duration_since(budget.updated).as_secs_f64() / REFILL.as_secs_f64();
        budget.left = (budget.left + gained).min(BURST);
        budget.updated = now;
        if budget.left < 1.0 {
            return false;
        }
        budget.left -= 1.0;
        true
    }

    async fn write(&mut self, record: &Record) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &record.key.namespace);
        if let Some(known) = self.known.get_mut(&record.key) {
            let patch =
                serde_json::json!({"count": known.count + 1, "lastTimestamp": Time(record.at)});
            let patched = api
                .patch(&known.name, &PatchParams::default(), &Patch::Merge(&patch))
                .await;
            match patched {
                Ok(_) => {
                    known.count += 1;
                    known.used = Instant::now();
                    return Ok(());
                }
                // It has expired: it begins anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let event = self.event(record);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        self.known.insert(
            record.key.clone(),
            Known {
                name,
                count: 1,
                used: Instant::now(),
            },
        );
        Ok(())
    }

    fn event(&self, record: &Record) -> Event {
        let object = record.object.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:x}", record.at.as_nanosecond())),
                namespace: Some(record.key.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: record.object.clone(),
            reason: Some(record.key.reason.into()),
            message: Some(record.key.message.clone()),
            type_: Some(
                if record.key.kind == Kind::Normal {
                    "Normal"
                } else {
                    "Warning"
                }
                .into(),
            ),
            count: Some(1),
            first_timestamp: Some(Time(record.at)),
            last_timestamp: Some(Time(record.at)),
            source: Some(EventSource {
                component: Some("kubelet".into()),
                host: Some(self.node_name.clone()),
            }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(self.node_name.clone()),
            ..Event::default()
        }
    }

    /// Forgets the older half when there are too many.
    fn trim(&mut self) {
        if self.known.len() > REMEMBERED {
            let mut ages: Vec<Instant> = self.known.values().map(|k| k.used).collect();
            ages.sort_unstable();
            let middle = ages
                .get(ages.len() / 2)
                .copied()
                .unwrap_or_else(Instant::now);
            self.known.retain(|_, known| known.used > middle);
        }
        if self.budgets.len() > REMEMBERED {
            let now = Instant::now();
            self.budgets
                .retain(|_, budget| now.duration_since(budget.updated) < REFILL);
        }
    }
}
