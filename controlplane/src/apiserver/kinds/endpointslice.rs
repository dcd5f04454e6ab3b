//! EndpointSlice (discovery.k8s.io/v1).

use api::field::{FieldError, Path};
use api::names;
use api::object::{items_mut, list, name, number, set_default, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, immutable, invalid, one_of};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "discovery/v1.EndpointSlice",
    default,
    prepare_create,
    prepare_update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update,
    columns: &[
        Column::NAME,
        Column::text("AddressType"),
        Column::text("Ports"),
        Column::text("Endpoints"),
        Column::AGE,
    ],
    row,
    selectable_fields: strategy::namespaced_fields,
};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

fn default(object: &mut Value) {
    for port in items_mut(object, "ports") {
        set_default(port, "name", "");
        set_default(port, "protocol", "TCP");
    }
}

fn prepare_create(object: &mut Value) {
    api::object::child(object, "metadata")["generation"] = 1.into();
}

/// All but metadata counts as the spec.
fn prepare_update(new: &mut Value, old: &Value) {
    let generation = number(old, "/metadata/generation").unwrap_or_default();
    let changed = ["endpoints", "ports", "addressType"]
        .iter()
        .any(|key| new[*key] != old[*key])
        || new["metadata"]["labels"] != old["metadata"]["labels"];
    api::object::child(new, "metadata")["generation"] = (generation + i64::from(changed)).into();
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1123_subdomain);
    let address_type = text(object, "/addressType");
    match address_type {
        "" => errors.push(FieldError::required("addressType", "")),
        _ => one_of(
            &mut errors,
            address_type,
            &["FQDN", "IPv4", "IPv6"],
            &Path::new("addressType"),
        ),
    }
    let endpoints = list(object, "/endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(FieldError::too_many(
            "endpoints",
            endpoints.len(),
            MAX_ENDPOINTS,
        ));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        validate_endpoint(
            &mut errors,
            endpoint,
            address_type,
            &Path::new("endpoints").index(index),
        );
    }
    validate_ports(&mut errors, object);
    errors
}

fn validate_endpoint(errors: &mut Errors, endpoint: &Value, address_type: &str, at: &Path) {
    let addresses = list(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(at.child("addresses"), ""));
    } else if addresses.len() > MAX_ADDRESSES {
        errors.push(FieldError::too_many(
            at.child("addresses"),
            addresses.len(),
            MAX_ADDRESSES,
        ));
    }
    for (index, address) in addresses.iter().enumerate() {
        let at = at.child("addresses").index(index);
        let address = address.as_str().unwrap_or_default();
        match address_type {
            "IPv4" if address.parse::<std::net::Ipv4Addr>().is_err() => {
                errors.push(FieldError::invalid(at, address, "must be an IPv4 address"));
            }
            "IPv6" if address.parse::<std::net::Ipv6Addr>().is_err() => {
                errors.push(FieldError::invalid(at, address, "must be an IPv6 address"));
            }
            "FQDN" => invalid(
                errors,
                &at,
                address,
                names::dns1123_subdomain(address.trim_end_matches('.')),
            ),
            _ => {}
        }
    }
    let hostname = text(endpoint, "/hostname");
    if !hostname.is_empty() {
        invalid(
            errors,
            &at.child("hostname"),
            hostname,
            names::dns1123_label(hostname),
        );
    }
}

fn validate_ports(errors: &mut Errors, object: &Value) {
    let ports = list(object, "/ports");
    if ports.len() > MAX_PORTS {
        errors.push(FieldError::too_many("ports", ports.len(), MAX_PORTS));
    }
    for (index, port) in ports.iter().enumerate() {
        let at = Path::new("ports").index(index);
        let name = text(port, "/name");
        if !name.is_empty() {
            invalid(errors, &at.child("name"), name, names::dns1123_label(name));
        }
        if ports[..index]
            .iter()
            .any(|other| text(other, "/name") == name)
        {
            errors.push(FieldError::duplicate(at.child("name"), name));
        }
        one_of(
            errors,
            text(port, "/protocol"),
            &["TCP", "UDP", "SCTP"],
            &at.child("protocol"),
        );
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    immutable(
        &mut errors,
        &new["addressType"],
        &old["addressType"],
        &Path::new("addressType"),
    );
    errors
}

/// The first three of a list, and how many more there are.
fn some(items: &[String], none: &str) -> String {
    match items.len() {
        0 => none.to_owned(),
        1..=3 => items.join(","),
        count => format!("{} + {} more...", items[..3].join(","), count - 3),
    }
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(object, "/ports")
        .iter()
        .map(|port| match (number(port, "/port"), text(port, "/name")) {
            (Some(number), _) => number.to_string(),
            (None, "") => "*".to_owned(),
            (None, name) => name.to_owned(),
        })
        .collect();
    let addresses: Vec<String> = list(object, "/endpoints")
        .iter()
        .flat_map(|endpoint| list(endpoint, "/addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    vec![
        json!(name(object)),
        json!(text(object, "/addressType")),
        json!(some(&ports, "<unset>")),
        json!(some(&addresses, "<unset>")),
        strategy::age(object, now),
    ]
}
