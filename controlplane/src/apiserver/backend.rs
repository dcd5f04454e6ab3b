//! `pods/NAME/proxy` and `services/NAME/proxy`: plain HTTP to whoever is behind the name.
//!
//! The name may say a port, and a scheme before that: `web`, `web:8080`, `http:web:http`.

use std::net::{IpAddr, SocketAddr};

use http::StatusCode;
use http::header::HeaderValue;
use http::request::Parts;
use rand::RngExt;
use serde_json::Value;
use tokio::net::TcpStream;

use api::selector::LabelSelector;

use super::api::Api;
use super::cache::Filter;
use super::failure::{Failure, Result};
use super::relay::{self, Onward};
use super::reply::{Body, Reply};
use super::route::Target;

/// Whether a request is for a pod or Service itself.
pub fn is_proxied(target: &Target) -> bool {
    target.group.is_empty()
        && target.subresource == "proxy"
        && matches!(target.resource.as_str(), "pods" | "services")
}

/// Passes a request on, and the answer back.
///
/// # Errors
/// 404 without the pod or Service, 503 when nobody is behind it, 502 when they don't answer.
pub async fn forward(api: &Api, target: &Target, parts: Parts, body: Body) -> Result<Reply> {
    let (name, port) = split(&target.name)?;
    let address = if target.resource == "pods" {
        pod_address(api, target, name, port).await?
    } else {
        service_address(api, target, name, port).await?
    };
    if !is_proxyable(address.ip()) {
        return Err(Failure::bad_request("address not allowed"));
    }
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    let stream = relay::connected(connecting).await.map_err(|error| {
        let message = format!("error trying to reach service: dial tcp {address}: {error}");
        Failure::new(StatusCode::BAD_GATEWAY, "ServiceUnavailable", message)
    })?;
    let query = parts
        .uri
        .query()
        .map(|q| format!("?{q}"))
        .unwrap_or_default();
    let host = HeaderValue::from_str(&address.to_string()).map_err(Failure::internal)?;
    let onward = Onward {
        path: format!("/{}{query}", target.rest),
        method: None,
        host,
    };
    relay::send(stream, onward, parts, body).await
}

/// Whether an address can be a pod's. A status or a slice that says otherwise would lead to this machine itself.
fn is_proxyable(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}

/// A name and the port that it asks for, empty for the first.
fn split(text: &str) -> Result<(&str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name] => Ok((name, "")),
        [name, port] | ["http" | "", name, port] => Ok((name, port)),
        _ => Err(Failure::bad_request(format!(
            "invalid service request {text:?}"
        ))),
    }
}

async fn pod_address(api: &Api, target: &Target, name: &str, port: &str) -> Result<SocketAddr> {
    let pods = api
        .cache
        .resource("", "v1", "pods")
        .ok_or_else(Failure::no_such_path)?;
    let pod = api.read(pods, &target.namespace, name).await?.value();
    let address: IpAddr = api::object::text(&pod, "/status/podIP")
        .parse()
        .map_err(|_| Failure::bad_request("address not allowed"))?;
    let ports = api::object::list(&pod, "/spec/containers")
        .iter()
        .flat_map(|c| api::object::list(c, "/ports"));
    let number = match (port.parse::<u16>(), port) {
        (Ok(number), _) => Some(number),
        (Err(_), "") => ports
            .filter_map(|p| port_number(&p["containerPort"]))
            .next()
            .or(Some(80)),
        (Err(_), named) => ports
            .filter(|p| p["name"] == named)
            .find_map(|p| port_number(&p["containerPort"])),
    };
    let number =
        number.ok_or_else(|| Failure::bad_request(format!("pod {name} has no port {port:?}")))?;
    Ok((address, number).into())
}

/// One of the ready endpoints of a Service, as its EndpointSlices have them.
async fn service_address(api: &Api, target: &Target, name: &str, port: &str) -> Result<SocketAddr> {
    let services = api
        .cache
        .resource("", "v1", "services")
        .ok_or_else(Failure::no_such_path)?;
    let service = api.read(services, &target.namespace, name).await?.value();
    let ports = api::object::list(&service, "/spec/ports");
    let wanted = ports.iter().find(|p| {
        port.is_empty()
            || p["name"] == port
            || p["port"].as_u64().is_some_and(|n| n.to_string() == port)
    });
    let unavailable = |why: &str| {
        let message = format!("no {why} available for service {name:?}");
        Failure::unavailable(message)
    };
    let wanted = wanted.ok_or_else(|| unavailable(&format!("service port {port:?} found")))?;
    let port_name = wanted["name"].as_str().unwrap_or_default();
    let slices = api
        .cache
        .resource("discovery.k8s.io", "v1", "endpointslices")
        .ok_or_else(Failure::no_such_path)?;
    let selector =
        LabelSelector::from_map(&serde_json::json!({"kubernetes.io/service-name": name}));
    let filter = Filter {
        namespace: target.namespace.clone(),
        labels: Some(selector),
        fields: None,
    };
    let (slices, _) = slices.list(&filter, api.cache.applied());
    let ready: Vec<SocketAddr> = slices
        .iter()
        .flat_map(|slice| ready_addresses(&slice.value(), port_name))
        .collect();
    if ready.is_empty() {
        return Err(unavailable("endpoints"));
    }
    Ok(ready[rand::rng().random_range(0..ready.len())])
}

fn ready_addresses(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let port = api::object::list(slice, "/ports")
        .iter()
        .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
        .and_then(|p| port_number(&p["port"]));
    let Some(port) = port else { return Vec::new() };
    api::object::list(slice, "/endpoints")
        .iter()
        .filter(|e| e["conditions"]["ready"] != false)
        .filter_map(|e| e["addresses"][0].as_str()?.parse::<IpAddr>().ok())
        .map(|address| (address, port).into())
        .collect()
}

fn port_number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_say_a_port_and_plain_http() {
        assert_eq!(split("web").unwrap(), ("web", ""));
        assert_eq!(split("web:http").unwrap(), ("web", "http"));
        assert_eq!(split("http:web:80").unwrap(), ("web", "80"));
        assert_eq!(split(":web:").unwrap(), ("web", ""));
        assert!(split("https:web:443").is_err());
    }

    #[test]
    fn only_what_can_be_a_pods_address_is_called() {
        for address in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
        ] {
            assert!(!is_proxyable(address.parse().unwrap()), "{address}");
        }
        for address in ["10.244.0.5", "fd00::5"] {
            assert!(is_proxyable(address.parse().unwrap()), "{address}");
        }
    }
}
