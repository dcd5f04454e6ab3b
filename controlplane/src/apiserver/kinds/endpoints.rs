//! Endpoints (core/v1), the older form of EndpointSlices.

use api::field::{FieldError, Path};
use api::names;
use api::object::{items_mut, list, name, number, set_default, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, invalid, one_of};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "core/v1.Endpoints",
    default,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update: meta::validate_update,
    columns: &[Column::NAME, Column::text("Endpoints"), Column::AGE],
    row,
    selectable_fields: strategy::namespaced_fields,
};

fn default(object: &mut Value) {
    for subset in items_mut(object, "subsets") {
        for port in items_mut(subset, "ports") {
            set_default(port, "protocol", "TCP");
        }
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1123_subdomain);
    for (index, subset) in list(object, "/subsets").iter().enumerate() {
        let at = Path::new("subsets").index(index);
        if list(subset, "/addresses").is_empty() && list(subset, "/notReadyAddresses").is_empty() {
            errors.push(FieldError::required(
                &at,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for key in ["addresses", "notReadyAddresses"] {
            for (index, address) in list(subset, &format!("/{key}")).iter().enumerate() {
                ip(
                    &mut errors,
                    text(address, "/ip"),
                    &at.child(key).index(index).child("ip"),
                );
            }
        }
        for (index, port) in list(subset, "/ports").iter().enumerate() {
            let at = at.child("ports").index(index);
            let value = number(port, "/port").unwrap_or_default();
            for problem in names::port_number(value) {
                errors.push(FieldError::invalid(at.child("port"), value, problem));
            }
            one_of(
                &mut errors,
                text(port, "/protocol"),
                &["TCP", "UDP", "SCTP"],
                &at.child("protocol"),
            );
            let name = text(port, "/name");
            if !name.is_empty() {
                invalid(
                    &mut errors,
                    &at.child("name"),
                    name,
                    names::dns1123_label(name),
                );
            }
        }
    }
    errors
}

/// An IPv4 or IPv6 address.
pub fn ip(errors: &mut Errors, value: &str, at: &Path) {
    if value.parse::<std::net::IpAddr>().is_err() {
        errors.push(FieldError::invalid(
            at,
            value,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut shown = Vec::new();
    let mut more = 0;
    for subset in list(object, "/subsets") {
        let ports = list(subset, "/ports");
        for address in list(subset, "/addresses") {
            let ip = text(address, "/ip");
            let places: Vec<String> = match ports {
                [] => vec![ip.to_owned()],
                ports => ports
                    .iter()
                    .map(|p| join(ip, number(p, "/port").unwrap_or_default()))
                    .collect(),
            };
            for place in places {
                if shown.len() < 3 {
                    shown.push(place)
                } else {
                    more += 1
                }
            }
        }
    }
    let mut text = if shown.is_empty() {
        "<none>".to_owned()
    } else {
        shown.join(",")
    };
    if more > 0 {
        text.push_str(&format!(" + {more} more..."));
    }
    vec![json!(name(object)), json!(text), strategy::age(object, now)]
}

fn join(ip: &str, port: i64) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}
