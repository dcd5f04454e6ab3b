//! Service (core/v1). Addresses and node ports are allocated by the API server between `validate` and the store.

use api::field::{FieldError, Path};
use api::names;
use api::object::{child, items_mut, list, map, name, number, set_default, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, invalid, one_of};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: true,
    scale: false,
    subresources: &["proxy"],
    schema: "core/v1.Service",
    default,
    prepare_create,
    prepare_update,
    prepare_status_update: strategy::update_status,
    validate,
    validate_update,
    columns: &[
        Column::NAME,
        Column::text("Type"),
        Column::text("Cluster-IP"),
        Column::text("External-IP"),
        Column::text("Port(s)"),
        Column::AGE,
        Column::text("Selector").wide(),
    ],
    row,
    selectable_fields,
};

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    set_default(spec, "sessionAffinity", "None");
    set_default(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "ClientIP" {
        set_default(
            child(child(spec, "sessionAffinityConfig"), "clientIP"),
            "timeoutSeconds",
            10_800,
        );
    }
    let kind = text(spec, "/type").to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
    for port in items_mut(spec, "ports") {
        set_default(port, "protocol", "TCP");
        let target = &port["targetPort"];
        if target.is_null() || *target == 0 || *target == "" {
            port["targetPort"] = port["port"].clone();
        }
    }
    // Either field may be written; both are kept.
    let (address, addresses) = (
        text(spec, "/clusterIP").to_owned(),
        list(spec, "/clusterIPs").to_vec(),
    );
    match (address.is_empty(), addresses.first()) {
        (false, None) => spec["clusterIPs"] = json!([address]),
        (true, Some(first)) => spec["clusterIP"] = first.clone(),
        _ => {}
    }
}

fn prepare_create(object: &mut Value) {
    object["status"] = json!({"loadBalancer": {}});
}

/// What only some types of Service have goes with the type, though a client that changed nothing but the type sends it
/// along.
fn prepare_update(new: &mut Value, old: &Value) {
    strategy::update_without_generation(new, old);
    let (spec, was) = (child(new, "spec"), &old["spec"]);
    let balanced = |spec: &Value| spec["type"] == "LoadBalancer";
    let local = |spec: &Value| balanced(spec) && spec["externalTrafficPolicy"] == "Local";
    let mut dropped = Vec::new();
    if is_external(was) && !is_external(spec) {
        dropped.push("externalTrafficPolicy");
    }
    if balanced(was) && !balanced(spec) {
        dropped.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if local(was) && !local(spec) {
        dropped.push("healthCheckNodePort");
    }
    for field in dropped {
        if spec[field] == was[field]
            && let Some(fields) = spec.as_object_mut()
        {
            fields.shift_remove(field);
        }
    }
}

/// Traffic from outside the cluster reaches the Service.
fn is_external(spec: &Value) -> bool {
    matches!(text(spec, "/type"), "NodePort" | "LoadBalancer")
        || !list(spec, "/externalIPs").is_empty()
}

fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == "None"
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1035_label);
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let kind = text(spec, "/type");
    let ports = list(spec, "/ports");
    if ports.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.push(FieldError::required(at.child("ports"), ""));
    }
    one_of(
        &mut errors,
        kind,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        &at.child("type"),
    );
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            errors.push(FieldError::invalid(
                at.child("clusterIPs").index(0),
                "None",
                format!("may not be set to 'None' for {kind} services"),
            ));
        }
        "ExternalName" => validate_external_name(&mut errors, spec, &at),
        _ => {}
    }
    for (index, port) in ports.iter().enumerate() {
        validate_port(
            &mut errors,
            port,
            ports.len() > 1,
            spec,
            &at.child("ports").index(index),
        );
    }
    validate_port_uniqueness(&mut errors, ports, &at.child("ports"));
    meta::labels(&mut errors, &spec["selector"], &at.child("selector"));
    one_of(
        &mut errors,
        text(spec, "/sessionAffinity"),
        &["ClientIP", "None"],
        &at.child("sessionAffinity"),
    );
    validate_affinity_timeout(&mut errors, spec, &at);
    validate_addresses(&mut errors, spec, &at);
    validate_policies(&mut errors, spec, &at);
    errors
}

fn validate_external_name(errors: &mut Errors, spec: &Value, at: &Path) {
    if !list(spec, "/clusterIPs").is_empty() {
        errors.push(FieldError::forbidden(
            at.child("clusterIPs"),
            "may not be set for ExternalName services",
        ));
    }
    let external = text(spec, "/externalName").trim_end_matches('.');
    let at = at.child("externalName");
    if external.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else {
        invalid(errors, &at, external, names::dns1123_subdomain(external));
    }
}

fn validate_port(errors: &mut Errors, port: &Value, needs_name: bool, spec: &Value, at: &Path) {
    let name = text(port, "/name");
    if name.is_empty() && needs_name {
        errors.push(FieldError::required(at.child("name"), ""));
    } else if !name.is_empty() {
        invalid(errors, &at.child("name"), name, names::dns1123_label(name));
    }
    let value = number(port, "/port").unwrap_or_default();
    errors.extend(
        names::port_number(value)
            .into_iter()
            .map(|p| FieldError::invalid(at.child("port"), value, p)),
    );
    let protocol = text(port, "/protocol");
    if protocol.is_empty() {
        errors.push(FieldError::required(at.child("protocol"), ""));
    } else {
        one_of(
            errors,
            protocol,
            &["SCTP", "TCP", "UDP"],
            &at.child("protocol"),
        );
    }
    match &port["targetPort"] {
        Value::String(name) => invalid(
            errors,
            &at.child("targetPort"),
            name,
            names::port_name(name),
        ),
        target => {
            let target = target.as_i64().unwrap_or_default();
            let problems = names::port_number(target).into_iter();
            errors.extend(problems.map(|p| FieldError::invalid(at.child("targetPort"), target, p)));
        }
    }
    let kind = text(spec, "/type");
    if number(port, "/nodePort").is_some_and(|p| p != 0)
        && matches!(kind, "ClusterIP" | "ExternalName")
    {
        let detail = format!("may not be used when `type` is '{kind}'");
        errors.push(FieldError::forbidden(at.child("nodePort"), detail));
    }
}

fn validate_port_uniqueness(errors: &mut Errors, ports: &[Value], at: &Path) {
    for (index, port) in ports.iter().enumerate() {
        let at = at.index(index);
        let before = &ports[..index];
        let name = text(port, "/name");
        if !name.is_empty() && before.iter().any(|other| text(other, "/name") == name) {
            errors.push(FieldError::duplicate(at.child("name"), name));
        }
        let same = |field: &str| {
            before
                .iter()
                .any(|o| o["protocol"] == port["protocol"] && o[field] == port[field])
        };
        let node_port = number(port, "/nodePort").unwrap_or_default();
        if node_port != 0 && same("nodePort") {
            errors.push(FieldError::duplicate(at.child("nodePort"), node_port));
        }
        if same("port") {
            errors.push(FieldError::duplicate(
                &at,
                json!({"protocol": port["protocol"], "port": port["port"]}),
            ));
        }
    }
}

fn validate_affinity_timeout(errors: &mut Errors, spec: &Value, at: &Path) {
    let at = at.child("sessionAffinityConfig");
    if spec["sessionAffinity"] == "None" && !spec["sessionAffinityConfig"].is_null() {
        errors.push(FieldError::forbidden(
            &at,
            "must not be set when session affinity is None",
        ));
    }
    if let Some(seconds) = number(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds")
        && !(1..=86_400).contains(&seconds)
    {
        let at = at.child("clientIP").child("timeoutSeconds");
        errors.push(FieldError::invalid(
            at,
            seconds,
            "must be greater than 0 and less than 86400",
        ));
    }
}

fn validate_addresses(errors: &mut Errors, spec: &Value, at: &Path) {
    let addresses = list(spec, "/clusterIPs");
    let at_addresses = at.child("clusterIPs");
    if addresses
        .first()
        .is_some_and(|first| *first != spec["clusterIP"])
    {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(
            &at_addresses,
            spec["clusterIPs"].clone(),
            detail,
        ));
    }
    for (index, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
        if address != "None" {
            super::endpoints::ip(errors, address, &at_addresses.index(index));
        } else if addresses.len() > 1 {
            let detail = "'None' must be the first and only value";
            errors.push(FieldError::invalid(
                at_addresses.index(index),
                address,
                detail,
            ));
        }
    }
    for (index, address) in list(spec, "/externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        super::endpoints::ip(errors, address, &at.child("externalIPs").index(index));
    }
    for (index, cidr) in list(spec, "/loadBalancerSourceRanges")
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        if cidr.trim().parse::<ipnet::IpNet>().is_err() {
            let at = at.child("loadBalancerSourceRanges").index(index);
            errors.push(FieldError::invalid(
                at,
                cidr,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
        }
    }
    for (index, family) in list(spec, "/ipFamilies")
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        one_of(
            errors,
            family,
            &["IPv4", "IPv6"],
            &at.child("ipFamilies").index(index),
        );
    }
    let policy = text(spec, "/ipFamilyPolicy");
    if !policy.is_empty() {
        one_of(
            errors,
            policy,
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
            &at.child("ipFamilyPolicy"),
        );
    }
}

fn validate_policies(errors: &mut Errors, spec: &Value, at: &Path) {
    let external = text(spec, "/externalTrafficPolicy");
    let at_external = at.child("externalTrafficPolicy");
    if !external.is_empty() && !is_external(spec) {
        errors.push(FieldError::invalid(
            &at_external,
            external,
            "may only be set for externally-accessible services",
        ));
    } else if !external.is_empty() {
        one_of(errors, external, &["Cluster", "Local"], &at_external);
    }
    let internal = text(spec, "/internalTrafficPolicy");
    if !internal.is_empty() {
        one_of(
            errors,
            internal,
            &["Cluster", "Local"],
            &at.child("internalTrafficPolicy"),
        );
    }
}

/// The cluster address stays, unless the Service turns into or out of an ExternalName.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = meta::validate_update(new, old);
    let (was, is) = (text(old, "/spec/clusterIP"), text(new, "/spec/clusterIP"));
    let external = |object: &Value| object["spec"]["type"] == "ExternalName";
    if !was.is_empty() && was != is && !external(new) && !external(old) {
        let at = Path::new("spec").child("clusterIPs").index(0);
        errors.push(FieldError::invalid(at, is, "may not change once set"));
    }
    errors
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let address = list(spec, "/clusterIPs")
        .first()
        .and_then(Value::as_str)
        .unwrap_or("<none>");
    let selector: Vec<String> = map(spec, "/selector")
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    vec![
        json!(name(object)),
        json!(text(spec, "/type")),
        json!(address),
        json!(external_ip(object)),
        json!(ports(spec)),
        strategy::age(object, now),
        json!(if selector.is_empty() {
            "<none>".to_owned()
        } else {
            selector.join(",")
        }),
    ]
}

fn external_ip(object: &Value) -> String {
    let spec = &object["spec"];
    let mut external: Vec<&str> = list(spec, "/externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match text(spec, "/type") {
        "ExternalName" => return text(spec, "/externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = list(object, "/status/loadBalancer/ingress").iter();
            let given: Vec<&str> = ingress
                .map(|i| {
                    Some(text(i, "/ip"))
                        .filter(|ip| !ip.is_empty())
                        .unwrap_or(text(i, "/hostname"))
                })
                .collect();
            if given.is_empty() && external.is_empty() {
                return "<pending>".to_owned();
            }
            external.splice(0..0, given);
        }
        _ => {}
    }
    if external.is_empty() {
        "<none>".to_owned()
    } else {
        external.join(",")
    }
}

fn ports(spec: &Value) -> String {
    let ports: Vec<String> = list(spec, "/ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (&port["port"], text(port, "/protocol"));
            match port["nodePort"].as_i64().filter(|p| *p > 0) {
                Some(node_port) => format!("{number}:{node_port}/{protocol}"),
                None => format!("{number}/{protocol}"),
            }
        })
        .collect();
    if ports.is_empty() {
        "<none>".to_owned()
    } else {
        ports.join(",")
    }
}

fn selectable_fields(object: &Value) -> Vec<(&'static str, String)> {
    let mut fields = strategy::namespaced_fields(object);
    for (field, pointer) in [
        ("spec.clusterIP", "/spec/clusterIP"),
        ("spec.type", "/spec/type"),
    ] {
        fields.push((field, text(object, pointer).to_owned()));
    }
    fields
}
