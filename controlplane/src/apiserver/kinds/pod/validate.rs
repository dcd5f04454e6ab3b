//! Rules for a pod's spec (`pkg/apis/core/validation`).

use api::field::{FieldError, Path};
use api::names;
use api::object::{flag, list, map, number, text};
use serde_json::Value;

use super::super::meta::{self, Errors, invalid, one_of};
use super::container::{self, Role};
use super::volume;

/// All that is wrong with a pod spec at the given path.
pub fn validate_spec(errors: &mut Errors, spec: &Value, at: &Path) {
    let volumes = volume::validate_all(errors, list(spec, "/volumes"), &at.child("volumes"));
    validate_containers(errors, spec, &volumes, at);
    one_of(
        errors,
        text(spec, "/restartPolicy"),
        &["Always", "Never", "OnFailure"],
        &at.child("restartPolicy"),
    );
    validate_dns(errors, spec, at);
    meta::labels(errors, &spec["nodeSelector"], &at.child("nodeSelector"));
    if let Some(deadline) = number(spec, "/activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&deadline)
    {
        let detail = names::in_range(deadline, 1, i64::from(i32::MAX)).concat();
        errors.push(FieldError::invalid(
            at.child("activeDeadlineSeconds"),
            deadline,
            detail,
        ));
    }
    for (field, rule) in [
        (
            "serviceAccountName",
            names::dns1123_subdomain as meta::NameRule,
        ),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ] {
        let value = text(spec, &format!("/{field}"));
        if !value.is_empty() {
            invalid(errors, &at.child(field), value, rule(value));
        }
    }
    validate_security_context(errors, spec, at);
    validate_tolerations(errors, list(spec, "/tolerations"), &at.child("tolerations"));
    validate_node_affinity(errors, spec, &at.child("affinity").child("nodeAffinity"));
    for (index, gate) in list(spec, "/readinessGates").iter().enumerate() {
        let kind = text(gate, "/conditionType");
        let at = at
            .child("readinessGates")
            .index(index)
            .child("conditionType");
        invalid(errors, &at, kind, names::qualified_name(kind));
    }
    for (index, alias) in list(spec, "/hostAliases").iter().enumerate() {
        super::super::endpoints::ip(
            errors,
            text(alias, "/ip"),
            &at.child("hostAliases").index(index).child("ip"),
        );
    }
}

fn validate_containers(errors: &mut Errors, spec: &Value, volumes: &[&str], at: &Path) {
    if list(spec, "/containers").is_empty() {
        errors.push(FieldError::required(at.child("containers"), ""));
    }
    let on_host = flag(spec, "/hostNetwork");
    let mut seen: Vec<&str> = Vec::new();
    for (field, role) in [
        ("containers", Role::App),
        ("initContainers", Role::Init),
        ("ephemeralContainers", Role::Ephemeral),
    ] {
        for (index, container) in list(spec, &format!("/{field}")).iter().enumerate() {
            let at = at.child(field).index(index);
            let name = text(container, "/name");
            if !name.is_empty() && seen.contains(&name) {
                errors.push(FieldError::duplicate(at.child("name"), name));
            }
            seen.push(name);
            container::validate(errors, container, role, volumes, on_host, &at);
        }
    }
}

fn validate_dns(errors: &mut Errors, spec: &Value, at: &Path) {
    let policy = text(spec, "/dnsPolicy");
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(errors, policy, &policies, &at.child("dnsPolicy"));
    let config = &spec["dnsConfig"];
    let at = at.child("dnsConfig");
    if policy == "None" && config.is_null() {
        errors.push(FieldError::required(
            &at,
            "must provide `dnsConfig` when `dnsPolicy` is None",
        ));
        return;
    }
    let servers = list(config, "/nameservers");
    if policy == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(at.child("nameservers"), detail));
    }
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(
            at.child("nameservers"),
            config["nameservers"].clone(),
            detail,
        ));
    }
    for (index, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        super::super::endpoints::ip(errors, server, &at.child("nameservers").index(index));
    }
    for (index, option) in list(config, "/options").iter().enumerate() {
        if text(option, "/name").is_empty() {
            errors.push(FieldError::required(
                at.child("options").index(index),
                "must not be empty",
            ));
        }
    }
}

fn validate_security_context(errors: &mut Errors, spec: &Value, at: &Path) {
    let context = &spec["securityContext"];
    let at_context = at.child("securityContext");
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = number(context, &format!("/{field}")) {
            let problems = names::id(id).into_iter();
            errors.extend(problems.map(|p| FieldError::invalid(at_context.child(field), id, p)));
        }
    }
    let policy = text(context, "/fsGroupChangePolicy");
    if !policy.is_empty() {
        one_of(
            errors,
            policy,
            &["Always", "OnRootMismatch"],
            &at_context.child("fsGroupChangePolicy"),
        );
    }
    container::validate_seccomp(
        errors,
        &context["seccompProfile"],
        &at_context.child("seccompProfile"),
    );
    for (index, sysctl) in list(context, "/sysctls").iter().enumerate() {
        let name = text(sysctl, "/name");
        let at = at_context.child("sysctls").index(index).child("name");
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
        }
    }
    if flag(spec, "/hostPID") && flag(spec, "/shareProcessNamespace") {
        let at = at.child("shareProcessNamespace");
        errors.push(FieldError::invalid(
            at,
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
}

fn validate_tolerations(errors: &mut Errors, tolerations: &[Value], at: &Path) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let at = at.index(index);
        let [key, operator, value, effect] =
            ["/key", "/operator", "/value", "/effect"].map(|p| text(toleration, p));
        if !key.is_empty() {
            invalid(errors, &at.child("key"), key, names::qualified_name(key));
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(at.child("operator"), operator, detail));
        }
        if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(at.child("effect"), effect, detail));
        }
        match operator {
            "" | "Equal" => invalid(
                errors,
                &at.child("operator"),
                value,
                names::label_value(value),
            ),
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(
                    at.child("operator"),
                    toleration.clone(),
                    detail,
                ));
            }
            "Exists" => {}
            other => errors.push(FieldError::not_supported(
                at.child("operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        if !effect.is_empty() {
            one_of(
                errors,
                effect,
                &["NoExecute", "NoSchedule", "PreferNoSchedule"],
                &at.child("effect"),
            );
        }
    }
}

fn validate_node_affinity(errors: &mut Errors, spec: &Value, at: &Path) {
    let required =
        &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    if required.is_null() {
        return;
    }
    let at = at
        .child("requiredDuringSchedulingIgnoredDuringExecution")
        .child("nodeSelectorTerms");
    let terms = list(required, "/nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(FieldError::required(
            &at,
            "must have at least one node selector term",
        ));
    }
    for (index, term) in terms.iter().enumerate() {
        for (position, requirement) in list(term, "/matchExpressions").iter().enumerate() {
            let at = at.index(index).child("matchExpressions").index(position);
            let (key, values) = (
                text(requirement, "/key"),
                list(requirement, "/values").len(),
            );
            match text(requirement, "/operator") {
                "In" | "NotIn" if values == 0 => {
                    let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(at.child("values"), detail));
                }
                "Exists" | "DoesNotExist" if values > 0 => {
                    let detail =
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(at.child("values"), detail));
                }
                "Gt" | "Lt" if values != 1 => {
                    let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                    errors.push(FieldError::required(at.child("values"), detail));
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                other => {
                    errors.push(FieldError::invalid(
                        at.child("operator"),
                        other,
                        "not a valid selector operator",
                    ));
                }
            }
            invalid(errors, &at.child("key"), key, names::qualified_name(key));
        }
    }
}

/// Amounts of resources: requests no larger than limits, names that a container can have.
pub fn validate_resources(errors: &mut Errors, resources: &Value, at: &Path) {
    let (limits, requests) = (at.child("limits"), at.child("requests"));
    for (list, at) in [("/limits", &limits), ("/requests", &requests)] {
        for (name, amount) in map(resources, list) {
            let amount_text = amount.as_str().unwrap_or_default();
            validate_resource_name(errors, name, at);
            match amount_text.parse::<api::quantity::Quantity>() {
                Ok(quantity) if quantity.is_negative() => {
                    errors.push(FieldError::invalid(
                        at.key(name),
                        amount_text,
                        meta::NOT_NEGATIVE,
                    ));
                }
                Ok(quantity) if name.contains('/') && !quantity.is_integer() => {
                    errors.push(FieldError::invalid(
                        at.key(name),
                        amount_text,
                        "must be an integer",
                    ));
                }
                Ok(_) => {}
                Err(error) => errors.push(FieldError::invalid(
                    at.key(name),
                    amount_text,
                    error.to_string(),
                )),
            }
        }
    }
    for (name, request) in map(resources, "/requests") {
        let limit = &resources["limits"][name];
        let (Some(request), Some(limit)) = (request.as_str(), limit.as_str()) else {
            continue;
        };
        let parse = |text: &str| text.parse::<api::quantity::Quantity>().ok();
        if parse(request) > parse(limit) {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(&requests, request, detail));
        } else if name.contains('/') && parse(request) != parse(limit) {
            let detail = format!("must be equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(&requests, request, detail));
        }
    }
}

fn validate_resource_name(errors: &mut Errors, name: &str, at: &Path) {
    let at = at.key(name);
    invalid(errors, &at, name, names::qualified_name(name));
    if !name.contains('/')
        && !matches!(name, "cpu" | "memory" | "ephemeral-storage")
        && !name.starts_with("hugepages-")
    {
        errors.push(FieldError::invalid(
            &at,
            name,
            "must be a standard resource type or fully qualified",
        ));
        errors.push(FieldError::invalid(
            &at,
            name,
            "must be a standard resource for containers",
        ));
    }
}
