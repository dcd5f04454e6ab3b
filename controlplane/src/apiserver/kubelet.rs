//! What only a node's kubelet can answer: logs, exec, attach, port-forward, and its own API behind `nodes/NAME/proxy`.
//!
//! The request is sent on over TLS with this server's client certificate.

use std::sync::Arc;

use http::header::{HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::api::Api;
use super::failure::{Failure, Result};
use super::query::Query;
use super::relay::{self, Onward};
use super::reply::{self, Body, Reply};
use super::route::Target;

/// How much of a kubelet's error is read.
const ERROR_LIMIT: usize = 64 << 10;

/// Calls kubelets.
pub struct Kubelets {
    tls: TlsConnector,
    default_port: u16,
}

impl Kubelets {
    /// `tls` has this server's client certificate, and the authority of the kubelets'.
    pub fn new(mut tls: ClientConfig, default_port: u16) -> Self {
        // Upgrades are HTTP/1.1's.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            tls: TlsConnector::from(Arc::new(tls)),
            default_port,
        }
    }

    /// Connects to the kubelet of `node`.
    async fn connect(&self, node: &Value) -> Result<TlsStream<TcpStream>> {
        let (host, port) = self.address(node)?;
        let connecting = async {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let server = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
            self.tls.connect(server, stream).await
        };
        relay::connected(connecting).await.map_err(|error| {
            let name = api::object::name(node);
            Failure::internal(format!("dial the kubelet of node {name}: {error}"))
        })
    }

    /// Where a node's kubelet listens.
    fn address(&self, node: &Value) -> Result<(String, u16)> {
        let addresses = api::object::list(node, "/status/addresses");
        let of_type = |wanted: &str| {
            addresses
                .iter()
                .find(|a| a["type"] == wanted)
                .and_then(|a| a["address"].as_str())
        };
        let host = [
            "InternalIP",
            "Hostname",
            "InternalDNS",
            "ExternalIP",
            "ExternalDNS",
        ]
        .into_iter()
        .find_map(of_type);
        let host = host.ok_or_else(|| {
            Failure::internal(format!(
                "node {} has told no address yet",
                api::object::name(node)
            ))
        })?;
        let port = api::object::number(node, "/status/daemonEndpoints/kubeletEndpoint/Port");
        let port = port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
            .unwrap_or(self.default_port);
        Ok((host.to_owned(), port))
    }
}

/// Whether a kubelet answers requests like this one.
pub fn is_forwarded(target: &Target) -> bool {
    target.group.is_empty()
        && matches!(
            (target.resource.as_str(), target.subresource.as_str()),
            ("pods", "log" | "exec" | "attach" | "portforward") | ("nodes", "proxy")
        )
}

/// Passes a request on, and the answer back.
///
/// # Errors
/// 404 without the pod or node, 400 for a request that names no container of the pod, the kubelet's own errors.
pub async fn forward(
    api: &Api,
    target: &Target,
    query: &Query,
    parts: Parts,
    body: Body,
) -> Result<Reply> {
    let (node_name, path) = if target.resource == "nodes" {
        let text = parts
            .uri
            .query()
            .map(|q| format!("?{q}"))
            .unwrap_or_default();
        (target.name.clone(), format!("/{}{text}", target.rest))
    } else {
        let pods = api
            .cache
            .resource("", "v1", "pods")
            .ok_or_else(Failure::no_such_path)?;
        let pod = api
            .read(pods, &target.namespace, &target.name)
            .await?
            .value();
        let node = api::object::text(&pod, "/spec/nodeName").to_owned();
        if node.is_empty() {
            // A pod that is nowhere yet has printed nothing; upstream answers the same.
            return match target.subresource.as_str() {
                "log" => Ok(reply::text(StatusCode::OK, "")),
                _ => Err(Failure::bad_request(format!(
                    "pod {} does not have a host assigned",
                    target.name
                ))),
            };
        }
        let path = pod_path(target, query, &pod)?;
        (node, path)
    };
    let nodes = api
        .cache
        .resource("", "v1", "nodes")
        .ok_or_else(Failure::no_such_path)?;
    let node = nodes
        .get("", &node_name)
        .ok_or_else(|| Failure::not_found(nodes.kind, &node_name))?
        .value();
    let stream = api.kubelets.connect(&node).await?;
    let onward = Onward {
        path,
        // A pod's streams are read with GET, whatever a client uses.
        method: (target.resource == "pods" && !parts.headers.contains_key(UPGRADE))
            .then_some(Method::GET),
        host: HeaderValue::from_static("kubelet"),
    };
    let response = relay::send(stream, onward, parts, body).await?;
    let status = response.status();
    if target.resource == "pods" && (status.is_client_error() || status.is_server_error()) {
        return Err(kubelet_failure(response).await);
    }
    Ok(response)
}

/// What the kubelet says is wrong, as a Status.
async fn kubelet_failure(response: Reply) -> Failure {
    let code = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if text.len() > ERROR_LIMIT {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let message = match serde_json::from_str::<Value>(&text) {
        Ok(status) if status["kind"] == "Status" => {
            api::object::text(&status, "/message").to_owned()
        }
        _ if text.is_empty() => format!("the kubelet answered {code}"),
        _ => text,
    };
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        _ => "InternalError",
    };
    Failure::new(code, reason, message)
}

/// The kubelet's path for a pod's subresource.
fn pod_path(target: &Target, query: &Query, pod: &Value) -> Result<String> {
    let place = format!("{}/{}", target.namespace, target.name);
    let mut parameters = Parameters::default();
    if target.subresource == "portforward" {
        for ports in query.all("ports") {
            parameters.push("port", ports);
        }
        return Ok(format!("/portForward/{place}{}", parameters.text()));
    }
    let container = container(target, query, pod)?;
    if target.subresource == "log" {
        for name in [
            "follow",
            "previous",
            "timestamps",
            "sinceSeconds",
            "sinceTime",
            "tailLines",
            "limitBytes",
            "stream",
        ] {
            if let Some(value) = query.get(name) {
                parameters.push(name, value);
            }
        }
        return Ok(format!(
            "/containerLogs/{place}/{container}{}",
            parameters.text()
        ));
    }
    // The kubelet has names of its own for these.
    for (name, theirs) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if query.flag(name) {
            parameters.push(theirs, "1");
        }
    }
    for word in query.all("command") {
        parameters.push("command", word);
    }
    Ok(format!(
        "/{}/{place}/{container}{}",
        target.subresource,
        parameters.text()
    ))
}

/// The container that the request names, or the pod's only one.
fn container(target: &Target, query: &Query, pod: &Value) -> Result<String> {
    let names = |pointer: &str| -> Vec<String> {
        let containers = api::object::list(pod, pointer).iter();
        containers
            .filter_map(|c| c["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (main, init) = (names("/spec/containers"), names("/spec/initContainers"));
    let all = || {
        [
            main.clone(),
            init.clone(),
            names("/spec/ephemeralContainers"),
        ]
        .concat()
    };
    match query.get("container") {
        Some(name) if all().iter().any(|n| n == name) => Ok(name.to_owned()),
        Some(name) => {
            let pod = &target.name;
            Err(Failure::bad_request(format!(
                "container {name} is not valid for pod {pod}"
            )))
        }
        None => match main.as_slice() {
            [only] => Ok(only.clone()),
            several => {
                let mut message = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    target.name,
                    several.join(" ")
                );
                if !init.is_empty() {
                    message.push_str(&format!(
                        " or one of the init containers: [{}]",
                        init.join(" ")
                    ));
                }
                Err(Failure::bad_request(message))
            }
        },
    }
}

/// A query string in the making.
#[derive(Default)]
struct Parameters(String);

impl Parameters {
    fn push(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    self.0.push(char::from(byte))
                }
                other => self.0.push_str(&format!("%{other:02X}")),
            }
        }
    }

    fn text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(subresource: &str) -> Target {
        Target {
            namespace: "default".into(),
            name: "web".into(),
            resource: "pods".into(),
            subresource: subresource.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_pods_streams_have_the_kubelets_names() {
        let pod =
            json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        let query =
            Query::parse("command=sh&command=-c&command=echo+%26&stdin=true&stdout=true&tty=false");
        let path = pod_path(&target("exec"), &query, &pod).unwrap();
        assert_eq!(
            path,
            "/exec/default/web/a?input=1&output=1&command=sh&command=-c&command=echo%20%26"
        );
        let path = pod_path(
            &target("log"),
            &Query::parse("container=i&follow=true&tailLines=5"),
            &pod,
        )
        .unwrap();
        assert_eq!(path, "/containerLogs/default/web/i?follow=true&tailLines=5");
        let path = pod_path(&target("portforward"), &Query::parse("ports=80"), &pod).unwrap();
        assert_eq!(path, "/portForward/default/web?port=80");
    }

    #[test]
    fn a_container_must_be_named_when_there_are_several() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let failure = pod_path(&target("log"), &Query::default(), &pod).unwrap_err();
        assert_eq!(
            failure.message,
            "a container name must be specified for pod web, choose one of: [a b]"
        );
        assert!(pod_path(&target("log"), &Query::parse("container=c"), &pod).is_err());
    }
}
