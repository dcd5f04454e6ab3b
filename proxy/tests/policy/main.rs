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
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Policies enforced in a namespace until it is dropped.
pub struct Running {
    progress: watch::Receiver<Progress>,
    shutdown: CancellationToken,
    ended: std::sync::mpsc::Receiver<Result<(), Error>>,
}

/// Starts enforcing and waits until the rules stand.
pub fn start(api: &Api, namespace: &Namespace) -> Running {
    let config = Config::new("node");
    let progress = config.progress();
    let shutdown = CancellationToken::new();
    let (done, ended) = std::sync::mpsc::channel();
    let (token, api) = (shutdown.clone(), api.clone());
    namespace.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let run = async { proxy::policy::run(config, api.client(), token).await };
        let _ = done.send(runtime.block_on(run));
    });
    let running = Running {
        progress,
        shutdown,
        ended,
    };
    running.wait_for(|progress| progress.synced);
    running
}

impl Running {
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits for something; a minute is forever.
    pub fn wait_for(&self, holds: impl Fn(&Progress) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds(&self.progress.borrow()) {
            assert!(
                Instant::now() < deadline,
                "the policies stay at {:?}",
                self.progress()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes `changes` changes to the API and waits until they are taken.
    pub fn after(&self, changes: u64, change: impl FnOnce()) -> Progress {
        let before = self.progress().updates;
        change();
        self.wait_for(|progress| progress.updates >= before + changes && progress.synced);
        self.progress()
    }

    pub fn stop(self) -> Result<(), Error> {
        self.shutdown.cancel();
        self.ended
            .recv_timeout(Duration::from_secs(20))
            .expect("it ends")
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
