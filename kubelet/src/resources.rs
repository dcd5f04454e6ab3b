//! What a pod asks for, as the kernel's knobs: QoS class, CPU shares and quota, memory, oom_score_adj, cgroup.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use cri_api::v1;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource;

use crate::pod::{ContainerExt, PodExt};

/// How sure a pod may be of its resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has equal CPU and memory requests and limits.
    Guaranteed,
    /// Something is asked for.
    Burstable,
    /// Nothing is asked for.
    BestEffort,
}

impl QosClass {
    /// As `status.qosClass` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// CPU in thousandths of a core and memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a core; none if it isn't stated.
    pub cpu_milli: Option<i64>,
    /// Bytes; none if it isn't stated.
    pub memory_bytes: Option<i64>,
}

type Map = BTreeMap<String, resource::Quantity>;

/// A resource of a list, none if absent or unreadable (the API server has refused that).
pub fn quantity(list: Option<&Map>, name: &str) -> Option<Quantity> {
    list?.get(name)?.0.parse().ok()
}

fn amounts(list: Option<&Map>) -> Amounts {
    Amounts {
        cpu_milli: quantity(list, "cpu").map(Quantity::milli_value),
        memory_bytes: quantity(list, "memory").map(Quantity::value),
    }
}

/// A container's limits.
pub fn limits(resources: Option<&ResourceRequirements>) -> Amounts {
    amounts(resources.and_then(|r| r.limits.as_ref()))
}

/// A container's requests; a limit without a request is one.
pub fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let asked = amounts(resources.and_then(|r| r.requests.as_ref()));
    let limit = limits(resources);
    Amounts {
        cpu_milli: asked.cpu_milli.or(limit.cpu_milli),
        memory_bytes: asked.memory_bytes.or(limit.memory_bytes),
    }
}

/// The pod's QoS class (upstream's `ComputePodQOS`).
pub fn qos_class(pod: &Pod) -> QosClass {
    if let Some(own) = &pod.pod_spec().resources {
        let (request, limit) = (requests(Some(own)), limits(Some(own)));
        if nonzero(request) || nonzero(limit) {
            return if complete(request, limit) {
                QosClass::Guaranteed
            } else {
                QosClass::Burstable
            };
        }
    }
    let mut any = false;
    let mut all = true;
    for container in pod
        .init_containers()
        .iter()
        .chain(&pod.pod_spec().containers)
    {
        let (request, limit) = (
            requests(container.resources.as_ref()),
            limits(container.resources.as_ref()),
        );
        any |= nonzero(request) || nonzero(limit);
        all &= complete(request, limit);
    }
    match (any, all) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

fn nonzero(amounts: Amounts) -> bool {
    amounts.cpu_milli.unwrap_or(0) > 0 || amounts.memory_bytes.unwrap_or(0) > 0
}

fn complete(request: Amounts, limit: Amounts) -> bool {
    limit.cpu_milli.unwrap_or(0) > 0 && limit.memory_bytes.unwrap_or(0) > 0 && request == limit
}

/// What the whole pod asks for: the sum of its containers and sidecars, or its largest init step if that is
/// more, and its overhead. A limit is stated only if every container has one.
pub fn pod_amounts(
    pod: &Pod,
    of: fn(Option<&ResourceRequirements>) -> Amounts,
    all_must_state: bool,
) -> Amounts {
    let pick = |read: fn(Amounts) -> Option<i64>| {
        let own = pod
            .pod_spec()
            .resources
            .as_ref()
            .and_then(|r| read(of(Some(r))));
        if own.is_some() {
            return own;
        }
        let overhead = read(amounts(pod.pod_spec().overhead.as_ref())).unwrap_or(0);
        pod_amount(pod, &|c| read(of(c.resources.as_ref())), all_must_state).map(|n| n + overhead)
    };
    Amounts {
        cpu_milli: pick(|a| a.cpu_milli),
        memory_bytes: pick(|a| a.memory_bytes),
    }
}

fn pod_amount(
    pod: &Pod,
    read: &dyn Fn(&Container) -> Option<i64>,
    all_must_state: bool,
) -> Option<i64> {
    let mut stated = false;
    let mut missing = false;
    let mut take = |container: &Container| {
        let amount = read(container);
        stated |= amount.is_some();
        missing |= amount.is_none();
        amount.unwrap_or(0)
    };
    let mut sidecars = 0;
    let mut largest_step = 0;
    for container in pod.init_containers() {
        let amount = take(container);
        if container.is_sidecar() {
            sidecars += amount;
            largest_step = largest_step.max(sidecars);
        } else {
            largest_step = largest_step.max(sidecars + amount);
        }
    }
    let apps: i64 = pod.pod_spec().containers.iter().map(take).sum();
    let total = (apps + sidecars).max(largest_step);
    (stated && !(all_must_state && missing)).then_some(total)
}

const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const PERIOD_US: i64 = 100_000;
const MIN_QUOTA_US: i64 = 1_000;

fn cpu_shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

fn cpu_quota(milli: i64) -> i64 {
    (milli * PERIOD_US / 1000).max(MIN_QUOTA_US)
}

fn base(request: Amounts, limit: Amounts) -> v1::LinuxContainerResources {
    let mut resources = v1::LinuxContainerResources {
        cpu_shares: cpu_shares(request.cpu_milli.unwrap_or(0)),
        cpu_period: PERIOD_US,
        ..v1::LinuxContainerResources::default()
    };
    if let Some(milli) = limit.cpu_milli.filter(|n| *n > 0) {
        resources.cpu_quota = cpu_quota(milli);
    }
    if let Some(bytes) = limit.memory_bytes.filter(|n| *n > 0) {
        resources.memory_limit_in_bytes = bytes;
    }
    resources
}

/// A container's resources (CRI LinuxContainerResources). `unified` says whether the node has cgroup v2 alone.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    node_memory: i64,
    unified: bool,
) -> v1::LinuxContainerResources {
    let own = container.resources.as_ref();
    let mut resources = base(requests(own), limits(own));
    resources.oom_score_adj = oom_score_adj(pod, container, node_memory);
    for (name, amount) in own.and_then(|r| r.limits.as_ref()).into_iter().flatten() {
        if let (Some(size), Ok(amount)) = (
            name.strip_prefix("hugepages-"),
            amount.0.parse::<Quantity>(),
        ) {
            resources.hugepage_limits.push(v1::HugepageLimit {
                page_size: hugepage_size(size),
                limit: amount.value().max(0).unsigned_abs(),
            });
        }
    }
    if unified {
        // A container dies whole when it runs out of memory, not by one process.
        resources
            .unified
            .insert("memory.oom.group".into(), "1".into());
    }
    resources
}

/// `2Mi` is `2MB` in the kernel's names.
fn hugepage_size(size: &str) -> String {
    format!("{}B", size.trim_end_matches('i'))
}

/// The pod's own cgroup (CRI LinuxPodSandboxConfig.resources).
pub fn pod_resources(pod: &Pod) -> v1::LinuxContainerResources {
    base(
        pod_amounts(pod, requests, false),
        pod_amounts(pod, limits, true),
    )
}

/// The pod's cgroup below `root`: `/kubepods/[besteffort|burstable/]pod<uid>`.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let class = match qos_class(pod) {
        QosClass::Guaranteed => "",
        QosClass::Burstable => "burstable/",
        QosClass::BestEffort => "besteffort/",
    };
    format!(
        "{}/kubepods/{class}pod{}",
        root.trim_end_matches('/'),
        pod.uid()
    )
}

/// Who dies first when memory runs out (upstream's `GetContainerOOMScoreAdjust`).
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    const CRITICAL_PRIORITY: i32 = 2_000_000_000;
    if pod.is_static()
        || pod
            .pod_spec()
            .priority
            .is_some_and(|p| p >= CRITICAL_PRIORITY)
    {
        return -997;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = requests(container.resources.as_ref())
                .memory_bytes
                .unwrap_or(0);
            let share = i128::from(request) * 1000 / i128::from(node_memory.max(1));
            (1000 - i64::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"uid": "u", "name": "p"}, "spec": {"containers": containers}}),
        )
        .expect("a pod")
    }

    #[test]
    fn qos_follows_requests_and_limits() {
        let guaranteed =
            pod(json!([{"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]));
        assert_eq!(qos_class(&guaranteed), QosClass::Guaranteed);
        let burstable =
            pod(json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b"}]));
        assert_eq!(qos_class(&burstable), QosClass::Burstable);
        assert_eq!(
            qos_class(&pod(json!([{"name": "a"}]))),
            QosClass::BestEffort
        );
    }

    #[test]
    fn a_pod_without_a_limit_on_each_container_has_none() {
        let pod = pod(json!([
            {"name": "a", "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}},
            {"name": "b", "resources": {"limits": {"cpu": "250m"}}}
        ]));
        let resources = pod_resources(&pod);
        assert_eq!(resources.memory_limit_in_bytes, 0);
        assert_eq!(resources.cpu_quota, 75_000);
        assert_eq!(resources.cpu_shares, 768);
        assert_eq!(cgroup_parent("/", &pod), "/kubepods/burstable/podu");
    }

    #[test]
    fn a_burstable_container_dies_the_later_the_more_it_asked_for() {
        let pod = pod(json!([{"name": "a", "resources": {"requests": {"memory": "512Mi"}}}]));
        let node = 1024 * 1024 * 1024;
        assert_eq!(
            oom_score_adj(&pod, &pod.pod_spec().containers[0], node),
            500
        );
    }
}
