//! The outcome of an ADD, in the form that the caller journals.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attachment, ConfList};

/// An attached interface: the addresses, and all that DEL and CHECK will need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CniResult {
    /// The network's name.
    pub network: String,
    /// The pod's addresses on this interface, IPv4 before IPv6, otherwise in the plugins' order.
    pub ips: Vec<IpAddr>,
    /// The interfaces that the plugins made, in the host and in the sandbox.
    pub interfaces: Vec<Interface>,
    /// The configuration list that was used, as JSON.
    pub config: Value,
    /// The last plugin's result, as it came.
    pub result: Value,
}

/// One interface of a result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one.
    #[serde(default)]
    pub mac: String,
    /// The namespace that it is in; empty for the host's.
    #[serde(default)]
    pub sandbox: String,
}

impl CniResult {
    /// The pod's address, if it got one.
    pub fn primary_ip(&self) -> Option<IpAddr> {
        self.ips.first().copied()
    }

    /// The pod's other addresses.
    pub fn additional_ips(&self) -> &[IpAddr] {
        self.ips.get(1..).unwrap_or_default()
    }

    /// The host's end of the pod's link, where the plugins told it: the last interface of the host that is
    /// listed before the sandbox's own.
    pub fn host_interface(&self) -> Option<&str> {
        let inner = self.interfaces.iter().position(|i| !i.sandbox.is_empty())?;
        self.interfaces
            .get(..inner)?
            .last()
            .map(|i| i.name.as_str())
    }

    /// Reads the last plugin's result. Versions from 0.3.0 list `ips`; 0.1.0 and 0.2.0 have `ip4` and `ip6`.
    pub(super) fn read(list: &ConfList, attachment: &Attachment, result: Value) -> Self {
        let interfaces: Vec<Interface> = result
            .get("interfaces")
            .and_then(|all| serde_json::from_value(all.clone()).ok())
            .unwrap_or_default();
        let mut ips = listed_ips(&result, &interfaces, &attachment.ifname);
        ips.extend(
            ["ip4", "ip6"]
                .iter()
                .filter_map(|family| address(result.get(family)?.get("ip")?)),
        );
        ips.sort_by_key(IpAddr::is_ipv6);
        Self {
            network: list.name.clone(),
            ips,
            interfaces,
            config: list.raw.clone(),
            result,
        }
    }
}

/// The addresses of the sandbox's interface `ifname`, and those that name no interface.
fn listed_ips(result: &Value, interfaces: &[Interface], ifname: &str) -> Vec<IpAddr> {
    let of_pod = |entry: &&Value| match entry.get("interface").and_then(Value::as_u64) {
        None => true,
        Some(index) => usize::try_from(index)
            .ok()
            .and_then(|index| interfaces.get(index))
            .is_some_and(|i| i.name == ifname && !i.sandbox.is_empty()),
    };
    let entries = result
        .get("ips")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    entries
        .iter()
        .filter(of_pod)
        .filter_map(|entry| address(entry.get("address")?))
        .collect()
}

/// `10.1.2.3/24` -> `10.1.2.3`
fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.split('/').next()?.parse().ok()
}
