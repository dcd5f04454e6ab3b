//! The kinds, reduced to the fields that are read.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeCondition, PodCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use serde::Deserialize;
use serde_json::Value;

use super::Selector;

macro_rules! resource {
    ($type:ident, $scope:ident, $group:literal, $plural:literal) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = $scope;
            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                stringify!($type).into()
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

/// What is read of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// Names, labels, owners.
    pub metadata: ObjectMeta,
    /// What was asked for.
    pub spec: PodSpec,
    /// What is seen.
    pub status: PodStatus,
}
resource!(Pod, NamespaceResourceScope, "", "pods");

/// The parts of a Pod's spec that placement and endpoints depend on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node it is bound to.
    pub node_name: Option<String>,
    /// Labels that the node must carry.
    pub node_selector: BTreeMap<String, String>,
    /// Node affinity is read from it.
    pub affinity: Option<Value>,
    /// Taints that it bears.
    pub tolerations: Vec<Toleration>,
    /// Only "default-scheduler" is ours.
    pub scheduler_name: Option<String>,
    /// Gates that hold scheduling back.
    pub scheduling_gates: Vec<Value>,
    /// Higher first.
    pub priority: Option<i32>,
    /// Given to the pod beside its containers' requests.
    pub overhead: BTreeMap<String, Quantity>,
    /// Pod-level resources, where set.
    pub resources: Option<Resources>,
    /// In their order.
    pub containers: Vec<Container>,
    /// In their order.
    pub init_containers: Vec<Container>,
    /// DNS name within the subdomain.
    pub hostname: Option<String>,
    /// The headless Service that names it.
    pub subdomain: Option<String>,
    /// Shares the node's network.
    pub host_network: bool,
}

/// The parts of a container that placement and endpoints depend on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Named ports are looked up here.
    pub ports: Vec<ContainerPort>,
    /// Requests and limits.
    pub resources: Resources,
    /// "Always" marks a sidecar among init containers.
    pub restart_policy: Option<String>,
}

/// A container's port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// May be referred to by a Service.
    pub name: Option<String>,
    /// 1 to 65535.
    pub container_port: i32,
    /// On the node, where asked for.
    pub host_port: Option<i32>,
    /// The node's address for it.
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    /// TCP, UDP or SCTP.
    pub protocol: Option<String>,
}

/// Requests and limits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What must be free on the node.
    pub requests: BTreeMap<String, Quantity>,
    /// What it may use.
    pub limits: BTreeMap<String, Quantity>,
}

/// What is seen of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed, Unknown.
    pub phase: Option<String>,
    /// Ready and the others.
    pub conditions: Vec<PodCondition>,
    /// First address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// All addresses, both families.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
}

/// One address of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// IPv4 or IPv6.
    pub ip: String,
}

impl Pod {
    /// Neither succeeded nor failed.
    pub fn is_active(&self) -> bool {
        !matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Being deleted.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The condition of this type.
    pub fn condition(&self, type_: &str) -> Option<&PodCondition> {
        self.status
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_)
    }

    /// Its Ready condition is True.
    pub fn is_ready(&self) -> bool {
        self.condition("Ready")
            .is_some_and(|condition| condition.status == "True")
    }
}

/// What is read of a Deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Deployment {
    /// Names, labels, annotations.
    pub metadata: ObjectMeta,
    /// What was asked for.
    pub spec: DeploymentSpec,
    /// As last written by us, kept as JSON.
    pub status: Value,
}
resource!(Deployment, NamespaceResourceScope, "apps", "deployments");

/// A Deployment's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    /// Wanted pods; 1 where missing.
    pub replicas: Option<i32>,
    /// Which ReplicaSets and pods are its own.
    pub selector: Selector,
    /// Passed through.
    pub template: Value,
    /// RollingUpdate or Recreate.
    pub strategy: Strategy,
    /// A pod counts as available after so many seconds ready.
    pub min_ready_seconds: i32,
    /// Old ReplicaSets kept; 10 where missing.
    pub revision_history_limit: Option<i32>,
    /// Only scaling is done.
    pub paused: bool,
    /// 600 where missing.
    pub progress_deadline_seconds: Option<i32>,
}

/// How pods are replaced.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    /// "Recreate", else a rolling update.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// Bounds of a rolling update.
    pub rolling_update: RollingUpdate,
}

/// The bounds of a rolling update; 25 % each where missing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    /// Pods above the wanted number.
    pub max_surge: Option<IntOrString>,
    /// Pods below it.
    pub max_unavailable: Option<IntOrString>,
}

/// What is read of a ReplicaSet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSet {
    /// Names, labels, annotations, owner.
    pub metadata: ObjectMeta,
    /// What was asked for.
    pub spec: ReplicaSetSpec,
    /// What is seen.
    pub status: ReplicaSetStatus,
}
resource!(ReplicaSet, NamespaceResourceScope, "apps", "replicasets");

/// A ReplicaSet's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    /// Wanted pods; 1 where missing.
    pub replicas: Option<i32>,
    /// Which pods are its own.
    pub selector: Selector,
    /// Passed through.
    pub template: Value,
    /// A pod counts as available after so many seconds ready.
    pub min_ready_seconds: i32,
}

/// A ReplicaSet's status.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    /// Pods that exist.
    pub replicas: i32,
    /// Of them, those that carry all labels of the template.
    pub fully_labeled_replicas: i32,
    /// Of them, ready ones.
    pub ready_replicas: i32,
    /// Of them, those ready for minReadySeconds.
    pub available_replicas: i32,
    /// Pods being deleted.
    pub terminating_replicas: Option<i32>,
    /// The generation that this status is of.
    pub observed_generation: i64,
}

/// What is read of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    /// Names, labels.
    pub metadata: ObjectMeta,
    /// What was asked for.
    pub spec: ServiceSpec,
}
resource!(Service, NamespaceResourceScope, "", "services");

/// A Service's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Pods with these labels are its endpoints; without, others write its endpoints.
    pub selector: BTreeMap<String, String>,
    /// In their order.
    pub ports: Vec<ServicePort>,
    /// "None" when headless.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// IPv4, IPv6 or both.
    pub ip_families: Vec<String>,
    /// ExternalName has no endpoints.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// Endpoints are ready whatever the pods say.
    pub publish_not_ready_addresses: bool,
}

/// A Service's port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Required where there are several.
    pub name: Option<String>,
    /// 1 to 65535.
    pub port: i32,
    /// TCP, UDP or SCTP.
    pub protocol: Option<String>,
    /// The pod's port, by number or name; `port` where missing.
    pub target_port: Option<IntOrString>,
    /// A hint for proxies.
    pub app_protocol: Option<String>,
}

/// What is read of an EndpointSlice; its endpoints and ports stay JSON.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Names, labels, owner.
    pub metadata: ObjectMeta,
    /// IPv4 or IPv6.
    pub address_type: String,
    /// In their order.
    pub endpoints: Vec<Value>,
    /// In their order.
    pub ports: Vec<Value>,
}
resource!(
    EndpointSlice,
    NamespaceResourceScope,
    "discovery.k8s.io",
    "endpointslices"
);

/// What is read of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// Names, labels.
    pub metadata: ObjectMeta,
    /// What was asked for.
    pub spec: NodeSpec,
    /// What is seen.
    pub status: NodeStatus,
}
resource!(Node, ClusterResourceScope, "", "nodes");

/// A Node's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// Cordoned.
    pub unschedulable: bool,
    /// What keeps pods away.
    pub taints: Vec<Taint>,
    /// Its pods' addresses come from these.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// A Node's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// What pods may use together.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Ready and the others.
    pub conditions: Vec<NodeCondition>,
}

impl Node {
    /// The condition of this type.
    pub fn condition(&self, type_: &str) -> Option<&NodeCondition> {
        self.status
            .conditions
            .iter()
            .find(|condition| condition.type_ == type_)
    }
}

/// What is read of a Namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Namespace {
    /// Its name, and whether it is being deleted.
    pub metadata: ObjectMeta,
}
resource!(Namespace, ClusterResourceScope, "", "namespaces");

/// What is read of a Lease.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lease {
    /// Named after its node in kube-node-lease.
    pub metadata: ObjectMeta,
    /// Who holds it, since when.
    pub spec: Value,
}
resource!(
    Lease,
    NamespaceResourceScope,
    "coordination.k8s.io",
    "leases"
);

/// What is read of a ServiceAccount.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceAccount {
    /// Its name.
    pub metadata: ObjectMeta,
}
resource!(
    ServiceAccount,
    NamespaceResourceScope,
    "",
    "serviceaccounts"
);

/// What is read of a ConfigMap.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConfigMap {
    /// Its name.
    pub metadata: ObjectMeta,
    /// Its text.
    pub data: BTreeMap<String, String>,
}
resource!(ConfigMap, NamespaceResourceScope, "", "configmaps");
