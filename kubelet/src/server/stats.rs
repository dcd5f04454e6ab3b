//! `GET /stats/summary` and `GET /metrics/resource`: what pods use, asked of the runtime when somebody asks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cri_api::v1;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{Answers, Refusal};
use crate::runtime::labels;

async fn containers(answers: &Answers) -> Result<Vec<v1::ContainerStats>, Refusal> {
    let request = v1::ListContainerStatsRequest::default();
    let reply = answers.shared.cri.list_container_stats(request).await;
    reply
        .map(|r| r.stats)
        .map_err(|error| Refusal::internal(error.to_string()))
}

fn label(stats: &v1::ContainerStats, key: &str) -> String {
    stats
        .attributes
        .as_ref()
        .and_then(|a| a.labels.get(key))
        .cloned()
        .unwrap_or_default()
}

fn time(ns: i64) -> String {
    Timestamp::from_nanosecond(ns.into())
        .unwrap_or_default()
        .to_string()
}

fn usage(stats: &v1::ContainerStats) -> (Value, Value) {
    let number = |value: Option<v1::UInt64Value>| value.map(|v| v.value);
    let cpu = stats.cpu.unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    let cpu = json!({
        "time": time(cpu.timestamp),
        "usageNanoCores": number(cpu.usage_nano_cores),
        "usageCoreNanoSeconds": number(cpu.usage_core_nano_seconds),
    });
    let memory = json!({
        "time": time(memory.timestamp),
        "usageBytes": number(memory.usage_bytes),
        "workingSetBytes": number(memory.working_set_bytes),
        "rssBytes": number(memory.rss_bytes),
        "availableBytes": number(memory.available_bytes),
        "pageFaults": number(memory.page_faults),
        "majorPageFaults": number(memory.major_page_faults),
    });
    (cpu, memory)
}

/// The summary (kubelet stats/v1alpha1).
pub async fn summary(answers: &Answers) -> Result<Value, Refusal> {
    let mut pods: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    for stats in containers(answers).await? {
        let uid = label(&stats, labels::POD_UID);
        let reference = json!({
            "name": label(&stats, labels::POD_NAME),
            "namespace": label(&stats, labels::POD_NAMESPACE),
            "uid": uid,
        });
        let (cpu, memory) = usage(&stats);
        let container =
            json!({"name": label(&stats, labels::CONTAINER_NAME), "cpu": cpu, "memory": memory});
        pods.entry(uid)
            .or_insert_with(|| (reference, Vec::new()))
            .1
            .push(container);
    }
    let pods: Vec<Value> = pods
        .into_values()
        .map(|(reference, containers)| json!({"podRef": reference, "containers": containers}))
        .collect();
    Ok(json!({"node": {"nodeName": answers.shared.config.node_name}, "pods": pods}))
}

/// Prometheus text, as metrics-server reads it.
pub async fn resource_metrics(answers: &Answers) -> Result<String, Refusal> {
    let mut text = String::from("# TYPE container_cpu_usage_seconds_total counter\n");
    let mut memory = String::from("# TYPE container_memory_working_set_bytes gauge\n");
    for stats in containers(answers).await? {
        let labels = format!(
            "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
            label(&stats, labels::CONTAINER_NAME),
            label(&stats, labels::POD_NAMESPACE),
            label(&stats, labels::POD_NAME)
        );
        // Writing to a String cannot fail.
        if let Some((usage, at)) = stats
            .cpu
            .and_then(|c| Some((c.usage_core_nano_seconds?, c.timestamp)))
        {
            let seconds = usage.value as f64 / 1e9;
            let _ = writeln!(
                text,
                "container_cpu_usage_seconds_total{{{labels}}} {seconds} {}",
                at / 1_000_000
            );
        }
        if let Some((usage, at)) = stats
            .memory
            .and_then(|m| Some((m.working_set_bytes?, m.timestamp)))
        {
            let _ = writeln!(
                memory,
                "container_memory_working_set_bytes{{{labels}}} {} {}",
                usage.value,
                at / 1_000_000
            );
        }
    }
    Ok(text + &memory)
}
