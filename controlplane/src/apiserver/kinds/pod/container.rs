//! Rules for one container of a pod.

use api::field::{FieldError, Path};
use api::names;
use api::object::{flag, list, number, text};
use serde_json::Value;

use super::super::meta::{Errors, invalid, not_negative, one_of};
use super::is_sidecar;
use super::validate::validate_resources;

/// Which list of the pod a container is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    App,
    Init,
    Ephemeral,
}

/// Fields that `env[].valueFrom.fieldRef` may name, besides keys of labels and annotations.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// All that is wrong with a container. `volumes` are the names of the pod's volumes.
pub fn validate(
    errors: &mut Errors,
    container: &Value,
    role: Role,
    volumes: &[&str],
    on_host: bool,
    at: &Path,
) {
    let name = text(container, "/name");
    if name.is_empty() {
        errors.push(FieldError::required(at.child("name"), ""));
    } else {
        invalid(errors, &at.child("name"), name, names::dns1123_label(name));
    }
    let image = text(container, "/image");
    if image.is_empty() {
        errors.push(FieldError::required(at.child("image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(at.child("image"), image, detail));
    }
    let policy = text(container, "/imagePullPolicy");
    one_of(
        errors,
        policy,
        &["Always", "IfNotPresent", "Never"],
        &at.child("imagePullPolicy"),
    );
    let message = text(container, "/terminationMessagePolicy");
    one_of(
        errors,
        message,
        &["FallbackToLogsOnError", "File"],
        &at.child("terminationMessagePolicy"),
    );
    validate_ports(
        errors,
        list(container, "/ports"),
        on_host,
        &at.child("ports"),
    );
    validate_env(errors, container, at);
    validate_mounts(
        errors,
        list(container, "/volumeMounts"),
        volumes,
        &at.child("volumeMounts"),
    );
    validate_resources(errors, &container["resources"], &at.child("resources"));
    validate_security_context(
        errors,
        &container["securityContext"],
        &at.child("securityContext"),
    );
    validate_lifecycle(errors, container, role, at);
}

fn validate_ports(errors: &mut Errors, ports: &[Value], on_host: bool, at: &Path) {
    for (index, port) in ports.iter().enumerate() {
        let at = at.index(index);
        let before = &ports[..index];
        let name = text(port, "/name");
        if !name.is_empty() {
            invalid(errors, &at.child("name"), name, names::port_name(name));
            if before.iter().any(|other| text(other, "/name") == name) {
                errors.push(FieldError::duplicate(at.child("name"), name));
            }
        }
        let (inside, outside) = (
            number(port, "/containerPort").unwrap_or_default(),
            number(port, "/hostPort"),
        );
        if inside == 0 {
            errors.push(FieldError::required(at.child("containerPort"), ""));
        } else {
            range(
                errors,
                &at.child("containerPort"),
                inside,
                names::port_number(inside),
            );
        }
        if let Some(outside) = outside {
            range(
                errors,
                &at.child("hostPort"),
                outside,
                names::port_number(outside),
            );
            if on_host && outside != inside {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(at.child("hostPort"), outside, detail));
            }
        }
        match text(port, "/protocol") {
            "" => errors.push(FieldError::required(at.child("protocol"), "")),
            protocol => one_of(
                errors,
                protocol,
                &["SCTP", "TCP", "UDP"],
                &at.child("protocol"),
            ),
        }
    }
}

fn range(errors: &mut Errors, at: &Path, value: i64, problems: names::Problems) {
    errors.extend(
        problems
            .into_iter()
            .map(|p| FieldError::invalid(at, value, p)),
    );
}

fn validate_env(errors: &mut Errors, container: &Value, at: &Path) {
    for (index, variable) in list(container, "/env").iter().enumerate() {
        let at = at.child("env").index(index);
        let name = text(variable, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(at.child("name"), ""));
        } else {
            invalid(errors, &at.child("name"), name, names::env_var_name(name));
        }
        if variable.get("valueFrom").is_some_and(Value::is_object) {
            validate_env_source(errors, variable, &at.child("valueFrom"));
        }
    }
    for (index, source) in list(container, "/envFrom").iter().enumerate() {
        let at = at.child("envFrom").index(index);
        let prefix = text(source, "/prefix");
        if !prefix.is_empty() {
            invalid(
                errors,
                &at.child("prefix"),
                prefix,
                names::env_var_name(prefix),
            );
        }
        let kinds = ["configMapRef", "secretRef"]
            .iter()
            .filter(|kind| source.get(**kind).is_some());
        let kinds: Vec<_> = kinds.collect();
        match kinds.as_slice() {
            [] => errors.push(FieldError::invalid(
                &at,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            [kind] if text(&source[**kind], "/name").is_empty() => {
                errors.push(FieldError::required(at.child(kind).child("name"), ""));
            }
            [_] => {}
            _ => errors.push(FieldError::invalid(
                &at,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

fn validate_env_source(errors: &mut Errors, variable: &Value, at: &Path) {
    const SOURCES: [&str; 5] = [
        "fieldRef",
        "resourceFieldRef",
        "configMapKeyRef",
        "secretKeyRef",
        "fileKeyRef",
    ];
    let source = &variable["valueFrom"];
    let given: Vec<&str> = SOURCES
        .into_iter()
        .filter(|s| source.get(*s).is_some())
        .collect();
    match given.as_slice() {
        [] => errors.push(FieldError::invalid(
            at,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        )),
        [one] => validate_env_reference(errors, &source[*one], one, &at.child(one)),
        _ => errors.push(FieldError::invalid(at, "", "may not have more than one field specified at a time")),
    }
    if !given.is_empty() && !text(variable, "/value").is_empty() {
        errors.push(FieldError::invalid(
            at,
            "",
            "may not be specified when `value` is not empty",
        ));
    }
}

fn validate_env_reference(errors: &mut Errors, reference: &Value, kind: &str, at: &Path) {
    match kind {
        "fieldRef" => field_path(errors, reference, ENV_FIELDS, at),
        "resourceFieldRef" if text(reference, "/resource").is_empty() => {
            errors.push(FieldError::required(at.child("resource"), ""));
        }
        "configMapKeyRef" | "secretKeyRef" => {
            let (name, key) = (text(reference, "/name"), text(reference, "/key"));
            if name.is_empty() {
                errors.push(FieldError::required(at.child("name"), ""));
            }
            if key.is_empty() {
                errors.push(FieldError::required(at.child("key"), ""));
            } else {
                invalid(errors, &at.child("key"), key, names::config_map_key(key));
            }
        }
        _ => {}
    }
}

/// `fieldRef` names one of `fields`, or a key of the labels or annotations.
pub fn field_path(errors: &mut Errors, reference: &Value, fields: &[&str], at: &Path) {
    let path = text(reference, "/fieldPath");
    let at = at.child("fieldPath");
    if path.is_empty() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    let subscripted =
        |p: &str| p.starts_with("metadata.annotations['") || p.starts_with("metadata.labels['");
    let known = fields.contains(&path) || (subscripted(path) && path.ends_with("']"));
    let exists = known
        || ENV_FIELDS.contains(&path)
        || matches!(path, "metadata.labels" | "metadata.annotations");
    if !exists {
        let detail = format!("error converting fieldPath: field label not supported: {path}");
        errors.push(FieldError::invalid(at, path, detail));
    } else if !known {
        errors.push(FieldError::not_supported(at, path, fields));
    }
}

fn validate_mounts(errors: &mut Errors, mounts: &[Value], volumes: &[&str], at: &Path) {
    for (index, mount) in mounts.iter().enumerate() {
        let at = at.index(index);
        let (name, path) = (text(mount, "/name"), text(mount, "/mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(at.child("name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(FieldError::not_found(at.child("name"), name));
        }
        if path.is_empty() {
            errors.push(FieldError::required(at.child("mountPath"), ""));
        } else if mounts[..index]
            .iter()
            .any(|other| text(other, "/mountPath") == path)
        {
            errors.push(FieldError::invalid(
                at.child("mountPath"),
                path,
                "must be unique",
            ));
        }
        for field in ["subPath", "subPathExpr"] {
            let value = text(mount, &format!("/{field}"));
            local_path(errors, value, &at.child(field));
        }
        if !text(mount, "/subPath").is_empty() && !text(mount, "/subPathExpr").is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(
                at.child("subPathExpr"),
                mount["subPathExpr"].clone(),
                detail,
            ));
        }
        let propagation = text(mount, "/mountPropagation");
        if !propagation.is_empty() {
            let known = ["Bidirectional", "HostToContainer", "None"];
            one_of(errors, propagation, &known, &at.child("mountPropagation"));
        }
    }
}

/// A path below the volume: relative, and never up.
pub fn local_path(errors: &mut Errors, path: &str, at: &Path) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(at, path, "must be a relative path"));
    }
    if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(at, path, "must not contain '..'"));
    }
}

fn validate_security_context(errors: &mut Errors, context: &Value, at: &Path) {
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(id) = number(context, &format!("/{field}")) {
            range(errors, &at.child(field), id, names::id(id));
        }
    }
    if context["allowPrivilegeEscalation"] == false {
        if flag(context, "/privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(at, context.clone(), detail));
        }
        if list(context, "/capabilities/add")
            .iter()
            .any(|c| c == "CAP_SYS_ADMIN" || c == "SYS_ADMIN")
        {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(at, context.clone(), detail));
        }
    }
    let mount = text(context, "/procMount");
    if !mount.is_empty() {
        one_of(
            errors,
            mount,
            &["Default", "Unmasked"],
            &at.child("procMount"),
        );
    }
    validate_seccomp(
        errors,
        &context["seccompProfile"],
        &at.child("seccompProfile"),
    );
}

/// A seccomp profile names a local file exactly if its type says so.
pub fn validate_seccomp(errors: &mut Errors, profile: &Value, at: &Path) {
    if profile.is_null() {
        return;
    }
    let file = text(profile, "/localhostProfile");
    match text(profile, "/type") {
        "Localhost" if file.is_empty() => {
            let detail = "must be set when seccomp type is Localhost";
            errors.push(FieldError::required(at.child("localhostProfile"), detail));
        }
        "Localhost" => local_path(errors, file, &at.child("localhostProfile")),
        "RuntimeDefault" | "Unconfined" if !file.is_empty() => {
            let detail = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(
                at.child("localhostProfile"),
                file,
                detail,
            ));
        }
        "RuntimeDefault" | "Unconfined" => {}
        "" => errors.push(FieldError::required(
            at.child("type"),
            "type is required when seccompProfile is set",
        )),
        other => one_of(
            errors,
            other,
            &["Localhost", "RuntimeDefault", "Unconfined"],
            &at.child("type"),
        ),
    }
}

fn validate_lifecycle(errors: &mut Errors, container: &Value, role: Role, at: &Path) {
    let restart = text(container, "/restartPolicy");
    if role == Role::Init && !restart.is_empty() {
        one_of(
            errors,
            restart,
            &["Always", "Never", "OnFailure"],
            &at.child("restartPolicy"),
        );
    }
    let once = role == Role::Init && !is_sidecar(container);
    for (field, word) in [
        ("livenessProbe", "livenessProbe"),
        ("readinessProbe", "readinessProbe"),
        ("startupProbe", "startupProbe"),
    ] {
        let probe = &container[field];
        let at = at.child(field);
        if probe.is_null() {
            continue;
        }
        if once {
            errors.push(FieldError::forbidden(
                &at,
                "may not be set for init containers without restartPolicy=Always",
            ));
        } else if role == Role::Ephemeral {
            errors.push(FieldError::forbidden(
                &at,
                "cannot be set for an Ephemeral Container",
            ));
        } else {
            validate_probe(errors, probe, word != "readinessProbe", &at);
        }
    }
    let lifecycle = &container["lifecycle"];
    if once && !lifecycle.is_null() {
        let detail = "may not be set for init containers without restartPolicy=Always";
        errors.push(FieldError::forbidden(at.child("lifecycle"), detail));
        return;
    }
    for hook in ["postStart", "preStop"] {
        if lifecycle.get(hook).is_some_and(Value::is_object) {
            validate_handler(errors, &lifecycle[hook], &at.child("lifecycle").child(hook));
        }
    }
}

fn validate_probe(errors: &mut Errors, probe: &Value, once_is_enough: bool, at: &Path) {
    validate_handler(errors, probe, at);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(errors, probe, &format!("/{field}"), &at.child(field));
    }
    let successes = number(probe, "/successThreshold").unwrap_or(1);
    if once_is_enough && successes != 1 {
        errors.push(FieldError::invalid(
            at.child("successThreshold"),
            successes,
            "must be 1",
        ));
    }
    if let Some(grace) = number(probe, "/terminationGracePeriodSeconds").filter(|g| *g <= 0) {
        errors.push(FieldError::invalid(
            at.child("terminationGracePeriodSeconds"),
            grace,
            "must be greater than 0",
        ));
    }
}

fn validate_handler(errors: &mut Errors, handler: &Value, at: &Path) {
    let mut handlers = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = &handler[kind];
        if action.is_null() {
            continue;
        }
        handlers += 1;
        let at = at.child(kind);
        if handlers > 1 {
            errors.push(FieldError::forbidden(
                &at,
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        match kind {
            "exec" if list(action, "/command").is_empty() => {
                errors.push(FieldError::required(at.child("command"), ""));
            }
            "httpGet" => validate_http_get(errors, action, &at),
            "tcpSocket" => port_reference(errors, &action["port"], &at.child("port")),
            "grpc" => {
                let port = number(action, "/port").unwrap_or_default();
                range(errors, &at.child("port"), port, names::port_number(port));
            }
            _ => {}
        }
    }
    if handlers == 0 {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
}

fn validate_http_get(errors: &mut Errors, action: &Value, at: &Path) {
    if text(action, "/path").is_empty() {
        errors.push(FieldError::required(at.child("path"), ""));
    }
    port_reference(errors, &action["port"], &at.child("port"));
    one_of(
        errors,
        text(action, "/scheme"),
        &["HTTP", "HTTPS"],
        &at.child("scheme"),
    );
    for (index, header) in list(action, "/httpHeaders").iter().enumerate() {
        let name = text(header, "/name");
        let at = at.child("httpHeaders").index(index).child("name");
        invalid(errors, &at, name, names::http_header_name(name));
    }
}

/// A port by number or by name.
fn port_reference(errors: &mut Errors, port: &Value, at: &Path) {
    match port {
        Value::String(name) => invalid(errors, at, name, names::port_name(name)),
        port => {
            let port = port.as_i64().unwrap_or_default();
            range(errors, at, port, names::port_number(port));
        }
    }
}
