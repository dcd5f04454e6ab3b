//! Node (core/v1).

use api::field::{FieldError, Path};
use api::names;
use api::object::{flag, list, map, name, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, invalid};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    verbs: ALL_VERBS,
    has_status: true,
    scale: false,
    subresources: &["proxy"],
    schema: "core/v1.Node",
    default,
    prepare_create: strategy::nothing,
    prepare_update: strategy::update_without_generation,
    prepare_status_update: strategy::update_status,
    validate,
    validate_update,
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Roles"),
        Column::AGE,
        Column::text("Version"),
        Column::text("Internal-IP").wide(),
        Column::text("External-IP").wide(),
        Column::text("OS-Image").wide(),
        Column::text("Kernel-Version").wide(),
        Column::text("Container-Runtime").wide(),
    ],
    row,
    selectable_fields,
};

/// Without other word, all of a node's capacity can be allocated.
fn default(object: &mut Value) {
    let capacity = object["status"]["capacity"].clone();
    if !capacity.is_null() && object["status"]["allocatable"].is_null() {
        object["status"]["allocatable"] = capacity;
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, false, names::dns1123_subdomain);
    let taints = list(object, "/spec/taints");
    for (index, taint) in taints.iter().enumerate() {
        let at = Path::new("spec").child("taints").index(index);
        validate_taint(&mut errors, taint, &at);
        let same =
            |other: &Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
        if taints[..index].iter().any(same) {
            let mut duplicate = FieldError::duplicate(&at, taint.clone());
            duplicate.detail = "taints must be unique by key and effect pair".into();
            errors.push(duplicate);
        }
    }
    for (index, cidr) in list(object, "/spec/podCIDRs").iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or_default();
        if cidr.parse::<ipnet::IpNet>().is_err() {
            let at = Path::new("spec").child("podCIDRs").index(index);
            errors.push(FieldError::invalid(
                at,
                cidr,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
        }
    }
    errors
}

fn validate_taint(errors: &mut Errors, taint: &Value, at: &Path) {
    let (key, value, effect) = (
        text(taint, "/key"),
        text(taint, "/value"),
        text(taint, "/effect"),
    );
    invalid(errors, &at.child("key"), key, names::qualified_name(key));
    if !value.is_empty() {
        invalid(errors, &at.child("value"), value, names::label_value(value));
    }
    match effect {
        "" => errors.push(FieldError::required(at.child("effect"), "")),
        _ => meta::one_of(
            errors,
            effect,
            &["NoExecute", "NoSchedule", "PreferNoSchedule"],
            &at.child("effect"),
        ),
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    let spec = Path::new("spec");
    if !list(old, "/spec/podCIDRs").is_empty() && new["spec"]["podCIDRs"] != old["spec"]["podCIDRs"]
    {
        errors.push(FieldError::forbidden(
            spec.child("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    if !text(old, "/spec/providerID").is_empty()
        && new["spec"]["providerID"] != old["spec"]["providerID"]
    {
        errors.push(FieldError::forbidden(
            spec.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    errors
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let info = |key: &str| {
        let value = text(&object["status"]["nodeInfo"], key);
        if value.is_empty() {
            "<unknown>".to_owned()
        } else {
            value.to_owned()
        }
    };
    vec![
        json!(name(object)),
        json!(status(object)),
        json!(roles(object)),
        strategy::age(object, now),
        json!(text(object, "/status/nodeInfo/kubeletVersion")),
        json!(address(object, "InternalIP")),
        json!(address(object, "ExternalIP")),
        json!(info("/osImage")),
        json!(info("/kernelVersion")),
        json!(info("/containerRuntimeVersion")),
    ]
}

fn status(object: &Value) -> String {
    let ready = list(object, "/status/conditions")
        .iter()
        .find(|c| c["type"] == "Ready");
    let mut words = match ready {
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(object, "/spec/unschedulable") {
        words.push_str(",SchedulingDisabled");
    }
    words
}

/// From labels: `node-role.kubernetes.io/ROLE` and `kubernetes.io/role=ROLE`.
fn roles(object: &Value) -> String {
    let mut roles: Vec<&str> = map(object, "/metadata/labels")
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role).filter(|r| !r.is_empty()),
                None if key == "kubernetes.io/role" => value.as_str().filter(|r| !r.is_empty()),
                None => None,
            },
        )
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.join(",")
    }
}

fn address<'a>(object: &'a Value, kind: &str) -> &'a str {
    let found = list(object, "/status/addresses")
        .iter()
        .find(|a| a["type"] == kind);
    found.map_or("<none>", |a| text(a, "/address"))
}

fn selectable_fields(object: &Value) -> Vec<(&'static str, String)> {
    let mut fields = strategy::cluster_fields(object);
    fields.push((
        "spec.unschedulable",
        flag(object, "/spec/unschedulable").to_string(),
    ));
    fields
}
