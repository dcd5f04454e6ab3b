//! Which of several nodes is better: more room, evenly used, preferred by the pod, no taint that asks to stay away.

use api::quantity::Quantity;
use api::taints::first_untolerated;
use serde_json::Value;

use super::cluster::{Demand, NodeState};
use super::filter::term_holds;
use crate::controllers::object::Pod;

/// A container without requests counts as this much, so that such pods spread too.
const DEFAULT_MILLI_CPU: f64 = 100.0;
const DEFAULT_MEMORY_BYTES: f64 = 200.0 * 1024.0 * 1024.0;
const TAINT_WEIGHT: i64 = 3;
const AFFINITY_WEIGHT: i64 = 2;

/// Higher is better; a node's room and balance give 0 to 100 each.
pub fn score(pod: &Pod, demand: &Demand, state: &NodeState) -> i64 {
    let cpu = used(state, demand, "cpu", DEFAULT_MILLI_CPU / 1000.0);
    let memory = used(state, demand, "memory", DEFAULT_MEMORY_BYTES);
    let room = (1.0 - cpu + 1.0 - memory) * 50.0;
    let balance = (1.0 - (cpu - memory).abs()) * 100.0;
    let shunned = first_untolerated(
        &pod.spec.tolerations,
        &state.node.spec.taints,
        &["PreferNoSchedule"],
    )
    .is_some();
    let taint = if shunned { 0 } else { TAINT_WEIGHT * 100 };
    room as i64 + balance as i64 + taint + AFFINITY_WEIGHT * preference(pod, state)
}

/// The part of a resource that would be taken with this pod, 0 to 1.
fn used(state: &NodeState, demand: &Demand, resource: &str, default: f64) -> f64 {
    let total = state
        .allocatable
        .get(resource)
        .copied()
        .unwrap_or(Quantity::ZERO)
        .as_f64();
    if total <= 0.0 {
        return 1.0;
    }
    let asked = demand
        .requests
        .get(resource)
        .filter(|wanted| !wanted.is_zero())
        .map_or(default, |wanted| wanted.as_f64());
    let unstated = state.pod_count() as f64
        * if state.requested(resource).is_zero() {
            default
        } else {
            0.0
        };
    ((state.requested(resource).as_f64() + unstated + asked) / total).clamp(0.0, 1.0)
}

/// The weights (1 to 100 each) of the preferred node affinities that hold.
fn preference(pod: &Pod, state: &NodeState) -> i64 {
    let affinity = pod.spec.affinity.as_ref();
    let preferred = affinity
        .and_then(|a| a.pointer("/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution"));
    let terms = preferred.and_then(Value::as_array).into_iter().flatten();
    terms
        .filter(|term| term_holds(&term["preference"], &state.node))
        .filter_map(|term| term["weight"].as_i64())
        .sum()
}
