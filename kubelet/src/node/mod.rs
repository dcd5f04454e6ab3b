//! The Node object and its Lease: this machine, as the cluster sees it.

mod facts;
mod lease;
mod pod_cidr;
mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::runtime::Cri;

pub use facts::{Machine, cgroup_unified};
use lease::Lease;
pub use pod_cidr::hand_on as hand_on_pod_cidr;

/// How often the status is written when nothing changes (upstream's nodeStatusReportFrequency).
const REPORT: Duration = Duration::from_secs(300);

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeHealth {
    /// `name://version`.
    pub version: String,
    /// What is wrong; empty: nothing.
    pub problems: Vec<String>,
    /// Runtime handlers, by name.
    pub handlers: Vec<cri_api::v1::RuntimeHandler>,
    /// Whether supplementalGroupsPolicy is heeded.
    pub supplemental_groups_policy: bool,
}

/// Keeps the Node object and the Lease.
pub struct NodeKeeper {
    /// What the kubelet was told.
    pub config: Arc<Config>,
    /// The API.
    pub client: kube::Client,
    /// The runtime.
    pub cri: Cri,
    /// The port on which the kubelet's API is served, 0 if it isn't.
    pub port: u16,
    /// Look at once.
    pub look: Arc<Notify>,
}

impl NodeKeeper {
    /// Keeps them until `shutdown`; `ready` is told once the node has been shown as Ready.
    pub async fn run(self, ready: watch::Sender<bool>, shutdown: CancellationToken) {
        let mut lease = Lease::new(self.client.clone(), &self.config);
        let mut machine = Machine::observe(&self.config);
        let mut written: Option<(Node, Instant)> = None;
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.look.notified() => {}
            }
            machine.refresh(&self.config);
            let health = self.runtime_health().await;
            let before = written.as_ref().map(|(node, _)| node);
            let due = written
                .as_ref()
                .is_none_or(|(_, at)| at.elapsed() >= REPORT);
            let node = status::node(&self.config, &machine, &health, self.port, before);
            let changed = before.is_none_or(|before| status::differs(before, &node));
            let healthy = health.problems.is_empty();
            // Until the runtime answers, it is asked often: a node should be ready the moment that it can be.
            wait = if healthy {
                self.config.lease_renewal
            } else {
                Duration::from_millis(200)
            };
            if changed || due {
                match self.write(&node, before.is_none()).await {
                    Ok(stored) => {
                        lease.set_owner(stored.metadata.uid.clone());
                        written = Some((node, Instant::now()));
                        if healthy {
                            ready.send_replace(true);
                        }
                    }
                    Err(error) => {
                        if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                            // Somebody deleted the node: it registers again.
                            written = None;
                        }
                        tracing::warn!(%error, "write the Node object; it will be tried again");
                        wait = Duration::from_millis(500).mul_f64(rand::random_range(0.75..1.25));
                    }
                }
            }
            if let Err(error) = lease.renew().await {
                tracing::warn!(%error, "renew the node's Lease; it will be tried again");
            }
        }
    }

    async fn write(&self, node: &Node, first: bool) -> Result<Node, kube::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        if first && self.config.register_node {
            match api.create(&PostParams::default(), node).await {
                // Some API servers drop the status of a created object: it is patched in any case.
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let labels = serde_json::json!({"metadata": {"labels": node.metadata.labels}});
                    api.patch(
                        &self.config.node_name,
                        &PatchParams::default(),
                        &Patch::Merge(&labels),
                    )
                    .await?;
                }
                Err(error) => return Err(error),
            }
        }
        let mut patch = serde_json::json!({"status": node.status});
        // The addresses of both families are of the same type, which is the key by which a patch would merge them.
        if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
            addresses.push(serde_json::json!({"$patch": "replace"}));
        }
        api.patch_status(
            &self.config.node_name,
            &PatchParams::default(),
            &Patch::Strategic(&patch),
        )
        .await
    }

    async fn runtime_health(&self) -> RuntimeHealth {
        let mut health = RuntimeHealth::default();
        match self
            .cri
            .version(cri_api::v1::VersionRequest::default())
            .await
        {
            Ok(version) => {
                health.version = format!("{}://{}", version.runtime_name, version.runtime_version)
            }
            Err(error) => {
                health.version = "Unknown://Unknown".into();
                health
                    .problems
                    .push(format!("container runtime is down: {}", error.message()));
                return health;
            }
        }
        match self.cri.status(cri_api::v1::StatusRequest::default()).await {
            Ok(reply) => {
                for condition in reply.status.unwrap_or_default().conditions {
                    if !condition.status
                        && matches!(condition.r#type.as_str(), "RuntimeReady" | "NetworkReady")
                    {
                        let text = format!(
                            "{} is not ready: {} {}",
                            condition.r#type, condition.reason, condition.message
                        );
                        health.problems.push(text);
                    }
                }
                health.handlers = reply.runtime_handlers;
                health.supplemental_groups_policy =
                    reply.features.is_some_and(|f| f.supplemental_groups_policy);
            }
            Err(error) => health.problems.push(format!(
                "container runtime status check failed: {}",
                error.message()
            )),
        }
        health
    }
}

/// The Node object without a status.
fn skeleton(config: &Config) -> Node {
    let name = config.node_name.clone();
    let mut labels = config.node_labels.clone();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/arch"), facts::architecture().into());
        labels.insert(format!("{prefix}/os"), "linux".into());
    }
    labels.insert("kubernetes.io/hostname".into(), name.clone());
    Node {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: None,
    }
}
