//! What the controllers and the scheduler read of each kind, and how they write.
//!
//! A typed Pod takes 30 kB of heap and these few fields about one, so the local copies hold only what is read.
//! Pod templates pass through as JSON: a field that this program does not know is not lost.

use std::collections::BTreeMap;
use std::fmt;

use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{NodeCondition, PodCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Client, Resource};
use serde::Deserialize;
use serde_json::{Value, json};

/// Namespace and name; the namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Empty for a cluster-scoped kind.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key of `object`.
    pub fn of(object: &impl Resource) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

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

/// A controller's label selector: as it was written, and parsed once.
#[derive(Clone, Debug)]
pub struct Selector {
    /// As the API has it, to be passed on.
    pub written: Value,
    parsed: LabelSelector,
}

impl Default for Selector {
    fn default() -> Self {
        Self {
            written: Value::Null,
            parsed: LabelSelector::nothing(),
        }
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Value::deserialize(deserializer)?;
        let parsed = LabelSelector::from_object(&written).map_err(serde::de::Error::custom)?;
        Ok(Self { written, parsed })
    }
}

impl Selector {
    /// Whether it selects what has these labels. An empty selector selects nothing: a controller with one would
    /// take every pod of its namespace.
    pub fn selects(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        !self.parsed.is_empty() && self.parsed.matches(labels.unwrap_or(&NONE))
    }
}

/// The owner that controls an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|owner| owner.controller == Some(true))
}

/// An owner reference that makes `owner` the controller of what carries it.
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> Value {
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "name": owner.meta().name,
        "uid": owner.meta().uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The revision that an answer carries, 0 where it carries none.
pub fn revision(object: &Value) -> u64 {
    object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// The answer was of this HTTP code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Drops "not found": what a deletion or an update of a thing that went meanwhile answers.
pub fn ignore_not_found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_code(&error, 404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes of objects as JSON.
#[derive(Clone)]
pub struct Writer(pub Client);

impl Writer {
    async fn send(
        &self,
        method: &str,
        path: String,
        content: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let body = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .body(body);
        self.0
            .request(request.map_err(kube::Error::HttpError)?)
            .await
    }

    /// Reads an object, or a list, by its path.
    pub async fn get(&self, path: &str) -> Result<Value, kube::Error> {
        self.0
            .request(
                http::Request::get(path)
                    .body(Vec::new())
                    .map_err(kube::Error::HttpError)?,
            )
            .await
    }

    /// Creates an object of kind `K`.
    pub async fn create<K: Resource<DynamicType = ()>>(
        &self,
        ns: &str,
        object: &Value,
    ) -> Result<Value, kube::Error> {
        self.create_at(collection::<K>(ns), object).await
    }

    /// Sends `object` to a subresource of an object of kind `K`.
    pub async fn create_sub<K: Resource<DynamicType = ()>>(
        &self,
        key: &Key,
        sub: &str,
        object: &Value,
    ) -> Result<Value, kube::Error> {
        self.send(
            "POST",
            format!("{}/{sub}", path::<K>(key)),
            "application/json",
            object,
        )
        .await
    }

    /// Merges `patch` into an object, or into the subresource `sub` of it.
    pub async fn merge<K: Resource<DynamicType = ()>>(
        &self,
        key: &Key,
        sub: Option<&str>,
        patch: &Value,
    ) -> Result<Value, kube::Error> {
        let path = match sub {
            Some(sub) => format!("{}/{sub}", path::<K>(key)),
            None => path::<K>(key),
        };
        self.send("PATCH", path, "application/merge-patch+json", patch)
            .await
    }

    /// Merges `patch` into the object at `path`.
    pub async fn merge_at(&self, path: String, patch: &Value) -> Result<Value, kube::Error> {
        self.send("PATCH", path, "application/merge-patch+json", patch)
            .await
    }

    /// Creates an object in the collection at `path`.
    pub async fn create_at(&self, path: String, object: &Value) -> Result<Value, kube::Error> {
        self.send("POST", path, "application/json", &without_nulls(object))
            .await
    }

    /// Replaces the object at `path`.
    pub async fn replace_at(&self, path: String, object: &Value) -> Result<Value, kube::Error> {
        self.send("PUT", path, "application/json", object).await
    }

    /// Deletes an object if it still has this uid.
    pub async fn delete<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
    ) -> Result<Option<Value>, kube::Error> {
        let options = json!({ "preconditions": { "uid": object.meta().uid }, "propagationPolicy": "Background" });
        self.delete_at(path::<K>(&Key::of(object)), &options).await
    }

    /// Deletes what is at `path` with these DeleteOptions; None if it was gone.
    pub async fn delete_at(
        &self,
        path: String,
        options: &Value,
    ) -> Result<Option<Value>, kube::Error> {
        ignore_not_found(self.send("DELETE", path, "application/json", options).await)
    }
}

fn collection<K: Resource<DynamicType = ()>>(namespace: &str) -> String {
    K::url_path(&(), (!namespace.is_empty()).then_some(namespace))
}

/// The path of one object.
pub fn path<K: Resource<DynamicType = ()>>(key: &Key) -> String {
    format!("{}/{}", collection::<K>(&key.namespace), key.name)
}

/// `object` without the fields that are null: what a pass-through left out is left out, not sent as null.
fn without_nulls(object: &Value) -> Value {
    match object {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(key, value)| (key.clone(), without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// Now, as the API writes times: whole seconds, UTC.
pub fn now_rfc3339() -> String {
    api::time::seconds(jiff::Timestamp::now())
}
