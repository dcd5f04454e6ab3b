//! The result of an ADD, and its forms in each version.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Error, Version};

/// What an ADD made (CNI 1.1 §5, Success).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NetResult {
    pub interfaces: Vec<Interface>,
    pub ips: Vec<IpConfig>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

/// An interface in the container or on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// In bytes; 0 if not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The namespace's path; empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address given to the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into [`NetResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// With the subnet's prefix length.
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route of the container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    /// The gateway of the address of its family if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// `RT_SCOPE_*`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Settings for the container's resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// One family's part of a result of version 0.1.0 or 0.2.0.
#[derive(Debug, Serialize, Deserialize)]
struct OldIp {
    ip: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde asks for
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Route {
    /// A route without properties.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    /// What versions before 1.1.0 know of it.
    fn plain(&self) -> Self {
        Self::new(self.dst, self.gw)
    }
}

impl NetResult {
    /// Reads a result of any version.
    ///
    /// # Errors
    /// Code 1 for an unknown version, code 6 naming the key.
    pub fn decode(value: &Value) -> Result<Self, Error> {
        let version = Version::of(value).map_err(|error| error.during("prevResult"))?;
        let bad = |error: serde_path_to_error::Error<serde_json::Error>| {
            Error::decode(format!(
                "decode result: {}: {}",
                error.path(),
                error.inner()
            ))
        };
        let mut result: Self = serde_path_to_error::deserialize(value).map_err(bad)?;
        if version <= Version::V0_2_0 {
            for old in ["ip4", "ip6"].iter().filter_map(|family| value.get(family)) {
                let old: OldIp = serde_path_to_error::deserialize(old).map_err(bad)?;
                result.ips.push(IpConfig {
                    interface: None,
                    address: old.ip,
                    gateway: old.gateway,
                });
                result.routes.extend(old.routes);
            }
        }
        Ok(result)
    }

    /// Writes the result in `version`, leaving out properties that it has no place for.
    ///
    /// # Errors
    /// Code 1 for addresses that it has no place for.
    pub fn encode(&self, version: Version) -> Result<Vec<u8>, Error> {
        if version <= Version::V0_2_0 {
            let of_family = |v6| {
                self.ips
                    .iter()
                    .filter(move |ip| ip.address.addr().is_ipv6() == v6)
            };
            if self.ips.is_empty() {
                return Err(Error::inexpressible(
                    "cannot convert: no valid IP addresses",
                ));
            }
            if [false, true]
                .into_iter()
                .any(|v6| of_family(v6).count() > 1)
            {
                return Err(Error::inexpressible(format!(
                    "CNI version {} does not support more than 1 address per family",
                    version.name()
                )));
            }
        }
        Ok(format!("{:#}\n", Value::Object(self.object(version))).into_bytes())
    }

    fn object(&self, version: Version) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("cniVersion".to_owned(), json!(version.name()));
        if version <= Version::V0_2_0 {
            for (key, v6) in [("ip4", false), ("ip6", true)] {
                if let Some(old) = self.old_ip(v6) {
                    object.insert(key.to_owned(), json!(old));
                }
            }
        } else {
            self.insert_lists(version, &mut object);
        }
        object.insert("dns".to_owned(), json!(self.dns));
        object
    }

    fn insert_lists(&self, version: Version, object: &mut Map<String, Value>) {
        let interfaces: Vec<Interface> = match version {
            Version::V1_1_0 => self.interfaces.clone(),
            _ => self
                .interfaces
                .iter()
                .map(|i| Interface {
                    name: i.name.clone(),
                    mac: i.mac.clone(),
                    sandbox: i.sandbox.clone(),
                    ..Interface::default()
                })
                .collect(),
        };
        let ip = |ip: &IpConfig| {
            let mut value = json!(ip);
            if version < Version::V1_0_0 {
                value["version"] = json!(if ip.address.addr().is_ipv4() {
                    "4"
                } else {
                    "6"
                });
            }
            value
        };
        let routes: Vec<Route> = match version {
            Version::V1_1_0 => self.routes.clone(),
            _ => self.routes.iter().map(Route::plain).collect(),
        };
        let lists = [
            ("interfaces", json!(interfaces)),
            ("ips", self.ips.iter().map(ip).collect()),
            ("routes", json!(routes)),
        ];
        for (key, list) in lists {
            if list.as_array().is_some_and(|list| !list.is_empty()) {
                object.insert(key.to_owned(), list);
            }
        }
    }

    fn old_ip(&self, v6: bool) -> Option<OldIp> {
        let of_family = |net: &IpNet| net.addr().is_ipv6() == v6;
        let ip = self.ips.iter().find(|ip| of_family(&ip.address))?;
        let routes = self
            .routes
            .iter()
            .filter(|route| of_family(&route.dst))
            .map(Route::plain)
            .collect();
        Some(OldIp {
            ip: ip.address,
            gateway: ip.gateway,
            routes,
        })
    }

    /// The interface of the container called `ifname`, with its index.
    pub fn container_interface(&self, ifname: &str) -> Option<(usize, &Interface)> {
        self.interfaces
            .iter()
            .enumerate()
            .find(|(_, i)| i.name == ifname && !i.sandbox.is_empty())
    }
}
