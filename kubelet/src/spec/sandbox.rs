//! The pod's sandbox (CRI PodSandboxConfig).

use std::collections::HashMap;

use cri_api::v1;
use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use super::dns::{self, NodeDns};
use super::security;
use crate::pod::PodExt;
use crate::resources;
use crate::runtime::labels;

/// What the node contributes to every sandbox.
pub struct NodeSetup<'a> {
    /// The node's name.
    pub node_name: &'a str,
    /// The node's resolver and the cluster's.
    pub dns: &'a NodeDns,
    /// Whether a pod without a seccomp profile gets the runtime's own.
    pub seccomp_default: bool,
    /// Where pod cgroups begin.
    pub cgroup_root: &'a str,
    /// The pod's ids on the host, if it has a user namespace of its own.
    pub user: Option<v1::IdMapping>,
    /// The folder of the pod's logs.
    pub log_directory: String,
}

/// The labels by which the pod is found again: its own, and upstream's three.
pub fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    let mut all: HashMap<String, String> = pod
        .metadata
        .labels
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    all.insert(labels::POD_NAME.into(), pod.name().into());
    all.insert(labels::POD_NAMESPACE.into(), pod.namespace().into());
    all.insert(labels::POD_UID.into(), pod.uid().as_str().into());
    all
}

/// The sandbox's configuration for its `attempt`-th time.
pub fn sandbox_config(pod: &Pod, attempt: u32, node: &NodeSetup) -> v1::PodSandboxConfig {
    let spec = pod.pod_spec();
    let context = spec.security_context.clone().unwrap_or_default();
    let privileged = spec
        .containers
        .iter()
        .chain(pod.init_containers())
        .any(|c| {
            c.security_context
                .as_ref()
                .is_some_and(|s| s.privileged == Some(true))
        });
    let mut annotations: HashMap<String, String> = pod
        .metadata
        .annotations
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    annotations.insert(labels::GRACE_PERIOD.into(), pod.grace_seconds().to_string());
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.name().into(),
            uid: pod.uid().as_str().into(),
            namespace: pod.namespace().into(),
            attempt,
        }),
        hostname: dns::sandbox_hostname(pod, &node.dns.domain, node.node_name),
        log_directory: node.log_directory.clone(),
        dns_config: Some(dns::dns_config(pod, node.dns)),
        port_mappings: port_mappings(pod),
        labels: pod_labels(pod),
        annotations,
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(node.cgroup_root, pod),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(security::namespace_options(pod, node.user)),
                run_as_user: context.run_as_user.map(|value| v1::Int64Value { value }),
                run_as_group: context.run_as_group.map(|value| v1::Int64Value { value }),
                supplemental_groups: groups,
                privileged,
                seccomp: Some(security::seccomp(
                    context.seccomp_profile.as_ref(),
                    privileged,
                    node.seccomp_default,
                )),
                ..v1::LinuxSandboxSecurityContext::default()
            }),
            sysctls: context
                .sysctls
                .into_iter()
                .flatten()
                .map(|s| (s.name.replace('/', "."), s.value))
                .collect(),
            overhead: Some(v1::LinuxContainerResources::default()),
            resources: Some(resources::pod_resources(pod)),
        }),
        windows: None,
    }
}

fn port_mappings(pod: &Pod) -> Vec<v1::PortMapping> {
    if pod.host_network() {
        return Vec::new();
    }
    let containers = pod
        .init_containers()
        .iter()
        .chain(&pod.pod_spec().containers);
    containers
        .flat_map(|c| c.ports.iter().flatten())
        .filter(|port| port.host_port.is_some_and(|p| p > 0))
        .map(port_mapping)
        .collect()
}

fn port_mapping(port: &ContainerPort) -> v1::PortMapping {
    let protocol = match port.protocol.as_deref() {
        Some("UDP") => v1::Protocol::Udp,
        Some("SCTP") => v1::Protocol::Sctp,
        _ => v1::Protocol::Tcp,
    };
    v1::PortMapping {
        protocol: protocol as i32,
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or_default(),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_sandbox_carries_the_pods_identity_ports_and_limits() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}, {"containerPort": 81}],
                "resources": {"limits": {"cpu": "1", "memory": "64Mi"}}}]}
        }))
        .expect("a pod");
        let dns = NodeDns::default();
        let setup = NodeSetup {
            node_name: "node",
            dns: &dns,
            seccomp_default: true,
            cgroup_root: "/",
            user: None,
            log_directory: "/logs".into(),
        };
        let config = sandbox_config(&pod, 2, &setup);
        assert_eq!(config.labels["io.kubernetes.pod.uid"], "u");
        assert_eq!(config.labels["app"], "x");
        assert_eq!(config.port_mappings.len(), 1);
        assert_eq!(config.metadata.expect("metadata").attempt, 2);
        let linux = config.linux.expect("linux");
        assert_eq!(linux.cgroup_parent, "/kubepods/podu");
        assert_eq!(
            linux.resources.expect("resources").memory_limit_in_bytes,
            64 << 20
        );
    }
}
