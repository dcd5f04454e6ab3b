//! Events on Services: what went wrong with one, where its owner looks.

use crate::family::Failure;
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A Service's failure is told again at most as often as it is tried again, so that no limit is needed here.
const PATH: &str = "/api/v1/namespaces";

/// Where the worker says what failed.
#[derive(Debug, Clone)]
pub struct Events(UnboundedSender<Failure>);

impl Events {
    /// A pair: what is said here is to be posted by [`post`].
    pub fn new() -> (Events, UnboundedReceiver<Failure>) {
        let (sender, receiver) = unbounded_channel();
        (Events(sender), receiver)
    }

    /// Says that the kernel refused a Service's rules. Nobody may be listening any more.
    pub fn refused(&self, failure: &Failure) {
        let _ = self.0.send(failure.clone());
    }
}

/// Posts Events until nobody says anything any more. One that can't be posted is logged: the log has the failure, too.
pub async fn post(client: kube::Client, node: Arc<str>, mut failures: UnboundedReceiver<Failure>) {
    while let Some(failure) = failures.recv().await {
        let (namespace, name) = failure.service.parts();
        let event = event(&failure, &node);
        let request = http::Request::post(format!("{PATH}/{namespace}/events"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(event.to_string().into_bytes());
        let Ok(request) = request else { continue };
        if let Err(error) = client.request_text(request).await {
            tracing::warn!(%error, service = %failure.service, "the Event on {name} could not be posted");
        }
    }
}

fn event(failure: &Failure, node: &str) -> serde_json::Value {
    let (namespace, name) = failure.service.parts();
    let now = Timestamp::now();
    let time = now.to_string();
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "namespace": namespace, "name": format!("{name}.{:x}", now.as_nanosecond()) },
        "involvedObject": { "apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": name },
        "type": "Warning",
        "reason": "FailedToProgramRules",
        "message": format!("node {node} can't serve this Service: {}", failure.reason),
        "source": { "component": "kube-proxy", "host": node },
        "reportingComponent": "kube-proxy",
        "reportingInstance": node,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1
    })
}
