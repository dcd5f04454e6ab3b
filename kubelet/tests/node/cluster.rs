//! An API server, a runtime and a kubelet, in a folder and a mount namespace of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use controlplane::apiserver;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::fake_cri::FakeCri;

const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    pub cri: FakeCri,
    pub client: kube::Client,
    pub folder: tempfile::TempDir,
    pub server: apiserver::Server,
    kubelet: Option<(
        CancellationToken,
        tokio::task::JoinHandle<Result<(), kubelet::Error>>,
    )>,
}

/// Runs a test with a cluster. The mounts that a kubelet makes stay in a namespace of the test's own (needs root).
pub fn with_cluster<F: Future<Output = ()>>(test: impl FnOnce(Cluster) -> F) {
    let namespace = linux::namespace::unshare(&[linux::namespace::NamespaceKind::Mount]);
    namespace.expect("a mount namespace (needs root)");
    let private =
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).expect("mounts of one's own");
    // Threads are made after this one moved, so they are in its namespace.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let cluster = Cluster::start().await;
        test(cluster).await;
    });
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = apiserver::Config::new(folder.path().join("server"));
        config.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
        let server = apiserver::Server::start(config)
            .await
            .expect("an API server");
        let client = server.client("admin", &["system:masters"]);
        let cri = FakeCri::serve(&folder.path().join("cri.sock"));
        let mut cluster = Self {
            cri,
            client,
            folder,
            server,
            kubelet: None,
        };
        cluster.make("serviceaccounts", json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})).await;
        cluster.start_kubelet(false).await;
        cluster
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub async fn start_kubelet(&mut self, drain: bool) {
        let mut config = kubelet::Config::new("node", vec![Ipv4Addr::LOCALHOST.into()]);
        config.root_dir = self.path("kubelet");
        config.pod_logs_dir = self.path("logs/pods");
        config.container_logs_dir = self.path("logs/containers");
        config.cri_socket = self.path("cri.sock");
        config.static_pod_path = Some(self.path("manifests"));
        config.drain_on_shutdown = drain;
        let address = Ipv4Addr::LOCALHOST.into();
        let subject = controlplane::pki::Subject::kubelet_serving("node", &[address]);
        let serving = self
            .server
            .pki()
            .ensure("kubelet-serving", &subject)
            .expect("a certificate");
        config.server = Some(kubelet::ServerConfig {
            address,
            port: 0,
            cert_pem: serving.certificate,
            key_pem: serving.key,
            client_ca_pem: self.server.pki().ca().to_owned(),
            allowed_users: vec!["kube-apiserver-kubelet-client".to_owned()],
        });
        let stop = CancellationToken::new();
        let (ready, mut is_ready) = tokio::sync::watch::channel(false);
        let client = self.server.client("system:node:node", &["system:nodes"]);
        let task = tokio::spawn(kubelet::run_and_tell(config, client, stop.clone(), ready));
        tokio::time::timeout(PATIENCE, is_ready.wait_for(|ready| *ready))
            .await
            .expect("in time")
            .expect("ready");
        self.kubelet = Some((stop, task));
    }

    /// Ends the kubelet as `kill -9` would: nothing is told to anybody.
    pub fn kill_kubelet(&mut self) {
        if let Some((_, task)) = self.kubelet.take() {
            task.abort();
        }
    }

    pub async fn stop_kubelet(&mut self) {
        if let Some((stop, task)) = self.kubelet.take() {
            stop.cancel();
            tokio::time::timeout(PATIENCE, task)
                .await
                .expect("in time")
                .expect("no panic")
                .expect("no error");
        }
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub async fn make(&self, plural: &str, object: Value) {
        let request = http::Request::post(format!("/api/v1/namespaces/default/{plural}"))
            .header("content-type", "application/json")
            .body(object.to_string().into_bytes())
            .expect("a request");
        self.client.request_text(request).await.expect("made");
    }

    /// Makes a pod on the node.
    pub async fn pod(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!("node");
        // Nobody publishes the root certificate here.
        spec["automountServiceAccountToken"] = json!(false);
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        self.pods()
            .create(&PostParams::default(), &pod)
            .await
            .expect("a pod")
    }

    /// Waits until a pod is as said.
    pub async fn until(&self, name: &str, condition: impl Condition<Pod>) -> Option<Pod> {
        let waiting = await_condition(self.pods(), name, condition);
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(pod) => pod.expect("a watch"),
            Err(_) => {
                let pod = self.pods().get_opt(name).await;
                let status = pod
                    .map(|p| p.and_then(|p| p.status))
                    .map(|s| serde_json::to_string(&s).unwrap_or_default());
                panic!(
                    "{name} did not become as expected: {status:?}\ncalls: {:?}",
                    self.cri.state.lock().unwrap().calls
                )
            }
        }
    }

    pub async fn until_running(&self, name: &str) -> Pod {
        self.until(name, |pod: Option<&Pod>| phase(pod) == Some("Running"))
            .await
            .expect("a pod")
    }

    pub async fn until_gone(&self, name: &str) {
        self.until(name, |pod: Option<&Pod>| pod.is_none()).await;
    }

    pub async fn delete(&self, name: &str, grace_seconds: Option<u32>) {
        let params = DeleteParams {
            grace_period_seconds: grace_seconds,
            ..DeleteParams::default()
        };
        self.pods().delete(name, &params).await.expect("deleted");
    }

    pub async fn node(&self) -> Node {
        Api::all(self.client.clone())
            .get("node")
            .await
            .expect("a node")
    }

    /// Waits until events of a pod have all of these reasons.
    pub async fn until_events(&self, name: &str, wanted: &[&str]) {
        let api: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let events = api
                .list(&ListParams::default())
                .await
                .expect("events")
                .items;
            let of_pod = |e: &&Event| e.involved_object.name.as_deref() == Some(name);
            let reasons: Vec<&str> = events
                .iter()
                .filter(of_pod)
                .filter_map(|e| e.reason.as_deref())
                .collect();
            if wanted.iter().all(|reason| reasons.contains(reason)) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{reasons:?}, not {wanted:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub fn phase(pod: Option<&Pod>) -> Option<&str> {
    pod?.status.as_ref()?.phase.as_deref()
}

/// A status as JSON, for easy asking.
pub fn status(pod: &Pod) -> Value {
    serde_json::to_value(&pod.status).expect("JSON")
}

pub fn condition(pod: Option<&Pod>, kind: &str) -> bool {
    let conditions = pod.and_then(|p| p.status.as_ref()?.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == kind && c.status == "True"))
}

/// Waits until something that no watch tells is so.
pub async fn eventually(what: &str, check: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !check() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
