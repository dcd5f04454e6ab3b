//! What a pod asks of a node, and which quality of service that gives it (`k8s.io/component-helpers/resource`,
//! `pkg/apis/core/v1/helper/qos`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;

use crate::quantity::Quantity;

/// Amounts by resource name: `cpu`, `memory`, `example.com/gpu`.
pub type Resources = BTreeMap<String, Quantity>;

/// A pod's quality of service: who is killed first when memory runs out, and where its cgroup lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    /// The value of `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Reads a map of quantities. An entry that isn't a quantity is left out: the API server refused it before.
pub fn parse(list: Option<&BTreeMap<String, WireQuantity>>) -> Resources {
    let entries = list.into_iter().flatten();
    entries
        .filter_map(|(name, quantity)| Some((name.clone(), quantity.0.parse().ok()?)))
        .collect()
}

/// What the whole pod requests: the larger of what its containers need together and what any init container needs
/// beside the sidecars started before it; pod-level requests override both; the overhead is added.
pub fn pod_requests(spec: &PodSpec) -> Resources {
    pod_total(
        spec,
        spec.resources.as_ref().and_then(|r| r.requests.as_ref()),
        requests_of,
    )
}

/// The same for limits. A resource that some container doesn't limit still sums those that do; see [`qos_class`] and
/// callers for when a sum bounds the pod.
pub fn pod_limits(spec: &PodSpec) -> Resources {
    pod_total(
        spec,
        spec.resources.as_ref().and_then(|r| r.limits.as_ref()),
        limits_of,
    )
}

fn requests_of(resources: Option<&ResourceRequirements>) -> Resources {
    let mut requests = parse(resources.and_then(|r| r.requests.as_ref()));
    // The API server fills requests from limits; static pods come without that.
    for (name, limit) in limits_of(resources) {
        requests.entry(name).or_insert(limit);
    }
    requests
}

fn limits_of(resources: Option<&ResourceRequirements>) -> Resources {
    parse(resources.and_then(|r| r.limits.as_ref()))
}

fn pod_total(
    spec: &PodSpec,
    pod_level: Option<&BTreeMap<String, WireQuantity>>,
    of: fn(Option<&ResourceRequirements>) -> Resources,
) -> Resources {
    let mut total = Resources::new();
    for container in &spec.containers {
        add(&mut total, &of(container.resources.as_ref()));
    }
    let (mut sidecars, mut init_peak) = (Resources::new(), Resources::new());
    for container in spec.init_containers.iter().flatten() {
        let mut needed = of(container.resources.as_ref());
        if is_sidecar(container) {
            add(&mut total, &needed);
            add(&mut sidecars, &needed);
            needed = sidecars.clone();
        } else {
            add(&mut needed, &sidecars);
        }
        raise(&mut init_peak, &needed);
    }
    raise(&mut total, &init_peak);
    total.extend(parse(pod_level));
    if !total.is_empty() || spec.overhead.is_some() {
        add(&mut total, &parse(spec.overhead.as_ref()));
    }
    total
}

/// An init container that runs as long as the pod does.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Adds `more` to `total`, resource by resource.
pub fn add(total: &mut Resources, more: &Resources) {
    for (name, quantity) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = *sum + *quantity;
    }
}

fn raise(total: &mut Resources, least: &Resources) {
    for (name, quantity) in least {
        let most = total.entry(name.clone()).or_default();
        *most = (*most).max(*quantity);
    }
}

/// Guaranteed if every container limits both CPU and memory and requests as much; BestEffort if none states anything
/// of either; else Burstable. Pod-level resources, where given, decide alone.
pub fn qos_class(spec: &PodSpec) -> QosClass {
    if let Some(resources) = spec
        .resources
        .as_ref()
        .filter(|r| r.requests.is_some() || r.limits.is_some())
    {
        return class_of([Some(resources)].into_iter());
    }
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    class_of(containers.map(|c| c.resources.as_ref()))
}

fn class_of<'a>(all: impl Iterator<Item = Option<&'a ResourceRequirements>>) -> QosClass {
    let (mut anything, mut guaranteed) = (false, true);
    for resources in all {
        let (requests, limits) = (requests_of(resources), limits_of(resources));
        for name in ["cpu", "memory"] {
            let positive = |list: &Resources| list.get(name).copied().filter(|q| !q.is_zero());
            let (request, limit) = (positive(&requests), positive(&limits));
            anything |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (anything, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).expect("a pod spec")
    }

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn a_pod_needs_the_larger_of_its_containers_and_its_init_steps() {
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = spec(json!({
            "containers": [container("200m"), container("300m")],
            "initContainers": [container("400m"), sidecar, container("700m")],
            "overhead": {"cpu": "10m"}
        }));
        // containers and sidecar: 600m; the last init step beside the sidecar: 800m
        assert_eq!(pod_requests(&pod)["cpu"], Quantity::from_milli(810));
    }

    #[test]
    fn pod_level_requests_override_the_sum() {
        let pod = spec(
            json!({"containers": [container("200m")], "resources": {"requests": {"cpu": "1"}}}),
        );
        assert_eq!(pod_requests(&pod)["cpu"], Quantity::from_milli(1000));
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let class = |resources: Value| {
            qos_class(&spec(
                json!({"containers": [{"name": "c", "resources": resources}]}),
            ))
        };
        assert_eq!(class(json!({})), QosClass::BestEffort);
        assert_eq!(
            class(json!({"requests": {"cpu": "1"}})),
            QosClass::Burstable
        );
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})),
            QosClass::Guaranteed
        );
        let unequal = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}});
        assert_eq!(class(unequal), QosClass::Burstable);
        assert_eq!(
            class(json!({"limits": {"example.com/gpu": "1"}})),
            QosClass::BestEffort
        );
    }
}
