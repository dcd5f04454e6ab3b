//! NetworkPolicy (networking.k8s.io/v1): which packets pods get and send.

use api::field::{FieldError, Path};
use api::names;
use api::object::{child, items_mut, list, name, number, set_default, text};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::kind::{ALL_VERBS, Column, Kind};
use super::meta::{self, Errors, invalid, one_of};
use super::strategy;

pub const KIND: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    has_status: false,
    scale: false,
    subresources: &[],
    schema: "networking/v1.NetworkPolicy",
    default,
    prepare_create: strategy::create,
    prepare_update: strategy::update,
    prepare_status_update: strategy::nothing_on_update,
    validate,
    validate_update: meta::validate_update,
    columns: &[Column::NAME, Column::text("Pod-Selector"), Column::AGE],
    row,
    selectable_fields: strategy::namespaced_fields,
};

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    for direction in ["ingress", "egress"] {
        for rule in items_mut(spec, direction) {
            for port in items_mut(rule, "ports") {
                set_default(port, "protocol", "TCP");
            }
        }
    }
    if list(spec, "/policyTypes").is_empty() {
        let mut types = vec!["Ingress"];
        if !list(spec, "/egress").is_empty() {
            types.push("Egress");
        }
        spec["policyTypes"] = json!(types);
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = meta::validate(object, true, names::dns1123_subdomain);
    let at = Path::new("spec");
    let spec = &object["spec"];
    meta::label_selector(&mut errors, &spec["podSelector"], &at.child("podSelector"));
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in list(spec, &format!("/{rules}")).iter().enumerate() {
            let at = at.child(rules).index(index);
            for (index, port) in list(rule, "/ports").iter().enumerate() {
                validate_port(&mut errors, port, &at.child("ports").index(index));
            }
            for (index, peer) in list(rule, &format!("/{peers}")).iter().enumerate() {
                validate_peer(&mut errors, peer, &at.child(peers).index(index));
            }
        }
    }
    let types = list(spec, "/policyTypes");
    if types.len() > 2 {
        errors.push(FieldError::invalid(
            at.child("policyTypes"),
            types.len(),
            "may not specify more than two policyTypes",
        ));
    }
    for (index, kind) in types.iter().enumerate() {
        let at = at.child("policyTypes").index(index);
        let kind = kind.as_str().unwrap_or_default();
        one_of(&mut errors, kind, &["Egress", "Ingress"], &at);
    }
    errors
}

fn validate_port(errors: &mut Errors, port: &Value, at: &Path) {
    one_of(
        errors,
        text(port, "/protocol"),
        &["SCTP", "TCP", "UDP"],
        &at.child("protocol"),
    );
    let first = match &port["port"] {
        Value::Null => None,
        Value::String(name) => {
            invalid(errors, &at.child("port"), name, names::port_name(name));
            None
        }
        value => {
            let first = value.as_i64().unwrap_or(-1);
            let text = value.to_string();
            invalid(errors, &at.child("port"), &text, names::port_number(first));
            Some(first)
        }
    };
    let Some(last) = number(port, "/endPort") else {
        return;
    };
    let at = at.child("endPort");
    match first {
        None if port["port"].is_null() => errors.push(FieldError::invalid(
            at,
            last,
            "must be specified when `port` is specified",
        )),
        None => errors.push(FieldError::invalid(
            at,
            last,
            "may not be specified when `port` is non-numeric",
        )),
        Some(first) if last < first => errors.push(FieldError::invalid(
            at,
            last,
            "must be greater than or equal to `port`",
        )),
        Some(_) => invalid(errors, &at, &last.to_string(), names::port_number(last)),
    }
}

fn validate_peer(errors: &mut Errors, peer: &Value, at: &Path) {
    let selectors = ["podSelector", "namespaceSelector"];
    for key in selectors {
        meta::label_selector(errors, &peer[key], &at.child(key));
    }
    let count = selectors
        .iter()
        .filter(|key| !peer[**key].is_null())
        .count();
    let block = &peer["ipBlock"];
    if block.is_null() {
        if count == 0 {
            errors.push(FieldError::required(at, "must specify a peer"));
        }
        return;
    }
    if count > 0 {
        errors.push(FieldError::forbidden(
            at,
            "may not specify both ipBlock and another peer",
        ));
    }
    validate_block(errors, block, &at.child("ipBlock"));
}

fn validate_block(errors: &mut Errors, block: &Value, at: &Path) {
    const WRONG: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let text = text(block, "/cidr");
    if text.is_empty() {
        errors.push(FieldError::required(at.child("cidr"), ""));
        return;
    }
    let Ok(network) = text.parse::<IpNet>() else {
        errors.push(FieldError::invalid(at.child("cidr"), text, WRONG));
        return;
    };
    for (index, part) in list(block, "/except").iter().enumerate() {
        let at = at.child("except").index(index);
        let part = part.as_str().unwrap_or_default();
        match part.parse::<IpNet>() {
            Err(_) => errors.push(FieldError::invalid(at, part, WRONG)),
            Ok(except) if !network.contains(&except) || network.trunc() == except.trunc() => {
                errors.push(FieldError::invalid(
                    at,
                    part,
                    format!("must be a strict subset of `cidr`: {text}"),
                ));
            }
            Ok(_) => {}
        }
    }
}

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let selector = api::selector::LabelSelector::from_object(&object["spec"]["podSelector"]);
    let selector = match selector.map(|selector| selector.to_string()) {
        Ok(text) if !text.is_empty() => text,
        _ => "<none>".to_owned(),
    };
    vec![
        json!(name(object)),
        json!(selector),
        strategy::age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> Value {
        let mut object =
            json!({ "metadata": { "namespace": "default", "name": "web" }, "spec": spec });
        default(&mut object);
        object
    }

    #[test]
    fn types_and_protocols_have_defaults() {
        let object =
            policy(json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 80 }] }] }));
        assert_eq!(object["spec"]["policyTypes"], json!(["Ingress"]));
        assert_eq!(text(&object, "/spec/ingress/0/ports/0/protocol"), "TCP");
        let object = policy(json!({ "podSelector": {}, "egress": [{}] }));
        assert_eq!(object["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(validate(&object).len(), 0);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = [
            (
                json!({ "ingress": [{ "from": [{}] }] }),
                "spec.ingress[0].from[0]",
            ),
            (
                json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0" } }] }] }),
                "spec.egress[0].to[0].ipBlock.cidr",
            ),
            (
                json!({ "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"] } }] }] }),
                "spec.egress[0].to[0].ipBlock.except[0]",
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": 90, "endPort": 80 }] }] }),
                "spec.ingress[0].ports[0].endPort",
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": "http", "endPort": 80 }] }] }),
                "spec.ingress[0].ports[0].endPort",
            ),
            (
                json!({ "ingress": [{ "ports": [{ "endPort": 80 }] }] }),
                "spec.ingress[0].ports[0].endPort",
            ),
            (
                json!({ "ingress": [{ "ports": [{ "port": 80, "protocol": "ICMP" }] }] }),
                "spec.ingress[0].ports[0].protocol",
            ),
            (json!({ "policyTypes": ["Both"] }), "spec.policyTypes[0]"),
            (
                json!({ "ingress": [{ "from": [{ "podSelector": {}, "ipBlock": { "cidr": "10.0.0.0/8" } }] }] }),
                "spec.ingress[0].from[0]",
            ),
        ];
        for (spec, field) in wrong {
            let errors = validate(&policy(spec));
            assert!(
                errors.iter().any(|error| error.to_string().contains(field)),
                "{field}: {errors:?}"
            );
        }
    }
}
