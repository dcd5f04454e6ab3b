//! The downward API: what a container may know of its pod and of itself, as text.

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

use crate::pod::PodExt;
use crate::resources::{limits, quantity, requests};

/// What the node knows that a pod's specification doesn't say.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// The node's addresses, the primary one first.
    pub ips: Vec<String>,
    /// Allocatable CPU, thousandths of a core.
    pub allocatable_cpu_milli: i64,
    /// Allocatable memory, bytes.
    pub allocatable_memory_bytes: i64,
    /// Allocatable local storage, bytes.
    pub allocatable_storage_bytes: i64,
}

/// A reference that has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A field that can't be referred to.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// A resource that can't be referred to.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// A container that the pod doesn't have.
    #[error("container {0} not found")]
    Container(String),
}

/// The value of a `fieldRef`. `pod_ips` are empty until the pod has its sandbox.
pub fn field(
    pod: &Pod,
    selector: &ObjectFieldSelector,
    node: &NodeFacts,
    pod_ips: &[String],
) -> Result<String, Error> {
    let path = selector.field_path.as_str();
    let spec = pod.pod_spec();
    if let Some((map, key)) = subscript(path) {
        let values = match map {
            "metadata.labels" => pod.metadata.labels.as_ref(),
            "metadata.annotations" => pod.metadata.annotations.as_ref(),
            _ => return Err(Error::Field(path.to_owned())),
        };
        return Ok(values.and_then(|v| v.get(key)).cloned().unwrap_or_default());
    }
    let account = spec.service_account_name.as_deref().unwrap_or("default");
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().as_str().to_owned(),
        "metadata.labels" => listed(pod.metadata.labels.as_ref()),
        "metadata.annotations" => listed(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_else(|| node.name.clone()),
        "spec.serviceAccountName" => account.to_owned(),
        "status.hostIP" => node.ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.ips.join(","),
        "status.podIP" => pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => pod_ips.join(","),
        _ => return Err(Error::Field(path.to_owned())),
    })
}

/// `metadata.labels['key']` in two.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// One `key="value"` a line, sorted, values quoted with escapes.
fn listed(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={v:?}"))
        .collect();
    lines.join("\n")
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up. An absent limit is what the node can
/// give.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, Error> {
    let named = selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty());
    let container = match named {
        Some(name) => pod
            .container(name)
            .ok_or_else(|| Error::Container(name.to_owned()))?,
        None => own.ok_or_else(|| Error::Container(String::new()))?,
    };
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|d| d.0.parse::<Quantity>().ok())
        .filter(|d| !d.is_zero());
    let resources = container.resources.as_ref();
    let listed = |list, name| quantity(list, name).map(Quantity::value);
    let limit_list = resources.and_then(|r| r.limits.as_ref());
    let request_list = resources.and_then(|r| r.requests.as_ref());
    let amount = match selector.resource.as_str() {
        "limits.cpu" => Amount::Milli(
            limits(resources)
                .cpu_milli
                .unwrap_or(node.allocatable_cpu_milli),
        ),
        "requests.cpu" => Amount::Milli(requests(resources).cpu_milli.unwrap_or(0)),
        "limits.memory" => Amount::Whole(
            limits(resources)
                .memory_bytes
                .unwrap_or(node.allocatable_memory_bytes),
        ),
        "requests.memory" => Amount::Whole(requests(resources).memory_bytes.unwrap_or(0)),
        "limits.ephemeral-storage" => Amount::Whole(
            listed(limit_list, "ephemeral-storage").unwrap_or(node.allocatable_storage_bytes),
        ),
        "requests.ephemeral-storage" => {
            Amount::Whole(listed(request_list, "ephemeral-storage").unwrap_or(0))
        }
        other => match (
            other.strip_prefix("limits.hugepages-"),
            other.strip_prefix("requests.hugepages-"),
        ) {
            (Some(size), _) => {
                Amount::Whole(listed(limit_list, &format!("hugepages-{size}")).unwrap_or(0))
            }
            (_, Some(size)) => {
                Amount::Whole(listed(request_list, &format!("hugepages-{size}")).unwrap_or(0))
            }
            _ => return Err(Error::Resource(other.to_owned())),
        },
    };
    Ok(amount.divided(divisor).to_string())
}

enum Amount {
    Milli(i64),
    Whole(i64),
}

impl Amount {
    fn divided(self, divisor: Option<Quantity>) -> i64 {
        match self {
            Self::Milli(milli) => round_up(milli, divisor.map_or(1000, Quantity::milli_value)),
            Self::Whole(value) => round_up(value, divisor.map_or(1, Quantity::value)),
        }
    }
}

fn round_up(value: i64, unit: i64) -> i64 {
    let unit = unit.max(1);
    value / unit + i64::from(value % unit > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "one \"x\""}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]}
        }))
        .expect("a pod")
    }

    fn value(path: &str) -> Result<String, Error> {
        let selector = ObjectFieldSelector {
            field_path: path.into(),
            ..Default::default()
        };
        field(
            &pod(),
            &selector,
            &NodeFacts {
                ips: vec!["10.0.0.1".into()],
                ..Default::default()
            },
            &["10.1.0.2".into()],
        )
    }

    #[test]
    fn fields_read_as_upstream_prints_them() {
        assert_eq!(
            value("metadata.labels").as_deref(),
            Ok("a=\"one \\\"x\\\"\"\nb=\"2\"")
        );
        assert_eq!(value("metadata.labels['b']").as_deref(), Ok("2"));
        assert_eq!(value("metadata.labels['absent']").as_deref(), Ok(""));
        assert_eq!(value("status.podIP").as_deref(), Ok("10.1.0.2"));
        assert_eq!(
            value("spec.volumes"),
            Err(Error::Field("spec.volumes".into()))
        );
    }

    #[test]
    fn a_resource_is_rounded_up_to_its_divisor() {
        let pod = pod();
        let node = NodeFacts {
            allocatable_memory_bytes: 3 << 20,
            ..Default::default()
        };
        let ask = |resource: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                resource: resource.into(),
                divisor: Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity(
                    divisor.into(),
                )),
                container_name: None,
            };
            super::resource(&pod, pod.container("c"), &selector, &node)
        };
        assert_eq!(ask("limits.cpu", "0").as_deref(), Ok("2"));
        assert_eq!(ask("limits.cpu", "1m").as_deref(), Ok("1500"));
        assert_eq!(ask("limits.memory", "1Mi").as_deref(), Ok("3"));
    }
}
