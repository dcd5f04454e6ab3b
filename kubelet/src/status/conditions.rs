//! `status.conditions`: the five that a kubelet writes. Those of others are kept as they are.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::Facts;
use crate::pod::{ContainerExt, PodExt};

const OWN: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

#[derive(Clone, Default)]
struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self {
            holds: true,
            ..Self::default()
        }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self {
            holds: false,
            reason: Some(reason),
            message,
        }
    }
}

pub fn conditions(
    facts: &Facts,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Vec<PodCondition> {
    let sandbox = facts
        .runtime
        .ready_sandbox()
        .filter(|s| s.host_network || !s.ips.is_empty());
    let has_sandbox = Verdict {
        holds: sandbox.is_some(),
        ..Verdict::default()
    };
    let containers = containers_ready(facts, phase, init, apps);
    let verdicts = [
        has_sandbox,
        initialized(facts, phase, init, apps),
        ready(facts, &containers),
        containers,
        Verdict::yes(),
    ];
    let mut all: Vec<PodCondition> = OWN
        .iter()
        .zip(verdicts)
        .map(|(kind, verdict)| condition(facts, kind, verdict))
        .collect();
    let others = facts.before.conditions.iter().flatten();
    all.extend(others.filter(|c| !OWN.contains(&c.type_.as_str())).cloned());
    all
}

fn initialized(
    facts: &Facts,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Verdict {
    let begun = apps.iter().any(|s| s.container_id.is_some());
    let incomplete: Vec<&str> = init
        .iter()
        .zip(facts.pod.init_containers())
        .filter(|(status, spec)| match spec.is_sidecar() {
            true => !begun && status.started != Some(true),
            false => !begun && !status.ready,
        })
        .map(|(status, _)| status.name.as_str())
        .collect();
    match phase {
        "Succeeded" => Verdict {
            holds: true,
            reason: Some("PodCompleted"),
            message: None,
        },
        _ if incomplete.is_empty() => Verdict::yes(),
        _ => Verdict::no(
            "ContainersNotInitialized",
            Some(format!(
                "containers with incomplete status: [{}]",
                incomplete.join(" ")
            )),
        ),
    }
}

fn containers_ready(
    facts: &Facts,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Verdict {
    let sidecars = init
        .iter()
        .zip(facts.pod.init_containers())
        .filter(|(_, spec)| spec.is_sidecar());
    let all = sidecars.map(|(status, _)| status).chain(apps);
    let unready: Vec<&str> = all.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    match phase {
        "Succeeded" => Verdict::no("PodCompleted", None),
        "Failed" => Verdict::no("PodFailed", None),
        _ if unready.is_empty() => Verdict::yes(),
        _ => Verdict::no(
            "ContainersNotReady",
            Some(format!(
                "containers with unready status: [{}]",
                unready.join(" ")
            )),
        ),
    }
}

fn ready(facts: &Facts, containers: &Verdict) -> Verdict {
    if !containers.holds {
        return containers.clone();
    }
    let gates = facts
        .pod
        .pod_spec()
        .readiness_gates
        .as_deref()
        .unwrap_or(&[]);
    let present = |kind: &str| {
        facts
            .before
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == kind)
    };
    let closed: Vec<String> = gates
        .iter()
        .filter_map(|gate| match present(&gate.condition_type) {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => Some(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            Some(_) => None,
        })
        .collect();
    if closed.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", Some(closed.join(", ")))
    }
}

fn condition(facts: &Facts, kind: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = facts
        .before
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind);
    let since = before
        .filter(|c| c.status == status)
        .and_then(|c| c.last_transition_time.clone());
    let now = Timestamp::from_second(facts.now.as_second()).unwrap_or(facts.now);
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: since.or(Some(Time(now))),
        last_probe_time: None,
        observed_generation: facts.pod.metadata.generation,
    }
}
