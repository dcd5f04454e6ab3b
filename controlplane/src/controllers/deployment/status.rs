//! A Deployment's status: counts from its ReplicaSets, and the conditions that `kubectl rollout status` waits on.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::object::{Deployment, ReplicaSet};
use super::plan::{Bounds, Plan, find_new};
use api::time::seconds as rfc3339;

const DEFAULT_DEADLINE_SECONDS: i32 = 600;

/// The status as it is now.
pub fn status(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    plan: &Plan,
    now: Timestamp,
) -> Value {
    let bounds = Bounds::of(deployment);
    let new = find_new(deployment, sets);
    let sum =
        |count: &dyn Fn(&ReplicaSet) -> i32| -> i32 { sets.iter().map(|set| count(set)).sum() };
    let available = sum(&|set| set.status.available_replicas);
    let wanted = sum(&|set| set.spec.replicas.unwrap_or(1));
    let mut next = json!({
        "observedGeneration": deployment.metadata.generation.unwrap_or(0),
        "replicas": sum(&|set| set.status.replicas),
        "updatedReplicas": new.map_or(0, |set| set.status.replicas),
        "readyReplicas": sum(&|set| set.status.ready_replicas),
        "availableReplicas": available,
        "unavailableReplicas": (wanted - available).max(0),
        "terminatingReplicas": sum(&|set| set.status.terminating_replicas.unwrap_or(0)),
    });
    let mut conditions = Vec::new();
    conditions.push(condition(
        deployment,
        now,
        available_now(available, &bounds),
    ));
    let progress = progressing(deployment, &next, plan, now);
    conditions.extend(progress.or_else(|| existing(deployment, "Progressing").cloned()));
    next["conditions"] = json!(conditions);
    next
}

/// Whether writing `next` over `current` would change anything.
pub fn same(next: &Value, current: &Value) -> bool {
    let Some(fields) = next.as_object() else {
        return true;
    };
    fields.iter().all(|(key, value)| match current.get(key) {
        Some(now) => now == value,
        None => value == &json!(0),
    })
}

/// Whether the rollout that the current status tells of has ended.
pub fn is_complete(deployment: &Deployment) -> bool {
    complete(deployment, &deployment.status)
}

fn complete(deployment: &Deployment, status: &Value) -> bool {
    let replicas = i64::from(deployment.spec.replicas.unwrap_or(1));
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    count("updatedReplicas") == replicas
        && count("replicas") == replicas
        && count("availableReplicas") == replicas
        && count("observedGeneration") >= deployment.metadata.generation.unwrap_or(0)
}

/// How long until the progress deadline must be looked at again.
pub fn until_deadline(deployment: &Deployment, status: &Value, now: Timestamp) -> Option<Duration> {
    let condition = status["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == "Progressing")?;
    if condition["status"] != "True"
        || condition["reason"] == "NewReplicaSetAvailable"
        || deployment.spec.paused
    {
        return None;
    }
    let left = deadline(deployment, condition)?.duration_since(now);
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}

fn deadline(deployment: &Deployment, condition: &Value) -> Option<Timestamp> {
    let since: Timestamp = condition["lastUpdateTime"].as_str()?.parse().ok()?;
    let seconds = deployment
        .spec
        .progress_deadline_seconds
        .unwrap_or(DEFAULT_DEADLINE_SECONDS);
    since
        .checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
        .ok()
}

fn existing<'a>(deployment: &'a Deployment, type_: &str) -> Option<&'a Value> {
    deployment.status["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == type_)
}

/// Type, status, reason, message of a condition.
type Stated = (&'static str, &'static str, &'static str, String);

fn available_now(available: i32, bounds: &Bounds) -> Stated {
    if available >= bounds.replicas - bounds.unavailable {
        (
            "Available",
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".to_owned(),
        )
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        ("Available", "False", "MinimumReplicasUnavailable", message)
    }
}

/// The condition with its times: kept while its status (and reason) stay.
fn condition(
    deployment: &Deployment,
    now: Timestamp,
    (type_, status, reason, message): Stated,
) -> Value {
    let old = existing(deployment, type_);
    let now = json!(rfc3339(now));
    let kept = |field: &str, same: bool| match old {
        Some(old) if same => old[field].clone(),
        _ => now.clone(),
    };
    let same_status = old.is_some_and(|old| old["status"] == status);
    let same_reason =
        same_status && old.is_some_and(|old| old["reason"] == reason && old["message"] == message);
    json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": kept("lastTransitionTime", same_status),
        "lastUpdateTime": kept("lastUpdateTime", same_reason),
    })
}

fn progressing(
    deployment: &Deployment,
    next: &Value,
    plan: &Plan,
    now: Timestamp,
) -> Option<Value> {
    let (name, created) = plan
        .new
        .as_ref()
        .map_or(("", false), |(name, created)| (name.as_str(), *created));
    let current = existing(deployment, "Progressing");
    let stated: Stated = if deployment.spec.paused {
        (
            "Progressing",
            "Unknown",
            "DeploymentPaused",
            "Deployment is paused".to_owned(),
        )
    } else if current.is_some_and(|c| c["reason"] == "DeploymentPaused") {
        (
            "Progressing",
            "Unknown",
            "DeploymentResumed",
            "Deployment is resumed".to_owned(),
        )
    } else if created {
        (
            "Progressing",
            "True",
            "NewReplicaSetCreated",
            format!("Created new replica set \"{name}\""),
        )
    } else if complete(deployment, next) {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        ("Progressing", "True", "NewReplicaSetAvailable", message)
    } else if made_progress(&deployment.status, next) || current.is_none() {
        let mut moved = condition(
            deployment,
            now,
            (
                "Progressing",
                "True",
                "ReplicaSetUpdated",
                format!("ReplicaSet \"{name}\" is progressing."),
            ),
        );
        moved["lastUpdateTime"] = json!(rfc3339(now));
        return Some(moved);
    } else if current.is_some_and(|c| is_overdue(deployment, c, now)) {
        let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        ("Progressing", "False", "ProgressDeadlineExceeded", message)
    } else {
        return None;
    };
    Some(condition(deployment, now, stated))
}

fn is_overdue(deployment: &Deployment, condition: &Value, now: Timestamp) -> bool {
    condition["reason"] == "ProgressDeadlineExceeded"
        || condition["reason"] != "NewReplicaSetAvailable"
            && deadline(deployment, condition).is_some_and(|deadline| deadline <= now)
}

fn made_progress(old: &Value, next: &Value) -> bool {
    let count = |status: &Value, field: &str| status[field].as_i64().unwrap_or(0);
    let outdated = |status: &Value| count(status, "replicas") - count(status, "updatedReplicas");
    count(next, "updatedReplicas") > count(old, "updatedReplicas")
        || outdated(next) < outdated(old)
        || count(next, "readyReplicas") > count(old, "readyReplicas")
        || count(next, "availableReplicas") > count(old, "availableReplicas")
}
