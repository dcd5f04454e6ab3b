//! What pods there are: as upstream lists them, and with their stages for `orlop status`.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};

use super::Answers;
use crate::pod::PodExt;

/// `GET /pods`: a PodList, with the statuses that the kubelet last made.
pub fn pod_list(answers: &Answers) -> Value {
    let pods: Vec<Value> = answers
        .pods
        .all()
        .iter()
        .map(|shown| {
            let mut pod = (*shown.pod).clone();
            if let Some(status) = answers.shared.writer.wanted(&pod.uid()) {
                pod.status = Some((*status).clone());
            }
            serde_json::to_value(&pod).unwrap_or_default()
        })
        .collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
}

/// Where a pod stands, in a word.
fn stage(stopping: bool, ready: bool, status: Option<&PodStatus>) -> &str {
    match status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending") {
        _ if stopping => "Terminating",
        "Running" if ready => "Ready",
        phase => phase,
    }
}

/// `GET /orlop/pods`: each pod with its phase, addresses, stages and what it waits for.
pub fn stages(answers: &Answers) -> Value {
    let mut pods: Vec<Value> = answers
        .pods
        .all()
        .iter()
        .map(|shown| {
            let pod = &shown.pod;
            let (stages, waiting) = shown.stages.snapshot();
            let status = answers.shared.writer.wanted(&pod.uid());
            let status = status.as_deref();
            let ready = status.is_some_and(|s| {
                s.conditions
                    .iter()
                    .flatten()
                    .any(|c| c.type_ == "Ready" && c.status == "True")
            });
            let restarts: i32 = status.map_or(0, |s| {
                s.container_statuses
                    .iter()
                    .flatten()
                    .map(|c| c.restart_count)
                    .sum()
            });
            let ips: Vec<&str> = status
                .iter()
                .flat_map(|s| s.pod_ips.iter().flatten())
                .map(|ip| ip.ip.as_str())
                .collect();
            json!({
                "namespace": pod.namespace(),
                "name": pod.name(),
                "uid": pod.uid().as_str(),
                "stage": stage(shown.stopping, ready, status),
                "phase": status.and_then(|s| s.phase.clone()).unwrap_or_else(|| "Pending".into()),
                "ready": ready,
                "stopping": shown.stopping,
                "restarts": restarts,
                "ips": ips,
                "stages": stages,
                "waiting": waiting,
            })
        })
        .collect();
    let key = |pod: &Value| {
        (
            pod["namespace"].as_str().map(str::to_owned),
            pod["name"].as_str().map(str::to_owned),
        )
    };
    pods.sort_by_key(key);
    json!({"pods": pods})
}
