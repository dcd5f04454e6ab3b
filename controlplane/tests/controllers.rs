//! Controllers and scheduler against a real API server, with a kubelet of the test's own that runs nothing.

use std::net::SocketAddr;
use std::time::Duration;

use controlplane::apiserver::{Config, Server};
use controlplane::{controllers, scheduler};
use kube::Client;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    server: Server,
    client: Client,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config::new(folder.path());
        config.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        let server = Server::start(config).await.expect("an API server");
        let client = server.client("admin", &["system:masters"]);
        let stop = CancellationToken::new();
        let config = controllers::Config {
            node_mask_sizes: controllers::MaskSizes::default(),
            cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a range")],
            ca_pem: server.pki().ca().to_owned(),
        };
        tokio::spawn(controllers::run(config, client.clone(), stop.clone()));
        tokio::spawn(scheduler::run(client.clone(), stop.clone()));
        Self {
            server,
            client,
            stop,
            _folder: folder,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.server.shutdown().await;
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value, kube::Error> {
        let content = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content);
        self.client
            .request(
                request
                    .body(body.to_string().into_bytes())
                    .expect("a request"),
            )
            .await
    }

    async fn get(&self, path: &str) -> Value {
        self.client
            .request(
                http::Request::get(path)
                    .body(Vec::new())
                    .expect("a request"),
            )
            .await
            .unwrap_or(Value::Null)
    }

    async fn add_node(&self, name: &str) {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        self.send("POST", "/api/v1/nodes", &node)
            .await
            .expect("a node");
        let status = json!({ "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" }, "capacity": { "cpu": "4", "memory": "8Gi", "pods": "110" },
            "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": api::time::seconds(jiff::Timestamp::now()) }] } });
        self.send("PATCH", &format!("/api/v1/nodes/{name}/status"), &status)
            .await
            .expect("a status");
    }

    /// What a kubelet would do: bound pods become ready, deleted ones go.
    async fn act_as_kubelet(&self) {
        let mut next = 1;
        for pod in self.get("/api/v1/pods").await["items"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let name = pod["metadata"]["name"].as_str().expect("a name");
            let path = format!(
                "/api/v1/namespaces/{}/pods/{name}",
                pod["metadata"]["namespace"].as_str().expect("a namespace")
            );
            if pod["spec"]["nodeName"].is_null() {
                continue;
            }
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                let _ = self
                    .send("DELETE", &path, &json!({ "gracePeriodSeconds": 0 }))
                    .await;
            } else if pod["status"]["phase"] != "Running" {
                next += 1;
                let status = json!({ "status": { "phase": "Running", "podIP": format!("10.244.0.{next}"), "podIPs": [{ "ip": format!("10.244.0.{next}") }],
                    "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": api::time::seconds(jiff::Timestamp::now()) }] } });
                let _ = self.send("PATCH", &format!("{path}/status"), &status).await;
            }
        }
    }

    async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let start = tokio::time::Instant::now();
        while !holds(self).await {
            assert!(
                start.elapsed() < PATIENCE,
                "not true in {PATIENCE:?}: {what}"
            );
            self.act_as_kubelet().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn count(&self, path: &str) -> usize {
        self.get(path).await["items"].as_array().map_or(0, Vec::len)
    }
}

fn deployment(replicas: u32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": image, "ports": [{ "name": "http", "containerPort": 8080 }] }] } } },
    })
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dweb";

async fn rolled_out(cluster: &Cluster, replicas: i64) -> bool {
    let status = cluster.get(&format!("{DEPLOYMENTS}/web")).await["status"].clone();
    let progressing = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "Progressing");
    status["availableReplicas"] == replicas
        && status["updatedReplicas"] == replicas
        && status["replicas"] == replicas
        && progressing.is_some_and(|c| c["reason"] == "NewReplicaSetAvailable")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_rolls_out_changes_scales_and_goes_with_all_it_owns() {
    let cluster = Cluster::start().await;
    cluster.add_node("n1").await;
    cluster
        .send("POST", DEPLOYMENTS, &deployment(3, "a:1"))
        .await
        .expect("a Deployment");
    cluster
        .eventually("three pods are available", async |c| rolled_out(c, 3).await)
        .await;
    assert_eq!(cluster.count(PODS).await, 3, "no pod too many was made");

    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] } });
    cluster
        .send("POST", "/api/v1/namespaces/default/services", &service)
        .await
        .expect("a Service");
    cluster
        .eventually("three endpoints", async |c| {
            c.get(SLICES).await["items"][0]["endpoints"]
                .as_array()
                .is_some_and(|e| e.len() == 3)
        })
        .await;

    cluster.send("PATCH", &format!("{DEPLOYMENTS}/web"), &json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "a:2" }] } } } })).await.expect("a change");
    cluster
        .eventually("the new template is rolled out", async |c| {
            rolled_out(c, 3).await
                && c.get(PODS).await["items"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .all(|pod| pod["spec"]["containers"][0]["image"] == "a:2")
        })
        .await;
    assert_eq!(
        cluster.count(SETS).await,
        2,
        "the old ReplicaSet is history"
    );
    assert_eq!(
        cluster.get(&format!("{DEPLOYMENTS}/web")).await["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "2"
    );

    cluster
        .send(
            "PATCH",
            &format!("{DEPLOYMENTS}/web/scale"),
            &json!({ "spec": { "replicas": 5 } }),
        )
        .await
        .expect("a scale");
    cluster
        .eventually("five pods are available", async |c| rolled_out(c, 5).await)
        .await;

    cluster
        .send(
            "DELETE",
            &format!("{DEPLOYMENTS}/web"),
            &json!({ "propagationPolicy": "Foreground" }),
        )
        .await
        .expect("a deletion");
    cluster
        .eventually("all that it owned is gone", async |c| {
            c.count(DEPLOYMENTS).await == 0 && c.count(SETS).await == 0 && c.count(PODS).await == 0
        })
        .await;
    cluster
        .send(
            "DELETE",
            "/api/v1/namespaces/default/services/web",
            &json!({}),
        )
        .await
        .expect("a deletion");
    cluster
        .eventually("its slices are gone", async |c| c.count(SLICES).await == 0)
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_addresses_and_a_pod_that_fits_nowhere_waits_until_it_does() {
    let cluster = Cluster::start().await;
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "c", "image": "a", "resources": { "requests": { "cpu": "3" } } }] } });
    cluster
        .eventually("the default ServiceAccount is there", async |c| {
            c.count("/api/v1/namespaces/default/serviceaccounts").await == 1
        })
        .await;
    cluster.send("POST", PODS, &pod).await.expect("a pod");
    cluster
        .eventually("its status says why it waits", async |c| {
            c.get(&format!("{PODS}/p")).await["status"]["conditions"][0]["message"]
                == "no nodes available to schedule pods"
        })
        .await;
    cluster.add_node("n1").await;
    cluster
        .eventually("it is placed", async |c| {
            c.get(&format!("{PODS}/p")).await["spec"]["nodeName"] == "n1"
        })
        .await;
    cluster
        .eventually("the node has pod addresses", async |c| {
            c.get("/api/v1/nodes/n1").await["spec"]["podCIDR"] == "10.244.0.0/24"
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_takes_all_in_it_along() {
    let cluster = Cluster::start().await;
    cluster
        .send(
            "POST",
            "/api/v1/namespaces",
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x" } }),
        )
        .await
        .expect("a namespace");
    cluster
        .eventually("it has the CA", async |c| {
            c.get("/api/v1/namespaces/x/configmaps/kube-root-ca.crt")
                .await["data"]["ca.crt"]
                .is_string()
        })
        .await;
    cluster
        .send("DELETE", "/api/v1/namespaces/x", &json!({}))
        .await
        .expect("a deletion");
    cluster
        .eventually("it is gone", async |c| {
            c.get("/api/v1/namespaces/x").await.is_null()
        })
        .await;
    cluster.stop().await;
}
