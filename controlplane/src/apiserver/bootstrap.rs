//! What every cluster has from the start: its first namespaces, and the way to the API server itself.

use std::net::IpAddr;

use http::StatusCode;
use serde_json::{Value, json};

use super::api::Api;
use super::auth::{User, policy};
use super::failure::{Failure, Result};
use super::managed::Manager;
use super::rest::{Part, Update, WriteOptions, create_object, update_object};
use super::roles;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
const SERVICE: &str = "kubernetes";
const MANAGER: &str = "kube-apiserver";

/// Makes what is missing. `address` and `port` are where the API server is reached from pods.
///
/// # Errors
/// When the store can't be written.
pub async fn ensure(api: &Api, address: IpAddr, port: u16) -> Result<()> {
    for name in NAMESPACES {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure_object(api, "", "namespaces", namespace, |_, _| {}).await?;
    }
    for role in roles::cluster_roles() {
        ensure_object(api, policy::GROUP, "clusterroles", role, |_, _| {}).await?;
    }
    let binding = roles::administrators();
    ensure_object(
        api,
        policy::GROUP,
        "clusterrolebindings",
        binding,
        |_, _| {},
    )
    .await?;
    ensure_service(api, port).await?;
    if address.is_loopback() {
        // No pod could reach it there, and no proxy could lead one there.
        return Ok(());
    }
    ensure_endpoints(api, address, port).await
}

async fn ensure_service(api: &Api, port: u16) -> Result<()> {
    let addresses: Vec<String> = api
        .services
        .first_addresses()
        .map(|a| a.to_string())
        .collect();
    let Some(first) = addresses.first() else {
        return Ok(());
    };
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": SERVICE,
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": first,
            "clusterIPs": [first],
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
            "sessionAffinity": "None",
        },
    });
    ensure_object(api, "", "services", service, |old, new| {
        old["spec"]["ports"] = new["spec"]["ports"].clone()
    })
    .await
}

async fn ensure_endpoints(api: &Api, address: IpAddr, port: u16) -> Result<()> {
    let endpoints = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": SERVICE,
            "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": address}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    });
    ensure_object(api, "", "endpoints", endpoints, |old, new| {
        old["subsets"] = new["subsets"].clone()
    })
    .await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": SERVICE,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": SERVICE},
        },
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    ensure_object(
        api,
        "discovery.k8s.io",
        "endpointslices",
        slice,
        |old, new| {
            for field in ["endpoints", "ports"] {
                old[field] = new[field].clone();
            }
        },
    )
    .await
}

/// Creates the object, or brings what `change` copies from it into the one that is there.
async fn ensure_object(
    api: &Api,
    group: &str,
    plural: &str,
    object: Value,
    change: impl Fn(&mut Value, &Value),
) -> Result<()> {
    let resource = api
        .cache
        .resource(group, "v1", plural)
        .ok_or_else(Failure::no_such_path)?;
    let user = User::authenticated("system:apiserver", ["system:masters"]);
    let options = WriteOptions::internal(MANAGER);
    let created = create_object(
        api,
        resource,
        object.clone(),
        &user,
        &options,
        &Manager::update(MANAGER, ""),
    )
    .await;
    match created {
        Err(failure) if failure.code == StatusCode::CONFLICT => {}
        other => return other.map(drop),
    }
    let update = Update {
        resource,
        namespace: api::object::namespace(&object),
        name: api::object::name(&object),
        part: Part::Whole,
        options: &options,
        manager: Manager::update(MANAGER, ""),
        user: &user,
    };
    let changed = |old: &Value| {
        let mut new = old.clone();
        change(&mut new, &object);
        (resource.kind.default)(&mut new);
        Ok(new)
    };
    update_object(api, &update, changed).await.map(drop)
}
