//! Whether a pod may run on a node: each rule gives its reason, in the words of upstream's scheduler.

use api::quantity::Quantity;
use api::taints::first_untolerated;
use k8s_openapi::api::core::v1::Taint;
use serde_json::Value;

use super::cluster::{Demand, NodeState};
use crate::controllers::object::{Node, Pod};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why the pod may not run on the node; empty if it may.
pub fn refusals(pod: &Pod, demand: &Demand, state: &NodeState) -> Vec<String> {
    let node = &state.node;
    if node.spec.unschedulable && !bears(pod, &[cordon()]) {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    if let Some(taint) = first_untolerated(
        &pod.spec.tolerations,
        &node.spec.taints,
        &["NoSchedule", "NoExecute"],
    ) {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!(
            "node(s) had untolerated taint {{{}: {value}}}",
            taint.key
        )];
    }
    if !selected(pod, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    if demand.ports.iter().any(|port| state.holds(port)) {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    lacking(demand, state)
}

fn cordon() -> Taint {
    Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

fn bears(pod: &Pod, taints: &[Taint]) -> bool {
    first_untolerated(&pod.spec.tolerations, taints, &["NoSchedule"]).is_none()
}

fn lacking(demand: &Demand, state: &NodeState) -> Vec<String> {
    let mut reasons = Vec::new();
    let slots = state.allocatable.get("pods").map_or(0, |pods| pods.value());
    if i64::try_from(state.pod_count()).unwrap_or(i64::MAX) >= slots {
        reasons.push("Too many pods".to_owned());
    }
    for (name, wanted) in demand
        .requests
        .iter()
        .filter(|(_, wanted)| !wanted.is_zero())
    {
        let total = state
            .allocatable
            .get(name)
            .copied()
            .unwrap_or(Quantity::ZERO);
        if *wanted > total - state.requested(name) {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}

/// The pod's nodeSelector, and its required node affinity.
fn selected(pod: &Pod, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| {
        labels
            .and_then(|labels| labels.get(key))
            .map(String::as_str)
    };
    if !pod
        .spec
        .node_selector
        .iter()
        .all(|(key, value)| label(key) == Some(value))
    {
        return false;
    }
    let affinity = pod.spec.affinity.as_ref();
    let required = affinity.and_then(|a| {
        a.pointer("/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms")
    });
    match required.and_then(Value::as_array) {
        None => true,
        Some(terms) => terms.iter().any(|term| term_holds(term, node)),
    }
}

/// Whether a node selector term holds; an empty one holds for no node.
pub fn term_holds(term: &Value, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| {
        labels
            .and_then(|labels| labels.get(key))
            .map(String::as_str)
    };
    let field = |key: &str| {
        (key == "metadata.name")
            .then_some(node.metadata.name.as_deref())
            .flatten()
    };
    let list = |name: &str| term[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let (expressions, fields) = (list("matchExpressions"), list("matchFields"));
    !(expressions.is_empty() && fields.is_empty())
        && expressions
            .iter()
            .all(|e| requirement_holds(e, label(e["key"].as_str().unwrap_or_default())))
        && fields
            .iter()
            .all(|e| requirement_holds(e, field(e["key"].as_str().unwrap_or_default())))
}

fn requirement_holds(requirement: &Value, value: Option<&str>) -> bool {
    let values: Vec<&str> = requirement["values"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compare =
        |holds: fn(i64, i64) -> bool| match (number(value), number(values.first().copied())) {
            (Some(value), Some(bound)) => holds(value, bound),
            _ => false,
        };
    match requirement["operator"].as_str().unwrap_or_default() {
        "In" => value.is_some_and(|value| values.contains(&value)),
        "NotIn" => value.is_none_or(|value| !values.contains(&value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}
