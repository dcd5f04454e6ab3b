//! What to do next for a Deployment, as data.
//!
//! ```text
//! paused, or the wanted number changed  -> scale all ReplicaSets in proportion
//! no ReplicaSet of the template         -> create it, as large as the bounds allow
//! rolling update                        -> grow the new one, else shrink old ones, one bounded step
//! recreate                              -> shrink all old ones to 0, wait for their pods, grow the new one
//! complete                              -> delete old ReplicaSets past the history limit
//! ```

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

use super::super::object::{Deployment, ReplicaSet, controller_reference};
use super::{REVISION, TEMPLATE_HASH, status};

const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK: &str = "deprecated.deployment.rollback.to";

/// Steps in their order, and what the status says about them.
#[derive(Debug, Default)]
pub struct Plan {
    /// To be carried out in this order; the next reconcile goes on from what they made.
    pub steps: Vec<Step>,
    /// The ReplicaSet of the current template: its name, and whether this plan creates it.
    pub new: Option<(String, bool)>,
}

/// One write.
#[derive(Debug)]
pub enum Step {
    /// Create the ReplicaSet of the current template.
    Create { set: Value },
    /// Bring a ReplicaSet's annotations up to date.
    Annotate { set: Arc<ReplicaSet>, patch: Value },
    /// Change a ReplicaSet's size.
    Scale {
        set: Arc<ReplicaSet>,
        to: i32,
        patch: Value,
    },
    /// Delete a ReplicaSet that history no longer needs.
    Delete { set: Arc<ReplicaSet> },
    /// Write the current revision on the Deployment.
    SetRevision { revision: String },
}

/// The ReplicaSet with the Deployment's template, the oldest where there are several.
pub fn find_new<'a>(
    deployment: &Deployment,
    sets: &'a [Arc<ReplicaSet>],
) -> Option<&'a Arc<ReplicaSet>> {
    let wanted = without_hash(&deployment.spec.template);
    sets.iter()
        .filter(|set| without_hash(&set.spec.template) == wanted)
        .min_by_key(|set| age_rank(set))
}

/// The next steps. `old_pods` tells whether pods of older templates still exist.
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], old_pods: bool) -> Plan {
    let bounds = Bounds::of(deployment);
    let new = find_new(deployment, sets);
    let mut old: Vec<_> = sets
        .iter()
        .filter(|set| new.is_none_or(|new| !Arc::ptr_eq(new, set)))
        .cloned()
        .collect();
    old.sort_by_key(age_rank);
    if deployment.spec.paused || is_scaling(sets, bounds.replicas) {
        let steps = scale_all(new, &old, &bounds);
        return Plan {
            steps,
            new: new.map(|set| (name(set), false)),
        };
    }
    let recreate = deployment.spec.strategy.type_.as_deref() == Some("Recreate");
    let mut steps = Vec::new();
    if recreate && (shrink_to_zero(&old, &bounds, &mut steps) || old_pods) {
        return Plan {
            steps,
            new: new.map(|set| (name(set), false)),
        };
    }
    let revision = (old.iter().map(|set| revision_of(set)).max().unwrap_or(0) + 1).to_string();
    let Some(new) = new else {
        let size = if recreate {
            bounds.replicas
        } else {
            bounds.size_of_new(0, total(sets))
        };
        let set = new_set(deployment, size, &revision, &bounds);
        let named = set
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        steps.extend([Step::Create { set }, Step::SetRevision { revision }]);
        return Plan {
            steps,
            new: Some((named, true)),
        };
    };
    annotate(deployment, new, &revision, &mut steps);
    let mut done = Plan {
        steps,
        new: Some((name(new), false)),
    };
    if recreate {
        resize(new, bounds.replicas, &bounds, &mut done.steps);
    } else if !grow_new(new, sets, &bounds, &mut done.steps) {
        shrink_old(new, &old, sets, &bounds, &mut done.steps);
    }
    if status::is_complete(deployment) {
        clean_up(deployment, &old, &mut done.steps);
    }
    done
}

/// The numbers that bound a rollout.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Wanted pods.
    pub replicas: i32,
    /// Pods above that.
    pub surge: i32,
    /// Pods below that.
    pub unavailable: i32,
}

impl Bounds {
    /// Percentages round up for the surge and down for the unavailable; both 0 would never end, so one pod may
    /// then be missing.
    pub fn of(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.replicas.unwrap_or(1);
        if deployment.spec.strategy.type_.as_deref() == Some("Recreate") {
            return Self {
                replicas,
                surge: 0,
                unavailable: 0,
            };
        }
        let rolling = &deployment.spec.strategy.rolling_update;
        let surge = scaled(rolling.max_surge.as_ref(), replicas, true);
        let unavailable = scaled(rolling.max_unavailable.as_ref(), replicas, false);
        let unavailable = if surge == 0 && unavailable == 0 {
            1
        } else {
            unavailable
        };
        Self {
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
        }
    }

    fn most(&self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    fn size_of_new(&self, current: i32, total: i32) -> i32 {
        let room = self.most() - total;
        if room <= 0 {
            current
        } else {
            current + room.min(self.replicas - current)
        }
    }
}

fn scaled(value: Option<&IntOrString>, replicas: i32, up: bool) -> i32 {
    let percent = match value {
        None => 25,
        Some(IntOrString::Int(number)) => return *number,
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse().unwrap_or(0),
    };
    let product = i64::from(replicas) * percent;
    i32::try_from(if up {
        (product + 99) / 100
    } else {
        product / 100
    })
    .unwrap_or(i32::MAX)
}

fn name(set: &ReplicaSet) -> String {
    set.metadata.name.clone().unwrap_or_default()
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

fn total<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>) -> i32 {
    sets.into_iter().map(|set| size(set)).sum()
}

fn age_rank(set: &Arc<ReplicaSet>) -> (Option<jiff::Timestamp>, Option<String>) {
    (
        set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        set.metadata.name.clone(),
    )
}

fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

fn revision_of(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

fn without_hash(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template
        .pointer_mut("/metadata/labels")
        .and_then(Value::as_object_mut)
    {
        labels.remove(TEMPLATE_HASH);
    }
    if let Some(meta) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.retain(|_, value| !value.is_null());
    }
    template
}

fn is_scaling(sets: &[Arc<ReplicaSet>], replicas: i32) -> bool {
    sets.iter().filter(|set| size(set) > 0).any(|set| {
        annotation(set, DESIRED)
            .and_then(|text| text.parse::<i32>().ok())
            .is_some_and(|was| was != replicas)
    })
}

fn resize(set: &Arc<ReplicaSet>, to: i32, bounds: &Bounds, steps: &mut Vec<Step>) -> bool {
    let (desired, max) = (bounds.replicas.to_string(), bounds.most().to_string());
    let stale = annotation(set, DESIRED) != Some(&desired) || annotation(set, MAX) != Some(&max);
    if size(set) == to && !stale {
        return false;
    }
    let patch = json!({
        "metadata": { "resourceVersion": set.metadata.resource_version, "annotations": { DESIRED: desired, MAX: max } },
        "spec": { "replicas": to },
    });
    // A set's version moves with the first write: an Annotate before this one would make this one a conflict.
    steps.retain(
        |step| !matches!(step, Step::Annotate { set: other, .. } if Arc::ptr_eq(other, set)),
    );
    steps.push(Step::Scale {
        set: set.clone(),
        to,
        patch,
    });
    size(set) != to
}

fn shrink_to_zero(old: &[Arc<ReplicaSet>], bounds: &Bounds, steps: &mut Vec<Step>) -> bool {
    let mut any = false;
    for set in old.iter().filter(|set| size(set) > 0) {
        any |= resize(set, 0, bounds, steps);
    }
    any
}

/// While paused, or after the wanted number changed: one ReplicaSet takes it all, several share it.
fn scale_all(new: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>], bounds: &Bounds) -> Vec<Step> {
    let mut steps = Vec::new();
    let active: Vec<_> = old
        .iter()
        .chain(new)
        .filter(|set| size(set) > 0)
        .cloned()
        .collect();
    if active.len() <= 1 {
        let latest = active.first().or(new).or_else(|| old.last());
        if let Some(set) = latest {
            resize(set, bounds.replicas, bounds, &mut steps);
        }
        return steps;
    }
    if let Some(new) = new
        && size(new) == bounds.replicas
        && new.status.available_replicas == bounds.replicas
        && annotation(new, DESIRED) == Some(&bounds.replicas.to_string())
    {
        shrink_to_zero(old, bounds, &mut steps);
        return steps;
    }
    share(active, bounds, &mut steps);
    steps
}

/// Spreads the change over the ReplicaSets in proportion to their sizes, what is left over to the largest.
fn share(mut active: Vec<Arc<ReplicaSet>>, bounds: &Bounds, steps: &mut Vec<Step>) {
    let allowed = if bounds.replicas > 0 {
        bounds.most()
    } else {
        0
    };
    let to_add = allowed - total(&active);
    active.sort_by_key(|set| (-size(set), age_rank(set)));
    if to_add > 0 {
        active.sort_by_key(|set| -size(set)); // stable: among equals the newer first when growing
        active
            .chunk_by_mut(|a, b| size(a) == size(b))
            .for_each(<[_]>::reverse);
    }
    let mut added = 0;
    let mut sizes = Vec::new();
    for set in &active {
        let was = annotation(set, MAX)
            .and_then(|text| text.parse::<i32>().ok())
            .filter(|max| *max > 0);
        let most = was.unwrap_or_else(|| allowed.max(1));
        let fraction = (f64::from(size(set)) * f64::from(allowed) / f64::from(most)).round() as i32
            - size(set);
        let left = to_add - added;
        let part = if to_add > 0 {
            fraction.clamp(0, left.max(0))
        } else {
            fraction.clamp(left.min(0), 0)
        };
        added += part;
        sizes.push(size(set) + part);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (set, to) in active.iter().zip(sizes) {
        resize(set, to, bounds, steps);
    }
}

/// Grows (or, after a smaller number was asked for, shrinks) the new ReplicaSet; whether its size changes.
fn grow_new(
    new: &Arc<ReplicaSet>,
    sets: &[Arc<ReplicaSet>],
    bounds: &Bounds,
    steps: &mut Vec<Step>,
) -> bool {
    let to = match size(new) {
        current if current >= bounds.replicas => bounds.replicas,
        current => bounds.size_of_new(current, total(sets)),
    };
    resize(new, to, bounds, steps)
}

/// Shrinks old ReplicaSets: first pods that aren't available anyway, then as many as stay above the bound.
fn shrink_old(
    new: &Arc<ReplicaSet>,
    old: &[Arc<ReplicaSet>],
    sets: &[Arc<ReplicaSet>],
    bounds: &Bounds,
    steps: &mut Vec<Step>,
) {
    let least = bounds.replicas - bounds.unavailable;
    let new_unavailable = size(new) - new.status.available_replicas;
    let mut spare = total(sets) - least - new_unavailable;
    if spare <= 0 {
        return;
    }
    let mut sizes: BTreeMap<usize, i32> = BTreeMap::new();
    for (index, set) in old.iter().enumerate() {
        let broken = (size(set) - set.status.available_replicas).clamp(0, spare.max(0));
        spare -= broken;
        sizes.insert(index, size(set) - broken);
    }
    let available: i32 = sets.iter().map(|set| set.status.available_replicas).sum();
    let mut removable = (available - least).max(0);
    for (index, set) in old.iter().enumerate() {
        let current = sizes[&index];
        let removed = current.min(removable);
        removable -= removed;
        if current - removed < size(set) {
            resize(set, current - removed, bounds, steps);
        }
    }
}

fn clean_up(deployment: &Deployment, old: &[Arc<ReplicaSet>], steps: &mut Vec<Step>) {
    let keep = usize::try_from(deployment.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut idle: Vec<_> = old
        .iter()
        .filter(|set| {
            size(set) == 0 && set.status.replicas == 0 && set.metadata.deletion_timestamp.is_none()
        })
        .filter(|set| set.status.observed_generation >= set.metadata.generation.unwrap_or(0))
        .collect();
    idle.sort_by_key(|set| revision_of(set));
    let surplus = idle.len().saturating_sub(keep);
    steps.extend(
        idle.into_iter()
            .take(surplus)
            .map(|set| Step::Delete { set: set.clone() }),
    );
}

/// What a ReplicaSet takes over of its Deployment's annotations.
fn inherited(deployment: &Deployment) -> Map<String, Value> {
    let skipped = [LAST_APPLIED, REVISION, HISTORY, DESIRED, MAX, ROLLBACK];
    let annotations = deployment.metadata.annotations.iter().flatten();
    annotations
        .filter(|(key, _)| !skipped.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect()
}

fn annotate(deployment: &Deployment, new: &Arc<ReplicaSet>, revision: &str, steps: &mut Vec<Step>) {
    let mut wanted = inherited(deployment);
    let number = revision.parse::<i64>().unwrap_or(0);
    let current = if revision_of(new) < number {
        revision.to_owned()
    } else {
        revision_of(new).to_string()
    };
    if let Some(previous) = annotation(new, REVISION).filter(|previous| *previous != current) {
        let history = match annotation(new, HISTORY) {
            Some(history) if !history.is_empty() => format!("{history},{previous}"),
            _ => previous.to_owned(),
        };
        wanted.insert(HISTORY.to_owned(), json!(history));
    }
    wanted.insert(REVISION.to_owned(), json!(current));
    let min_ready = deployment.spec.min_ready_seconds;
    let stale = wanted
        .iter()
        .any(|(key, value)| annotation(new, key) != value.as_str());
    if stale || new.spec.min_ready_seconds != min_ready {
        let patch = json!({ "metadata": { "annotations": wanted }, "spec": { "minReadySeconds": min_ready } });
        steps.push(Step::Annotate {
            set: new.clone(),
            patch,
        });
    }
    let written = deployment
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(REVISION));
    if written != Some(&current) {
        steps.push(Step::SetRevision { revision: current });
    }
}

fn new_set(deployment: &Deployment, size: i32, revision: &str, bounds: &Bounds) -> Value {
    let collisions = deployment.status["collisionCount"].as_u64().unwrap_or(0);
    let hash = template_hash(&deployment.spec.template, collisions);
    let mut template = deployment.spec.template.clone();
    template["metadata"]["labels"][TEMPLATE_HASH] = json!(hash);
    let mut selector = deployment.spec.selector.written.clone();
    selector["matchLabels"][TEMPLATE_HASH] = json!(hash);
    let mut annotations = inherited(deployment);
    annotations.insert(REVISION.to_owned(), json!(revision));
    annotations.insert(DESIRED.to_owned(), json!(bounds.replicas.to_string()));
    annotations.insert(MAX.to_owned(), json!(bounds.most().to_string()));
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default()),
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": { "replicas": size, "selector": selector, "template": template,
            "minReadySeconds": deployment.spec.min_ready_seconds },
    })
}

/// A short name for a template: FNV-1a over its canonical JSON, in letters that spell no words.
fn template_hash(template: &Value, collisions: u64) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hasher = Fnv(0x811c_9dc5);
    hash_canonical(template, &mut hasher);
    if collisions > 0 {
        hasher.write(&collisions.to_le_bytes());
    }
    let digits = hasher.0.to_string();
    digits
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

fn hash_canonical(value: &Value, hasher: &mut Fnv) {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .collect();
            for (key, value) in sorted {
                hasher.write(key.as_bytes());
                hasher.write(b":");
                hash_canonical(value, hasher);
            }
            hasher.write(b"}");
        }
        Value::Array(items) => {
            items.iter().for_each(|item| hash_canonical(item, hasher));
            hasher.write(b"]");
        }
        other => {
            hasher.write(other.to_string().as_bytes());
            hasher.write(b",");
        }
    }
}

struct Fnv(u32);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    fn finish(&self) -> u64 {
        u64::from(self.0)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
