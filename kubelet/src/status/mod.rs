//! A pod's status: a pure function of what is wanted, what the runtime has, what the worker remembers and what
//! the API showed before.

mod conditions;
mod containers;
mod patch;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::plan::Memory;
use crate::pod::{ContainerExt, PodExt, RestartPolicy};
use crate::resources;
use crate::runtime::view::PodRuntime;

pub use patch::status_patch;
pub use writer::{StatusWriter, Target};

/// Everything that a status is made of.
pub struct Facts<'a> {
    /// What is wanted.
    pub pod: &'a Pod,
    /// The status that the API has, or had last.
    pub before: &'a PodStatus,
    /// What the runtime has.
    pub runtime: &'a PodRuntime,
    /// What the worker remembers.
    pub memory: &'a Memory,
    /// Containers that wait for their next start, and until when (from the plan).
    pub backing_off: &'a BTreeMap<String, i64>,
    /// The runtime's name, for container ids.
    pub runtime_name: &'a str,
    /// The node's addresses.
    pub node_ips: &'a [IpAddr],
    /// When the kubelet first saw the pod.
    pub seen_at: Timestamp,
    /// Nothing of the pod runs any more, nor will.
    pub ended: bool,
    /// The kubelet's own verdict, which overrides what the containers say.
    pub verdict: Option<&'a Verdict>,
    /// The present time.
    pub now: Timestamp,
}

/// Why the kubelet itself ended a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `DeadlineExceeded`, `Evicted` and so on.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Makes the status.
pub fn pod_status(facts: &Facts) -> PodStatus {
    let pod = facts.pod;
    let spec = pod.pod_spec();
    let init = containers::statuses(facts, pod.init_containers(), true);
    let apps = containers::statuses(facts, &spec.containers, false);
    let phase = if facts.verdict.is_some() {
        "Failed"
    } else {
        phase(facts, &init, &apps)
    };
    let ips = pod_ips(facts);
    let host_ips = facts.node_ips.iter().map(IpAddr::to_string);
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason: facts.verdict.map(|v| v.reason.to_owned()),
        message: facts.verdict.map(|v| v.message.clone()),
        host_ip: facts.node_ips.first().map(IpAddr::to_string),
        host_ips: Some(host_ips.map(|ip| HostIP { ip }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: facts
            .before
            .start_time
            .clone()
            .or(Some(Time(facts.seen_at))),
        qos_class: Some(resources::qos_class(pod).as_str().to_owned()),
        observed_generation: pod.metadata.generation,
        nominated_node_name: facts.before.nominated_node_name.clone(),
        resource_claim_statuses: facts.before.resource_claim_statuses.clone(),
        ephemeral_container_statuses: facts.before.ephemeral_container_statuses.clone(),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions::conditions(facts, phase, &init, &apps));
    status.container_statuses = Some(apps);
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status
}

/// The pod's addresses, the node's primary family first. A pod that ended keeps the ones that it had.
fn pod_ips(facts: &Facts) -> Vec<String> {
    let mut ips: Vec<IpAddr> = if facts.pod.host_network() {
        if facts.runtime.sandboxes.is_empty() {
            Vec::new()
        } else {
            facts.node_ips.to_vec()
        }
    } else {
        facts
            .runtime
            .ready_sandbox()
            .map(|s| s.ips.clone())
            .unwrap_or_default()
    };
    if ips.is_empty() {
        let before = facts.before.pod_ips.iter().flatten();
        return before.map(|p| p.ip.clone()).collect();
    }
    if let Some(primary) = facts.node_ips.first() {
        ips.sort_by_key(|ip| ip.is_ipv4() != primary.is_ipv4());
    }
    ips.iter().map(IpAddr::to_string).collect()
}

/// The phase (upstream's `getPhase`).
fn phase(facts: &Facts, init: &[ContainerStatus], apps: &[ContainerStatus]) -> &'static str {
    if facts.pod.is_terminal() {
        // Final is final.
        return if facts.before.phase.as_deref() == Some("Succeeded") {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    let policy = facts.pod.restart_policy();
    let mut pending_init = 0;
    for (status, spec) in init.iter().zip(facts.pod.init_containers()) {
        let ended = terminated(status);
        if spec.is_sidecar() {
            // One that ended did its part: how it ended says nothing of the pod.
            pending_init += usize::from(ended.is_none() && status.started != Some(true));
        } else {
            match ended {
                Some(0) => {}
                Some(_) if policy == RestartPolicy::Never => return "Failed",
                _ => pending_init += 1,
            }
        }
    }
    let (mut running, mut waiting, mut stopped, mut succeeded, mut again) = (0, 0, 0, 0, false);
    for (status, spec) in apps.iter().zip(&facts.pod.pod_spec().containers) {
        let state = status.state.as_ref();
        if state.is_some_and(|s| s.running.is_some()) {
            running += 1;
        } else if let Some(code) = terminated(status) {
            stopped += 1;
            succeeded += usize::from(code == 0);
            again |= spec.restarts(policy, code);
        } else {
            waiting += 1;
        }
    }
    let begun = running + stopped > 0;
    if facts.ended {
        return if waiting == 0 && stopped == succeeded && pending_init == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if (pending_init > 0 && !begun) || waiting > 0 {
        return "Pending";
    }
    match (running, stopped) {
        (0, 0) => "Pending",
        (0, _) if again => "Running",
        (0, _) if stopped == succeeded => "Succeeded",
        (0, _) => "Failed",
        _ => "Running",
    }
}

/// How the newest instance ended, also if it waits to be started again.
fn terminated(status: &ContainerStatus) -> Option<i32> {
    let state = status.state.as_ref()?;
    if let Some(ended) = &state.terminated {
        return Some(ended.exit_code);
    }
    state.waiting.as_ref()?;
    let last = status.last_state.as_ref()?.terminated.as_ref()?;
    Some(last.exit_code)
}

/// Nanoseconds since the epoch, as the API shows a time: whole seconds, none for 0.
fn time(ns: i64) -> Option<Time> {
    if ns == 0 {
        return None;
    }
    Timestamp::from_second(ns.div_euclid(1_000_000_000))
        .ok()
        .map(Time)
}
