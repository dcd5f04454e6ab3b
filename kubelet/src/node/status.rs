//! The Node's status: a pure function of the machine and the runtime.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::{Machine, RuntimeHealth, facts, skeleton};
use crate::config::Config;

/// Upstream's hard eviction thresholds.
const LOW_MEMORY_BYTES: i64 = 100 * 1024 * 1024;
const LOW_STORAGE_PERMILLE: i64 = 100;
const LOW_INODES_PERMILLE: i64 = 50;
const LOW_PIDS: i64 = 100;

/// What other components take this kubelet for.
pub const KUBELET_VERSION: &str = "v1.36.0";

pub fn node(
    config: &Config,
    machine: &Machine,
    health: &RuntimeHealth,
    port: u16,
    before: Option<&Node>,
) -> Node {
    let mut node = skeleton(config);
    let now = Timestamp::now();
    let before = before
        .and_then(|n| n.status.as_ref())
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or(&[]);
    node.status = Some(NodeStatus {
        addresses: Some(addresses(config)),
        capacity: Some(quantities(machine.capacity(config))),
        allocatable: Some(quantities(machine.allocatable(config))),
        conditions: Some(conditions(machine, health, before, now)),
        daemon_endpoints: (port > 0).then(|| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: port.into() }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: facts::architecture().into(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: health.version.clone(),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.into(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            swap: None,
        }),
        runtime_handlers: Some(health.handlers.iter().map(handler).collect()),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(health.supplemental_groups_policy),
        }),
        ..NodeStatus::default()
    });
    node
}

/// Whether two statuses differ in more than the time and the amounts that always move.
pub fn differs(a: &Node, b: &Node) -> bool {
    let strip = |node: &Node| {
        let mut status = node.status.clone().unwrap_or_default();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    strip(a) != strip(b)
}

fn addresses(config: &Config) -> Vec<NodeAddress> {
    let internal = config
        .node_ips
        .iter()
        .map(|ip: &IpAddr| ("InternalIP", ip.to_string()));
    let hostname = std::iter::once(("Hostname", config.node_name.clone()));
    internal
        .chain(hostname)
        .map(|(kind, address)| NodeAddress {
            type_: kind.into(),
            address,
        })
        .collect()
}

fn quantities(amounts: BTreeMap<String, Quantity>) -> BTreeMap<String, resource::Quantity> {
    amounts
        .into_iter()
        .map(|(name, amount)| (name, resource::Quantity(amount.to_string())))
        .collect()
}

fn handler(handler: &cri_api::v1::RuntimeHandler) -> NodeRuntimeHandler {
    let features = handler.features.unwrap_or_default();
    NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
            user_namespaces: Some(features.user_namespaces),
        }),
    }
}

fn conditions(
    machine: &Machine,
    health: &RuntimeHealth,
    before: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let permille = |part: i64, whole: i64| part.saturating_mul(1000) / whole.max(1);
    let storage = permille(machine.storage_available_bytes, machine.storage_bytes);
    let low_memory = machine.memory_available_bytes < LOW_MEMORY_BYTES;
    let low_disk =
        storage < LOW_STORAGE_PERMILLE || machine.inodes_free_permille < LOW_INODES_PERMILLE;
    let low_pids = machine.pids_free < LOW_PIDS;
    let pressure =
        |kind, holds, good: (&'static str, &'static str), bad: (&'static str, &'static str)| {
            let (reason, message) = if holds { bad } else { good };
            (kind, holds, reason, message.to_owned())
        };
    let ready = if health.problems.is_empty() {
        (
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        )
    } else {
        (
            "Ready",
            false,
            "KubeletNotReady",
            health.problems.join(", "),
        )
    };
    let all = [
        pressure(
            "MemoryPressure",
            low_memory,
            (
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            (
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
        ),
        pressure(
            "DiskPressure",
            low_disk,
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ),
        pressure(
            "PIDPressure",
            low_pids,
            (
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
            (
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
        ),
        ready,
    ];
    all.into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let since = before
                .iter()
                .find(|c| c.type_ == kind && c.status == status);
            NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: since
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(now))),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_a_runtime_is_not_ready_and_says_why() {
        let config = Config::new("n", vec!["192.0.2.1".parse().expect("an address")]);
        let machine = Machine {
            memory_bytes: 1 << 30,
            memory_available_bytes: 1 << 29,
            storage_bytes: 10,
            storage_available_bytes: 9,
            inodes_free_permille: 900,
            pids_free: 1000,
            ..Machine::default()
        };
        let down = RuntimeHealth {
            problems: vec!["container runtime is down".into()],
            ..RuntimeHealth::default()
        };
        let first = node(&config, &machine, &down, 10250, None);
        let conditions = first
            .status
            .as_ref()
            .and_then(|s| s.conditions.clone())
            .expect("conditions");
        assert_eq!(conditions[3].status, "False");
        let second = node(
            &config,
            &machine,
            &RuntimeHealth::default(),
            10250,
            Some(&first),
        );
        assert!(differs(&first, &second));
        let third = node(
            &config,
            &machine,
            &RuntimeHealth::default(),
            10250,
            Some(&second),
        );
        assert!(!differs(&second, &third));
    }
}
