//! Defaults of pods and pod templates (`pkg/apis/core/v1/defaults.go`).

use api::object::{child, flag, items_mut, part_mut, set_default, text};
use serde_json::{Value, json};

/// Permissions of files that a volume makes: 0644.
const FILE_MODE: i64 = 0o644;

/// A pod has more defaults than a template: those that its template shouldn't have frozen.
pub fn default(object: &mut Value) {
    let spec = child(object, "spec");
    default_spec(spec);
    set_default(spec, "enableServiceLinks", true);
    let on_host = flag(spec, "/hostNetwork");
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            default_requests(container);
            if on_host {
                default_host_ports(container);
            }
        }
    }
}

/// The template of a workload.
pub fn default_template(template: &mut Value) {
    child(template, "metadata");
    default_spec(child(template, "spec"));
}

/// What is limited and not requested is requested.
fn default_requests(container: &mut Value) {
    let Some(limits) = container["resources"]["limits"].as_object().cloned() else {
        return;
    };
    let requests = child(child(container, "resources"), "requests");
    for (name, limit) in limits {
        set_default(requests, &name, limit);
    }
}

/// A container on the host's network has its ports there.
fn default_host_ports(container: &mut Value) {
    for port in items_mut(container, "ports") {
        if port["hostPort"].as_i64().unwrap_or_default() == 0 {
            port["hostPort"] = port["containerPort"].clone();
        }
    }
}

fn default_spec(spec: &mut Value) {
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "securityContext", json!({}));
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            default_container(container);
        }
    }
    for volume in items_mut(spec, "volumes") {
        default_volume(volume);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are shown.
fn mirror_service_account(spec: &mut Value) {
    let (new, old) = (
        text(spec, "/serviceAccountName").to_owned(),
        text(spec, "/serviceAccount").to_owned(),
    );
    match (new.is_empty(), old.is_empty()) {
        (false, _) => spec["serviceAccount"] = new.into(),
        (true, false) => spec["serviceAccountName"] = old.into(),
        (true, true) => {}
    }
}

fn default_container(container: &mut Value) {
    let policy = if is_latest(text(container, "/image")) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set_default(container, "imagePullPolicy", policy);
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    set_default(container, "resources", json!({}));
    for port in items_mut(container, "ports") {
        set_default(port, "protocol", "TCP");
    }
    for source in items_mut(container, "env").filter_map(|variable| part_mut(variable, "valueFrom"))
    {
        default_field_ref(source);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = part_mut(container, probe) {
            default_probe(probe);
        }
    }
    if let Some(lifecycle) = part_mut(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = part_mut(lifecycle, hook) {
                default_http_get(hook);
            }
        }
    }
}

/// An image without tag and digest, or with the tag `latest`, may change: it is pulled each time.
fn is_latest(image: &str) -> bool {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(n, d)| (n, Some(d)));
    // A colon before the last slash belongs to a registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none(),
    }
}

fn default_probe(probe: &mut Value) {
    set_default(probe, "timeoutSeconds", 1);
    set_default(probe, "periodSeconds", 10);
    set_default(probe, "successThreshold", 1);
    set_default(probe, "failureThreshold", 3);
    if let Some(grpc) = part_mut(probe, "grpc") {
        set_default(grpc, "service", "");
    }
    default_http_get(probe);
}

fn default_http_get(handler: &mut Value) {
    if let Some(get) = part_mut(handler, "httpGet") {
        set_default(get, "path", "/");
        set_default(get, "scheme", "HTTP");
    }
}

fn default_field_ref(holder: &mut Value) {
    if let Some(reference) = part_mut(holder, "fieldRef") {
        set_default(reference, "apiVersion", "v1");
    }
}

fn default_volume(volume: &mut Value) {
    if volume
        .as_object()
        .is_some_and(|v| v.keys().all(|key| key == "name"))
    {
        volume["emptyDir"] = json!({});
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = part_mut(volume, kind) {
            set_default(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(host_path) = part_mut(volume, "hostPath") {
        set_default(host_path, "type", "");
    }
    if let Some(downward) = part_mut(volume, "downwardAPI") {
        items_mut(downward, "items").for_each(default_field_ref);
    }
    if let Some(projected) = part_mut(volume, "projected") {
        items_mut(projected, "sources").for_each(default_projection);
    }
    if let Some(claim) =
        part_mut(volume, "ephemeral").and_then(|e| part_mut(e, "volumeClaimTemplate"))
    {
        set_default(child(claim, "spec"), "volumeMode", "Filesystem");
    }
}

fn default_projection(source: &mut Value) {
    if let Some(token) = part_mut(source, "serviceAccountToken") {
        set_default(token, "expirationSeconds", 3600);
    }
    if let Some(downward) = part_mut(source, "downwardAPI") {
        items_mut(downward, "items").for_each(default_field_ref);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_image_that_may_change_is_always_pulled() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.2", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
