//! NetworkPolicy with a real kernel: an API in memory, packets between network namespaces. Needs root and `ip`, `nft`.

#[allow(dead_code, reason = "shared with the Services' tests")]
#[path = "../service/api.rs"]
mod api;
mod behaviour;
#[allow(dead_code, reason = "shared with the Services' tests")]
#[path = "../service/lab.rs"]
mod lab;
mod matrix;
mod measure;
mod plain;
mod scale;

use api::Api;
use lab::{Lab, Namespace};
use proxy::policy::{Config, Error, Progress};
use serde_json::{Value, json};

pub type Running = lab::Running<Progress, Error>;

/// Starts enforcing and waits until the rules stand.
pub fn start(api: &Api, namespace: &Namespace) -> Running {
    let (config, api) = (Config::new("node"), api.clone());
    let running = Running::start(namespace, config.progress(), move |shutdown| {
        proxy::policy::run(config, api.client(), shutdown)
    });
    running.wait_for(|progress| progress.synced);
    running
}

impl Running {
    /// Makes `changes` changes to the API and waits until they are taken.
    pub fn after(&self, changes: u64, change: impl FnOnce()) -> Progress {
        let before = self.progress().updates;
        change();
        self.wait_for(|progress| progress.updates >= before + changes && progress.synced);
        self.progress()
    }
}

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({ "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A running pod with the lab's addresses, and the number of its port `http`.
pub fn pod(lab: &Lab, index: usize, namespace: &str, labels: Value, http: u16) -> Value {
    let pod = &lab.pods[index];
    json!({
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": pod.name, "labels": labels },
        "spec": { "nodeName": "node", "containers": [{ "ports": [{ "name": "http", "containerPort": http }] }] },
        "status": { "phase": "Running", "podIP": pod.address, "podIPs": [{ "ip": pod.address }, { "ip": pod.address6 }] }
    })
}

pub fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({ "kind": "NetworkPolicy", "metadata": { "namespace": namespace, "name": name }, "spec": spec })
}
