//! What is served, for clients to find out: legacy discovery and the aggregated form.

use serde_json::{Value, json};

use super::config::Config;
use super::kind::Kind;
use super::kinds::kinds;
use super::reviews::REVIEWS;

/// Groups in the order in which clients should prefer them: kubectl takes the first that has a short name.
fn group_names() -> Vec<&'static str> {
    let mut names = vec!["apps"];
    let all = kinds()
        .iter()
        .map(|k| k.group)
        .chain(REVIEWS.iter().map(|r| r.group));
    for group in all {
        if !group.is_empty() && !names.contains(&group) {
            names.push(group);
        }
    }
    names.retain(|name| !versions(name).is_empty());
    names
}

/// Versions of a group, the preferred one first.
fn versions(group: &str) -> Vec<&'static str> {
    let stored = kinds()
        .iter()
        .filter(|k| k.group == group)
        .map(|k| k.version);
    let mut versions: Vec<&str> = stored.collect();
    versions.extend(REVIEWS.iter().filter(|r| r.group == group).map(|_| "v1"));
    versions.sort_unstable();
    versions.dedup();
    versions
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// `APIVersions`, at `/api`.
pub fn core_versions(config: &Config) -> Value {
    let address = config
        .listen
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `APIGroupList`, at `/apis`.
pub fn groups() -> Value {
    let groups: Vec<Value> = group_names().into_iter().map(api_group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `APIGroup`, at `/apis/GROUP`.
pub fn group(name: &str) -> Option<Value> {
    let known = group_names().into_iter().find(|g| *g == name)?;
    let mut group = json!({"kind": "APIGroup", "apiVersion": "v1"});
    for (field, value) in api_group(known).as_object()? {
        group[field] = value.clone();
    }
    Some(group)
}

fn api_group(name: &str) -> Value {
    let versions: Vec<Value> = versions(name)
        .into_iter()
        .map(|v| json!({"groupVersion": group_version(name, v), "version": v}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

/// `APIResourceList`, at `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resources(group: &str, version: &str) -> Option<Value> {
    if !versions(group).contains(&version) {
        return None;
    }
    let mut list: Vec<Value> = Vec::new();
    for kind in kinds()
        .iter()
        .filter(|k| k.group == group && k.version == version)
    {
        list.push(resource(kind));
        for sub in subresources(kind) {
            let mut item = json!({
                "name": format!("{}/{}", kind.plural, sub.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if let Some((group, version)) = sub.group_version {
                item["group"] = group.into();
                item["version"] = version.into();
            }
            list.push(item);
        }
    }
    for review in REVIEWS.iter().filter(|r| r.group == group) {
        list.push(json!({
            "name": review.plural, "singularName": review.kind.to_ascii_lowercase(), "namespaced": review.namespaced,
            "kind": review.kind, "verbs": ["create"],
        }));
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(group, version),
        "resources": list,
    }))
}

fn resource(kind: &Kind) -> Value {
    let mut item = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        item["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        item["categories"] = json!(kind.categories);
    }
    item
}

/// A subresource and what is sent to it.
struct Subresource {
    name: &'static str,
    kind: &'static str,
    /// Where that differs from the resource's own.
    group_version: Option<(&'static str, &'static str)>,
    verbs: &'static [&'static str],
}

fn subresources(kind: &Kind) -> Vec<Subresource> {
    const CHANGE: &[&str] = &["get", "patch", "update"];
    const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
    let mut list = Vec::new();
    if kind.has_status {
        list.push(Subresource {
            name: "status",
            kind: kind.kind,
            group_version: None,
            verbs: CHANGE,
        });
    }
    if kind.scale {
        let group_version = Some(("autoscaling", "v1"));
        list.push(Subresource {
            name: "scale",
            kind: "Scale",
            group_version,
            verbs: CHANGE,
        });
    }
    for name in kind.subresources {
        let (sub_kind, group_version, verbs): (_, _, &[&str]) = match *name {
            "binding" => ("Binding", None, &["create"]),
            "eviction" => ("Eviction", Some(("policy", "v1")), &["create"]),
            "token" => (
                "TokenRequest",
                Some(("authentication.k8s.io", "v1")),
                &["create"],
            ),
            "finalize" => (kind.kind, None, &["update"]),
            "log" => (kind.kind, None, &["get"]),
            "ephemeralcontainers" | "resize" => (kind.kind, None, CHANGE),
            "exec" => ("PodExecOptions", None, &["create", "get"]),
            "attach" => ("PodAttachOptions", None, &["create", "get"]),
            "portforward" => ("PodPortForwardOptions", None, &["create", "get"]),
            "proxy" => {
                let options = match kind.plural {
                    "nodes" => "NodeProxyOptions",
                    "pods" => "PodProxyOptions",
                    _ => "ServiceProxyOptions",
                };
                (options, None, PROXY)
            }
            _ => (kind.kind, None, CHANGE),
        };
        list.push(Subresource {
            name,
            kind: sub_kind,
            group_version,
            verbs,
        });
    }
    list.sort_by_key(|sub| sub.name);
    list
}

/// `APIGroupDiscoveryList` (apidiscovery.k8s.io/v2) of the core group or of the others.
pub fn aggregated(core: bool) -> Value {
    let names = if core { vec![""] } else { group_names() };
    let items: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = versions(name)
                .into_iter()
                .map(|v| aggregated_version(name, v))
                .collect();
            let metadata = if core {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": name, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

fn aggregated_version(group: &str, version: &str) -> Value {
    let kind_of = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let mut list: Vec<Value> = Vec::new();
    for kind in kinds()
        .iter()
        .filter(|k| k.group == group && k.version == version)
    {
        let mut item = json!({
            "resource": kind.plural,
            "responseKind": kind_of(group, version, kind.kind),
            "scope": scope(kind.namespaced),
            "singularResource": kind.singular,
            "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            item["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            item["categories"] = json!(kind.categories);
        }
        let subs: Vec<Value> = subresources(kind)
            .into_iter()
            .map(|sub| {
                let (sub_group, sub_version) = sub.group_version.unwrap_or((group, version));
                json!({
                    "subresource": sub.name,
                    "responseKind": kind_of(sub_group, sub_version, sub.kind),
                    "verbs": sub.verbs,
                })
            })
            .collect();
        if !subs.is_empty() {
            item["subresources"] = subs.into();
        }
        list.push(item);
    }
    for review in REVIEWS.iter().filter(|r| r.group == group) {
        list.push(json!({
            "resource": review.plural,
            "responseKind": kind_of(group, version, review.kind),
            "scope": scope(review.namespaced),
            "singularResource": review.kind.to_ascii_lowercase(),
            "verbs": ["create"],
        }));
    }
    json!({"version": version, "resources": list, "freshness": "Current"})
}

/// The paths of the index at `/`.
pub fn paths() -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
    for group in group_names() {
        paths.push(format!("/apis/{group}"));
        paths.extend(
            versions(group)
                .into_iter()
                .map(|version| format!("/apis/{group}/{version}")),
        );
    }
    paths.extend(
        [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/readyz",
            "/version",
        ]
        .map(String::from),
    );
    paths
}
