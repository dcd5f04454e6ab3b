//! CSINode and CSIDriver (storage.k8s.io/v1). No CSI driver runs here; the upstream kubelet doesn't start where it can't
//! register its CSINode.

use api::field::{FieldError, Path};
use api::names;
use api::object::{child, flag, list, name, set_default, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, invalid};
use super::strategy;

pub const NODE: Kind = Kind {
    group: "storage.k8s.io",
    version: "v1",
    kind: "CSINode",
    plural: "csinodes",
    singular: "csinode",
    short_names: &[],
    categories: &[],
    namespaced: false,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "storage/v1.CSINode",
    default: strategy::nothing,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate: validate_node,
    validate_update: meta::validate_update,
    columns: &[Column::NAME, Column::number("Drivers"), Column::AGE],
    row: node_row,
    selectable_fields: strategy::cluster_fields,
};

pub const DRIVER: Kind = Kind {
    group: "storage.k8s.io",
    version: "v1",
    kind: "CSIDriver",
    plural: "csidrivers",
    singular: "csidriver",
    short_names: &[],
    categories: &[],
    namespaced: false,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "storage/v1.CSIDriver",
    default: default_driver,
    prepare_create: strategy::nothing,
    prepare_update: strategy::nothing_on_update,
    prepare_status_update: strategy::nothing_on_update,
    validate: validate_driver,
    validate_update: meta::validate_update,
    columns: &[
        Column::NAME,
        Column {
            kind: "boolean",
            ..Column::text("AttachRequired")
        },
        Column {
            kind: "boolean",
            ..Column::text("PodInfoOnMount")
        },
        Column {
            kind: "boolean",
            ..Column::text("StorageCapacity")
        },
        Column::text("TokenRequests"),
        Column {
            kind: "boolean",
            ..Column::text("RequiresRepublish")
        },
        Column::text("Modes"),
        Column::AGE,
    ],
    row: driver_row,
    selectable_fields: strategy::cluster_fields,
};

fn validate_node(object: &Value) -> Errors {
    let mut errors = meta::validate(object, false, names::dns1123_subdomain);
    let drivers = list(object, "/spec/drivers");
    for (index, driver) in drivers.iter().enumerate() {
        let at = Path::new("spec").child("drivers").index(index);
        let name = text(driver, "/name");
        driver_name(&mut errors, name, &at.child("name"));
        if drivers[..index]
            .iter()
            .any(|other| text(other, "/name") == name)
        {
            errors.push(FieldError::duplicate(at.child("name"), name));
        }
        if text(driver, "/nodeID").is_empty() {
            errors.push(FieldError::required(at.child("nodeID"), ""));
        }
    }
    errors
}

fn driver_name(errors: &mut Errors, name: &str, at: &Path) {
    if name.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        if name.len() > 63 {
            errors.push(FieldError::too_long(at, 63));
        }
        invalid(
            errors,
            at,
            name,
            names::dns1123_subdomain(&name.to_lowercase()),
        );
    }
}

fn node_row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(list(object, "/spec/drivers").len()),
        strategy::age(object, now),
    ]
}

fn default_driver(object: &mut Value) {
    let spec = child(object, "spec");
    set_default(spec, "attachRequired", true);
    set_default(spec, "podInfoOnMount", false);
    set_default(spec, "storageCapacity", false);
    set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    set_default(spec, "requiresRepublish", false);
    set_default(spec, "seLinuxMount", false);
    set_default(spec, "volumeLifecycleModes", json!(["Persistent"]));
}

fn validate_driver(object: &Value) -> Errors {
    let mut errors = meta::validate(object, false, names::dns1123_subdomain);
    let at = Path::new("spec");
    for (index, mode) in list(object, "/spec/volumeLifecycleModes")
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        let at = at.child("volumeLifecycleModes").index(index);
        meta::one_of(&mut errors, mode, &["Ephemeral", "Persistent"], &at);
    }
    let policy = text(object, "/spec/fsGroupPolicy");
    let known = ["File", "None", "ReadWriteOnceWithFSType"];
    meta::one_of(&mut errors, policy, &known, &at.child("fsGroupPolicy"));
    errors
}

fn driver_row(object: &Value, now: Timestamp) -> Vec<Value> {
    let join = |items: Vec<&str>, none: &str| {
        if items.is_empty() {
            none.to_owned()
        } else {
            items.join(",")
        }
    };
    let audiences = list(object, "/spec/tokenRequests")
        .iter()
        .map(|r| text(r, "/audience"))
        .collect();
    let modes = list(object, "/spec/volumeLifecycleModes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    vec![
        json!(name(object)),
        json!(flag(object, "/spec/attachRequired")),
        json!(flag(object, "/spec/podInfoOnMount")),
        json!(flag(object, "/spec/storageCapacity")),
        json!(join(audiences, "<unset>")),
        json!(flag(object, "/spec/requiresRepublish")),
        json!(join(modes, "<none>")),
        strategy::age(object, now),
    ]
}
