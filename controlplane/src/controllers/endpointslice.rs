//! EndpointSlices (and the older Endpoints) of Services with a selector.
//!
//! What a Service's endpoints are is computed by pure functions; existing slices are kept and only those that
//! changed are written, so that one pod's readiness is one small write.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::Context;
use super::informer::Informer;
use super::object::{
    EndpointSlice, Key, Node, Pod, Service, ServicePort, controller_reference, ignore_not_found,
    is_code, path,
};
use super::own_writes::OwnWrites;
use super::queue::Queue;

const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MOST_ENDPOINTS: usize = 100;
const MOST_ADDRESSES_OF_ENDPOINTS: usize = 1000;

/// The EndpointSlice and Endpoints controller.
pub struct Controller {
    context: Context,
    services: Arc<Informer<Service>>,
    pods: Arc<Informer<Pod>>,
    slices: Arc<Informer<EndpointSlice>>,
    nodes: Arc<Informer<Node>>,
    writes: OwnWrites,
    /// The Endpoints object last written for a Service, to write it only when it changes.
    endpoints: Mutex<BTreeMap<Key, Value>>,
}

impl Controller {
    /// Registers what brings a Service back: itself, pods that it selects or selected, its slices.
    pub fn new(
        context: Context,
        services: Arc<Informer<Service>>,
        pods: Arc<Informer<Pod>>,
        slices: Arc<Informer<EndpointSlice>>,
        nodes: Arc<Informer<Node>>,
        queue: &Queue<Key>,
    ) -> Self {
        let q = queue.clone();
        services
            .on_change(move |change| change.both().for_each(|service| q.add(Key::of(&**service))));
        let (q, all) = (queue.clone(), services.clone());
        pods.on_change(move |change| {
            if let (Some(old), Some(new)) = (&change.old, &change.new)
                && same_endpoint(old, new)
            {
                return;
            }
            for pod in change.both() {
                let selects =
                    |s: &Service| s.metadata.namespace == pod.metadata.namespace && selects(s, pod);
                all.list(selects)
                    .iter()
                    .for_each(|service| q.add(Key::of(&**service)));
            }
        });
        let q = queue.clone();
        slices.on_change(move |change| {
            for slice in change.both().filter(|slice| is_ours(slice)) {
                if let Some(service) = label(slice, SERVICE_NAME) {
                    q.add(Key::new(
                        slice.metadata.namespace.as_deref().unwrap_or_default(),
                        service,
                    ));
                }
            }
        });
        Self {
            context,
            services,
            pods,
            slices,
            nodes,
            writes: OwnWrites::default(),
            endpoints: Mutex::default(),
        }
    }

    /// Brings one Service's slices and Endpoints up to date.
    pub async fn reconcile(&self, key: Key) -> Result<Option<Duration>, kube::Error> {
        if !self.writes.are_in(&self.slices, &key) {
            return Ok(Some(Duration::from_millis(100)));
        }
        let mine = |slice: &EndpointSlice| {
            slice.metadata.namespace.as_deref() == Some(&key.namespace)
                && is_ours(slice)
                && label(slice, SERVICE_NAME) == Some(&key.name)
        };
        let existing = self.slices.list(mine);
        let Some(service) = self
            .services
            .get(&key)
            .filter(|s| s.metadata.deletion_timestamp.is_none())
        else {
            for slice in &existing {
                self.context.writer.delete(&**slice).await?;
            }
            self.writes.forget(&key);
            // The Endpoints object names the Service as its owner: garbage collection takes it away.
            self.endpoints
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
            return Ok(None);
        };
        if service.spec.selector.is_empty() || service.spec.type_.as_deref() == Some("ExternalName")
        {
            return Ok(None);
        }
        let pods = self.pods.list(|pod| {
            pod.metadata.namespace == service.metadata.namespace && selects(&service, pod)
        });
        let zone = |node: &str| {
            let node = self.nodes.get(&Key::new("", node))?;
            node.metadata
                .labels
                .as_ref()?
                .get("topology.kubernetes.io/zone")
                .cloned()
        };
        let wanted = wanted(&service, &pods, &zone);
        for write in plan(&service, &existing, &wanted) {
            self.carry_out(&key, write).await?;
        }
        self.write_endpoints(&key, &service, &wanted).await?;
        Ok(None)
    }

    async fn carry_out(&self, key: &Key, write: Write) -> Result<(), kube::Error> {
        let writer = &self.context.writer;
        let answer = match write {
            Write::Create(slice) => Some(
                writer
                    .create::<EndpointSlice>(&key.namespace, &slice)
                    .await?,
            ),
            Write::Update(old, patch) => ignore_not_found(
                writer
                    .merge::<EndpointSlice>(&Key::of(&*old), None, &patch)
                    .await,
            )?,
            Write::Delete(old) => writer.delete(&*old).await?,
        };
        if let Some(answer) = answer {
            self.writes.wrote(key.clone(), &answer);
        }
        Ok(())
    }

    async fn write_endpoints(
        &self,
        key: &Key,
        service: &Service,
        wanted: &[Group],
    ) -> Result<(), kube::Error> {
        let object = endpoints(service, wanted);
        if self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            == Some(&object)
        {
            return Ok(());
        }
        let at = path::<Service>(key).replace("/services/", "/endpoints/");
        match self.context.writer.merge_at(at.clone(), &object).await {
            Err(error) if is_code(&error, 404) => {
                let collection = at
                    .rsplit_once('/')
                    .map_or(at.as_str(), |(collection, _)| collection)
                    .to_owned();
                self.context.writer.create_at(collection, &object).await?;
            }
            other => drop(other?),
        }
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.clone(), object);
        Ok(())
    }
}

/// One write of a slice.
enum Write {
    Create(Value),
    Update(Arc<EndpointSlice>, Value),
    Delete(Arc<EndpointSlice>),
}

/// Endpoints of one address family that listen on the same port numbers.
#[derive(Debug, PartialEq)]
struct Group {
    family: &'static str,
    ports: Vec<Value>,
    /// By the pod's name.
    endpoints: BTreeMap<String, Value>,
}

fn label<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn is_ours(slice: &EndpointSlice) -> bool {
    label(slice, MANAGED_BY_LABEL) == Some(MANAGED_BY)
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    !service.spec.selector.is_empty()
        && service
            .spec
            .selector
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

fn same_endpoint(old: &Pod, new: &Pod) -> bool {
    let view = |pod: &Pod| {
        let ips: Vec<_> = pod.status.pod_ips.iter().map(|ip| ip.ip.clone()).collect();
        (
            ips,
            pod.is_ready(),
            pod.is_terminating(),
            pod.is_active(),
            pod.spec.node_name.clone(),
            pod.metadata.labels.clone(),
        )
    };
    view(old) == view(new)
}

/// The port of `pod` that the Service's port leads to: a named one is looked up in its containers.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.containers.iter().chain(
                pod.spec
                    .init_containers
                    .iter()
                    .filter(|c| c.restart_policy.as_deref() == Some("Always")),
            );
            containers
                .flat_map(|container| &container.ports)
                .find(|p| {
                    p.name.as_ref() == Some(name)
                        && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Vec<Group> {
    let families: Vec<&'static str> = match service.spec.ip_families.as_slice() {
        [] => vec!["IPv4"],
        some => some
            .iter()
            .map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" })
            .collect(),
    };
    let mut groups: Vec<Group> = Vec::new();
    for family in families {
        for pod in pods.iter().filter(|pod| pod.is_active()) {
            let Some(address) = address(pod, family) else {
                continue;
            };
            let ports: Vec<Value> = service
                .spec
                .ports
                .iter()
                .filter_map(|port| Some(slice_port(port, target(port, pod)?)))
                .collect();
            if ports.is_empty() && !service.spec.ports.is_empty() {
                continue;
            }
            let endpoint = endpoint(service, pod, address, zone);
            let name = pod.metadata.name.clone().unwrap_or_default();
            match groups
                .iter_mut()
                .find(|group| group.family == family && group.ports == ports)
            {
                Some(group) => drop(group.endpoints.insert(name, endpoint)),
                None => groups.push(Group {
                    family,
                    ports,
                    endpoints: BTreeMap::from([(name, endpoint)]),
                }),
            }
        }
        if !groups.iter().any(|group| group.family == family) {
            groups.push(Group {
                family,
                ports: Vec::new(),
                endpoints: BTreeMap::new(),
            });
        }
    }
    groups
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    let mut ips = pod
        .status
        .pod_ips
        .iter()
        .map(|ip| ip.ip.as_str())
        .chain(pod.status.pod_ip.as_deref());
    ips.find(|ip| {
        ip.parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6"))
    })
    .map(str::to_owned)
}

fn slice_port(port: &ServicePort, number: i32) -> Value {
    let mut value = json!({
        "name": port.name.as_deref().unwrap_or_default(), "port": number,
        "protocol": port.protocol.as_deref().unwrap_or("TCP"),
    });
    if let Some(app) = &port.app_protocol {
        value["appProtocol"] = json!(app);
    }
    value
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: String,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Value {
    let ready = service.spec.publish_not_ready_addresses || pod.is_ready() && !pod.is_terminating();
    let serving = service.spec.publish_not_ready_addresses || pod.is_ready();
    let mut value = json!({
        "addresses": [address],
        "conditions": { "ready": ready, "serving": serving, "terminating": pod.is_terminating() },
        "targetRef": { "kind": "Pod", "namespace": pod.metadata.namespace, "name": pod.metadata.name, "uid": pod.metadata.uid },
    });
    if let Some(node) = &pod.spec.node_name {
        value["nodeName"] = json!(node);
        if let Some(zone) = zone(node) {
            value["zone"] = json!(zone);
        }
    }
    if let (Some(hostname), Some(subdomain)) = (&pod.spec.hostname, &pod.spec.subdomain)
        && service.metadata.name.as_ref() == Some(subdomain)
    {
        value["hostname"] = json!(hostname);
    }
    value
}

/// The fewest writes that make the existing slices say what is wanted.
fn plan(service: &Service, existing: &[Arc<EndpointSlice>], wanted: &[Group]) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut left: Vec<&Arc<EndpointSlice>> = existing.iter().collect();
    for group in wanted {
        let (mut fitting, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|slice| {
            slice.address_type == group.family
                && (slice.ports == group.ports || group.endpoints.is_empty())
        });
        left = rest;
        fitting.sort_by_key(|slice| slice.metadata.name.clone());
        place(service, group, fitting, &mut writes);
    }
    writes.extend(left.into_iter().cloned().map(Write::Delete));
    writes
}

/// Keeps each endpoint in the slice that has it, and fills the others up.
fn place(
    service: &Service,
    group: &Group,
    slices: Vec<&Arc<EndpointSlice>>,
    writes: &mut Vec<Write>,
) {
    let mut open = group.endpoints.clone();
    let mut contents: Vec<Vec<Value>> = Vec::new();
    for slice in &slices {
        let names = slice
            .endpoints
            .iter()
            .filter_map(|e| e.pointer("/targetRef/name").and_then(Value::as_str));
        contents.push(names.filter_map(|name| open.remove(name)).collect());
    }
    let mut new: Vec<Vec<Value>> = Vec::new();
    for endpoint in open.into_values() {
        match contents
            .iter_mut()
            .chain(new.iter_mut())
            .find(|content| content.len() < MOST_ENDPOINTS)
        {
            Some(content) => content.push(endpoint),
            None => new.push(vec![endpoint]),
        }
    }
    if slices.is_empty() && new.is_empty() {
        new.push(Vec::new());
    }
    let mut kept = contents.iter().any(|content| !content.is_empty()) || !new.is_empty();
    for (slice, content) in slices.into_iter().zip(contents) {
        if content.is_empty() && kept {
            writes.push(Write::Delete(slice.clone()));
            continue;
        }
        kept = true;
        if content != slice.endpoints || slice.ports != group.ports {
            let meta = json!({ "resourceVersion": slice.metadata.resource_version });
            let patch = json!({ "metadata": meta, "endpoints": content, "ports": group.ports });
            writes.push(Write::Update(slice.clone(), patch));
        }
    }
    writes.extend(
        new.into_iter()
            .map(|content| Write::Create(new_slice(service, group, content))),
    );
}

fn new_slice(service: &Service, group: &Group, endpoints: Vec<Value>) -> Value {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.to_owned());
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    if service.spec.cluster_ip.as_deref() == Some("None") {
        labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "generateName": format!("{name}-"), "labels": labels, "ownerReferences": [controller_reference(service)] },
        "addressType": group.family, "endpoints": endpoints, "ports": group.ports,
    })
}

/// The same as an Endpoints object: the first family only, ready and not ready apart.
fn endpoints(service: &Service, wanted: &[Group]) -> Value {
    let family = wanted.first().map_or("IPv4", |group| group.family);
    let mut subsets = Vec::new();
    let mut left = MOST_ADDRESSES_OF_ENDPOINTS;
    for group in wanted
        .iter()
        .filter(|group| group.family == family && !group.endpoints.is_empty())
    {
        let (mut ready, mut waiting) = (Vec::new(), Vec::new());
        for endpoint in group.endpoints.values().take(left) {
            let address = json!({ "ip": endpoint["addresses"][0], "nodeName": endpoint["nodeName"], "targetRef": endpoint["targetRef"] });
            if endpoint["conditions"]["ready"] == true {
                ready.push(address)
            } else {
                waiting.push(address)
            }
        }
        left -= ready.len() + waiting.len();
        let ports: Vec<Value> = group.ports.iter().cloned().map(unnamed).collect();
        let mut subset = json!({ "ports": ports });
        for (field, addresses) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            if !addresses.is_empty() {
                subset[field] = json!(addresses);
            }
        }
        subsets.push(subset);
    }
    let labels = service.metadata.labels.clone().unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": { "name": service.metadata.name, "labels": labels, "ownerReferences": [controller_reference(service)] },
        "subsets": if subsets.is_empty() { Value::Null } else { json!(subsets) },
    })
}

fn unnamed(mut port: Value) -> Value {
    if port["name"] == "" {
        port.as_object_mut().map(|port| port.remove("name"));
    }
    port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({ "metadata": { "name": "web", "namespace": "default", "uid": "u" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }], "ipFamilies": ["IPv4"] } }))
        .expect("a service")
    }

    fn pod(name: &str, ip: &str, ready: &str) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "default", "labels": { "app": "web" } },
                "spec": { "nodeName": "n", "containers": [{ "ports": [{ "name": "http", "containerPort": 8080 }] }] },
                "status": { "phase": "Running", "podIPs": [{ "ip": ip }], "conditions": [{ "type": "Ready", "status": ready }] } }))
            .expect("a pod"),
        )
    }

    fn stored(write: &Write, name: &str) -> Arc<EndpointSlice> {
        let Write::Create(value) = write else {
            panic!("not a creation")
        };
        let mut slice: EndpointSlice = serde_json::from_value(value.clone()).expect("a slice");
        slice.metadata.name = Some(name.to_owned());
        Arc::new(slice)
    }

    #[test]
    fn a_named_port_is_found_in_the_pod_and_an_unready_pod_is_listed_as_such() {
        let groups = wanted(
            &service(),
            &[pod("a", "10.0.0.1", "True"), pod("b", "10.0.0.2", "False")],
            &|_| None,
        );
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].ports[0]["port"], 8080);
        assert_eq!(groups[0].endpoints["a"]["conditions"]["ready"], true);
        assert_eq!(groups[0].endpoints["b"]["conditions"]["ready"], false);
    }

    #[test]
    fn what_is_already_said_is_not_written_again() {
        let groups = wanted(&service(), &[pod("a", "10.0.0.1", "True")], &|_| None);
        let first = plan(&service(), &[], &groups);
        assert_eq!(first.len(), 1);
        assert!(plan(&service(), &[stored(&first[0], "s1")], &groups).is_empty());
    }

    #[test]
    fn one_changed_pod_is_one_update_and_the_last_slice_stays_when_all_go() {
        let before = wanted(
            &service(),
            &[pod("a", "10.0.0.1", "True"), pod("b", "10.0.0.2", "True")],
            &|_| None,
        );
        let slice = stored(&plan(&service(), &[], &before)[0], "s1");
        let after = wanted(
            &service(),
            &[pod("a", "10.0.0.1", "True"), pod("b", "10.0.0.2", "False")],
            &|_| None,
        );
        let writes = plan(&service(), std::slice::from_ref(&slice), &after);
        assert!(matches!(writes.as_slice(), [Write::Update(_, _)]));
        let none = wanted(&service(), &[], &|_| None);
        assert!(matches!(
            plan(&service(), &[slice], &none).as_slice(),
            [Write::Update(_, _)]
        ));
    }

    #[test]
    fn a_hundred_endpoints_fill_a_slice() {
        let pods: Vec<_> = (0..250)
            .map(|i| {
                pod(
                    &format!("p{i}"),
                    &format!("10.0.{}.{}", i / 250, i % 250 + 1),
                    "True",
                )
            })
            .collect();
        assert_eq!(
            plan(&service(), &[], &wanted(&service(), &pods, &|_| None)).len(),
            3
        );
    }

    #[test]
    fn an_ipv6_address_is_an_endpoint_of_its_own_family() {
        let mut dual = service();
        dual.spec.ip_families = vec!["IPv4".to_owned(), "IPv6".to_owned()];
        let mut both = (*pod("a", "10.0.0.1", "True")).clone();
        both.status.pod_ips.push(super::super::object::PodIp {
            ip: "fd00::1".to_owned(),
        });
        let groups = wanted(&dual, &[Arc::new(both)], &|_| None);
        let addresses: Vec<_> = groups
            .iter()
            .map(|g| (g.family, g.endpoints["a"]["addresses"][0].clone()))
            .collect();
        assert_eq!(
            addresses,
            [("IPv4", json!("10.0.0.1")), ("IPv6", json!("fd00::1"))]
        );
    }
}
