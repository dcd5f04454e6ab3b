//! Addresses and node ports for Services.
//!
//! What is taken is known in memory, from the Services themselves: it is read at the start, reserved before a write
//! and given back when the write fails or the Service goes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};

use api::field::FieldError;
use ipnet::IpNet;
use rand::RngExt;
use serde_json::{Value, json};

use super::failure::{Failure, Result};
use super::kind::Kind;

/// What can be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Address(IpAddr),
    Port(u16),
}

/// The ranges, and who has what of them.
pub struct Services {
    cidrs: Vec<IpNet>,
    ports: RangeInclusive<u16>,
    taken: Taken,
}

/// Who has an address or a port: `NAMESPACE/NAME`.
type Taken = Arc<Mutex<HashMap<Item, String>>>;

/// Addresses and ports taken for one write. Dropped, they are free again; kept, they belong to the Service.
#[must_use]
pub struct Reservation {
    taken: Option<Taken>,
    fresh: Vec<Item>,
    /// What the Service had and no longer needs once the write is done.
    obsolete: Vec<Item>,
}

impl Reservation {
    pub fn none() -> Self {
        Self {
            taken: None,
            fresh: Vec::new(),
            obsolete: Vec::new(),
        }
    }

    /// The write is done.
    pub fn keep(mut self) {
        self.fresh = std::mem::take(&mut self.obsolete);
        // Dropping it now frees what is obsolete.
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(taken) = &self.taken {
            let mut taken = lock(taken);
            for item in &self.fresh {
                taken.remove(item);
            }
        }
    }
}

fn lock(taken: &Taken) -> MutexGuard<'_, HashMap<Item, String>> {
    taken
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Services {
    pub fn new(cidrs: Vec<IpNet>, ports: RangeInclusive<u16>) -> Self {
        Self {
            cidrs,
            ports,
            taken: Taken::default(),
        }
    }

    /// The address of the `kubernetes` Service in each range.
    pub fn first_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.cidrs.iter().map(|cidr| nth(cidr, 1))
    }

    /// Notes what an existing Service has.
    pub fn adopt(&self, service: &Value) {
        let owner = owner(service);
        let mut taken = lock(&self.taken);
        for item in items(service) {
            if let Some(other) = taken.insert(item, owner.clone())
                && other != owner
            {
                tracing::warn!(
                    service = owner,
                    other,
                    ?item,
                    "two Services have the same address or port"
                );
            }
        }
    }

    /// Frees what a deleted Service had.
    pub fn release(&self, service: &Value) {
        let owner = owner(service);
        let mut taken = lock(&self.taken);
        for item in items(service) {
            if taken.get(&item) == Some(&owner) {
                taken.remove(&item);
            }
        }
    }

    /// Fills in the addresses and ports that a Service needs, taking over what `old` has.
    ///
    /// # Errors
    /// 422 when one that was asked for can't be had, or none is left.
    pub fn allocate(
        &self,
        kind: &Kind,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservation> {
        if let Some(old) = old {
            take_over(new, old);
        }
        let owner = owner(new);
        let name = api::object::name(new).to_owned();
        let mut reservation = Reservation {
            taken: Some(self.taken.clone()),
            fresh: Vec::new(),
            obsolete: Vec::new(),
        };
        let mut desk = Desk {
            services: self,
            owner,
            reservation: &mut reservation,
        };
        let outcome = desk.addresses(new).and_then(|()| desk.ports(new));
        outcome.map_err(|error| Failure::invalid(kind, &name, std::slice::from_ref(&*error)))?;
        if let Some(old) = old {
            let kept = items(new);
            reservation.obsolete = items(old)
                .into_iter()
                .filter(|item| !kept.contains(item))
                .collect();
        }
        Ok(reservation)
    }

    fn range_of(&self, family: &str) -> Option<&IpNet> {
        self.cidrs
            .iter()
            .find(|cidr| family_of(&cidr.addr()) == family)
    }
}

/// Takes things for one Service.
struct Desk<'a> {
    services: &'a Services,
    owner: String,
    reservation: &'a mut Reservation,
}

type Step<T> = std::result::Result<T, Box<FieldError>>;

fn invalid(
    field: impl std::fmt::Display,
    bad: impl Into<Value>,
    detail: impl Into<String>,
) -> Box<FieldError> {
    Box::new(FieldError::invalid(field, bad, detail))
}

impl Desk<'_> {
    fn addresses(&mut self, service: &mut Value) -> Step<()> {
        let spec = &mut service["spec"];
        if spec["type"] == "ExternalName" {
            return Ok(());
        }
        let families = self.families(spec)?;
        spec["ipFamilies"] = json!(families);
        if spec["clusterIP"] == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return Ok(());
        }
        let mut addresses: Vec<String> = api::object::list(spec, "/clusterIPs")
            .iter()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        addresses.truncate(families.len());
        for (index, family) in families.iter().enumerate() {
            match addresses.get(index).filter(|a| !a.is_empty()) {
                Some(wanted) => {
                    let wanted = wanted.clone();
                    self.wanted_address(&wanted, family)?;
                }
                None => {
                    let address = self.any_address(family)?.to_string();
                    if index < addresses.len() {
                        addresses[index] = address
                    } else {
                        addresses.push(address)
                    }
                }
            }
        }
        spec["clusterIP"] = json!(addresses.first());
        spec["clusterIPs"] = json!(addresses);
        Ok(())
    }

    /// The families of the Service's addresses, by its policy, its wishes, and what the cluster has.
    fn families(&self, spec: &mut Value) -> Step<Vec<String>> {
        let have: Vec<&str> = self
            .services
            .cidrs
            .iter()
            .map(|c| family_of(&c.addr()))
            .collect();
        let mut families: Vec<String> = api::object::list(spec, "/ipFamilies")
            .iter()
            .filter_map(|f| f.as_str().map(str::to_owned))
            .collect();
        if families.is_empty() {
            let addresses = api::object::list(spec, "/clusterIPs")
                .iter()
                .filter_map(Value::as_str);
            families = addresses
                .filter_map(|a| a.parse().ok())
                .map(|a: IpAddr| family_of(&a).to_owned())
                .collect();
        }
        for (index, family) in families.iter().enumerate() {
            if !have.contains(&family.as_str()) {
                let at = format!("spec.ipFamilies[{index}]");
                return Err(invalid(
                    at,
                    family.as_str(),
                    "not configured on this cluster",
                ));
            }
        }
        let policy = match spec["ipFamilyPolicy"].as_str().filter(|p| !p.is_empty()) {
            Some(policy) => policy.to_owned(),
            None if families.len() > 1 => "RequireDualStack".to_owned(),
            None => "SingleStack".to_owned(),
        };
        if policy == "RequireDualStack" && have.len() < 2 {
            let detail = "this cluster is not configured for dual-stack services";
            return Err(invalid("spec.ipFamilyPolicy", policy, detail));
        }
        let count = if policy == "SingleStack" {
            1
        } else {
            have.len()
        };
        families.truncate(count);
        for family in have {
            if families.len() < count && !families.iter().any(|f| f == family) {
                families.push(family.to_owned());
            }
        }
        spec["ipFamilyPolicy"] = policy.into();
        Ok(families)
    }

    fn wanted_address(&mut self, wanted: &str, family: &str) -> Step<()> {
        let refused = |why: String| {
            invalid(
                "spec.clusterIPs",
                json!([wanted]),
                format!("failed to allocate IP {wanted}: {why}"),
            )
        };
        let address: IpAddr = wanted
            .parse()
            .map_err(|_| refused("it is not an IP address".into()))?;
        let range = self
            .services
            .range_of(family)
            .filter(|cidr| cidr.contains(&address));
        if range.is_none() {
            let ranges: Vec<String> = self
                .services
                .range_of(family)
                .iter()
                .map(ToString::to_string)
                .collect();
            return Err(refused(format!(
                "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {}",
                ranges.join(", ")
            )));
        }
        if self.take(Item::Address(address)) {
            Ok(())
        } else {
            Err(refused("provided IP is already allocated".into()))
        }
    }

    /// A free address, from the upper part of the range while there is one: the lower part is for those who ask for
    /// a certain one.
    fn any_address(&mut self, family: &str) -> Step<IpAddr> {
        let services = self.services;
        let none = || {
            invalid(
                "spec.clusterIPs",
                json!([]),
                "failed to allocate a serviceIP: range is full",
            )
        };
        let cidr = services.range_of(family).ok_or_else(none)?;
        let size = size(cidr);
        // The last address of an IPv4 range is for broadcasts, the first is the network, the second is taken.
        let last = if cidr.addr().is_ipv4() {
            size.saturating_sub(2)
        } else {
            size - 1
        };
        let reserved = (size / 16).clamp(16, 256).min(last);
        for (first, last) in [(reserved + 1, last), (2, reserved)] {
            if first > last {
                continue;
            }
            let count = last - first + 1;
            let start = rand::rng().random_range(0..count);
            // A range with a million addresses in a row taken is as good as full.
            for step in 0..count.min(1 << 20) {
                let address = nth(cidr, first + (start + step) % count);
                if self.take(Item::Address(address)) {
                    return Ok(address);
                }
            }
        }
        Err(none())
    }

    fn ports(&mut self, service: &mut Value) -> Step<()> {
        let spec = &mut service["spec"];
        let wants = match spec["type"].as_str() {
            Some("NodePort") => true,
            Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
            _ => false,
        };
        let mut by_port: HashMap<i64, u16> = HashMap::new();
        // By `get_mut`: an index into an object makes the member that isn't there.
        for (index, port) in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .enumerate()
        {
            let number = port["port"].as_i64().unwrap_or(0);
            match port["nodePort"].as_i64().filter(|p| *p != 0) {
                Some(wanted) => {
                    let shared = by_port.values().any(|taken| i64::from(*taken) == wanted);
                    let at = format!("spec.ports[{index}].nodePort");
                    let taken = if shared {
                        u16::try_from(wanted).ok()
                    } else {
                        Some(self.wanted_port(wanted, &at)?)
                    };
                    by_port.extend(taken.map(|t| (number, t)));
                }
                None if wants => {
                    // One port in two protocols gets one node port.
                    let node_port = match by_port.get(&number) {
                        Some(taken) => *taken,
                        None => self.any_port(&format!("spec.ports[{index}].nodePort"))?,
                    };
                    by_port.insert(number, node_port);
                    port["nodePort"] = node_port.into();
                }
                None => {}
            }
        }
        if spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local" {
            let at = "spec.healthCheckNodePort";
            let port = match spec["healthCheckNodePort"].as_i64().filter(|p| *p != 0) {
                Some(wanted) => self.wanted_port(wanted, at)?,
                None => self.any_port(at)?,
            };
            spec["healthCheckNodePort"] = port.into();
        }
        Ok(())
    }

    fn wanted_port(&mut self, wanted: i64, at: &str) -> Step<u16> {
        let range = &self.services.ports;
        let Some(port) = u16::try_from(wanted).ok().filter(|p| range.contains(p)) else {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            return Err(invalid(at, wanted, detail));
        };
        if self.take(Item::Port(port)) {
            Ok(port)
        } else {
            Err(invalid(at, wanted, "provided port is already allocated"))
        }
    }

    fn any_port(&mut self, at: &str) -> Step<u16> {
        let (first, last) = (*self.services.ports.start(), *self.services.ports.end());
        let count = u32::from(last.saturating_sub(first)) + 1;
        let start = rand::rng().random_range(0..count);
        for step in 0..count {
            let port = first + u16::try_from((start + step) % count).unwrap_or(0);
            if self.take(Item::Port(port)) {
                return Ok(port);
            }
        }
        Err(invalid(
            at,
            0,
            "failed to allocate a nodePort: range is full",
        ))
    }

    /// Whether it is this Service's now. What the Service had before it may have again.
    fn take(&mut self, item: Item) -> bool {
        let mut taken = lock(&self.services.taken);
        match taken.get(&item) {
            Some(owner) => *owner == self.owner,
            None => {
                taken.insert(item, self.owner.clone());
                self.reservation.fresh.push(item);
                true
            }
        }
    }
}

/// Clients leave out what the server has filled in before.
fn take_over(new: &mut Value, old: &Value) {
    let (old, new) = (&old["spec"], &mut new["spec"]);
    let headless_or_external = new["type"] == "ExternalName" || old["type"] == "ExternalName";
    if !headless_or_external {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let empty = |value: &Value| {
                value.is_null()
                    || value.as_str() == Some("")
                    || value.as_array().is_some_and(Vec::is_empty)
            };
            if empty(&new[field]) && !empty(&old[field]) {
                new[field] = old[field].clone();
            }
        }
    } else if new["type"] == "ExternalName" && new["clusterIP"] == old["clusterIP"] {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let Some(spec) = new.as_object_mut() {
                spec.shift_remove(field);
            }
        }
    }
    let had_ports = matches!(old["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    let wants_ports = matches!(new["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    let before = api::object::list(old, "/ports").to_vec();
    let ports = new.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        let same = |o: &&Value| o["port"] == port["port"] && o["protocol"] == port["protocol"];
        let Some(old_port) = before.iter().find(same) else {
            continue;
        };
        let unset = port["nodePort"].as_i64().unwrap_or(0) == 0;
        if had_ports && wants_ports && unset && old_port["nodePort"].is_number() {
            port["nodePort"] = old_port["nodePort"].clone();
        } else if had_ports && !wants_ports && port["nodePort"] == old_port["nodePort"] {
            // A Service that no longer has node ports gives them back, though the client sent them along.
            if let Some(port) = port.as_object_mut() {
                port.shift_remove("nodePort");
            }
        }
    }
    if let Some(spec) = new.as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
}

fn owner(service: &Value) -> String {
    format!(
        "{}/{}",
        api::object::namespace(service),
        api::object::name(service)
    )
}

/// Everything that a Service has.
fn items(service: &Value) -> Vec<Item> {
    let spec = &service["spec"];
    let addresses = api::object::list(spec, "/clusterIPs")
        .iter()
        .filter_map(|a| a.as_str()?.parse().ok())
        .map(Item::Address);
    let ports = api::object::list(spec, "/ports")
        .iter()
        .map(|p| &p["nodePort"]);
    let ports = ports
        .chain([&spec["healthCheckNodePort"]])
        .filter_map(|p| u16::try_from(p.as_i64()?).ok());
    let mut items: Vec<Item> = addresses
        .chain(ports.filter(|p| *p != 0).map(Item::Port))
        .collect();
    items.dedup();
    items
}

fn family_of(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// How many addresses a range has; no more than 2^32 of it are used.
fn size(cidr: &IpNet) -> u64 {
    1 << u32::from(cidr.max_prefix_len() - cidr.prefix_len()).min(32)
}

fn nth(cidr: &IpNet, n: u64) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(network) => (u32::from(network).wrapping_add(u32::try_from(n).unwrap_or(0)))
            .to_be_bytes()
            .into(),
        IpAddr::V6(network) => (u128::from(network).wrapping_add(u128::from(n)))
            .to_be_bytes()
            .into(),
    }
}

#[cfg(test)]
mod tests;
