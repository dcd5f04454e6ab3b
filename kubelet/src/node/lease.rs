//! The Lease in `kube-node-lease`: the heartbeat.

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};

use crate::config::Config;

const NAMESPACE: &str = "kube-node-lease";
/// After this many seconds without a renewal the node counts as lost.
const DURATION_SECONDS: i32 = 40;

pub struct Lease {
    api: Api<Object>,
    node_name: String,
    owner: Option<String>,
    made: bool,
}

impl Lease {
    pub fn new(client: kube::Client, config: &Config) -> Self {
        Self {
            api: Api::namespaced(client, NAMESPACE),
            node_name: config.node_name.clone(),
            owner: None,
            made: false,
        }
    }

    /// The Node's UID: the Lease goes with it.
    pub fn set_owner(&mut self, uid: Option<String>) {
        self.owner = uid;
    }

    pub async fn renew(&mut self) -> Result<(), kube::Error> {
        let now = MicroTime(Timestamp::now());
        if self.made {
            let patch = serde_json::json!({"spec": {"renewTime": now}});
            match self
                .api
                .patch(
                    &self.node_name,
                    &PatchParams::default(),
                    &Patch::Merge(&patch),
                )
                .await
            {
                Err(kube::Error::Api(status)) if status.code == 404 => self.made = false,
                other => return other.map(drop),
            }
        }
        let lease = self.object(now);
        match self.api.create(&PostParams::default(), &lease).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = serde_json::json!({"metadata": {"ownerReferences": lease.metadata.owner_references}, "spec": lease.spec});
                self.api
                    .patch(
                        &self.node_name,
                        &PatchParams::default(),
                        &Patch::Merge(&patch),
                    )
                    .await?;
            }
            Err(error) => return Err(error),
        }
        self.made = true;
        Ok(())
    }

    fn object(&self, now: MicroTime) -> Object {
        let owner = self.owner.clone().map(|uid| OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.node_name.clone(),
            uid,
            ..OwnerReference::default()
        });
        Object {
            metadata: ObjectMeta {
                name: Some(self.node_name.clone()),
                namespace: Some(NAMESPACE.into()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.node_name.clone()),
                lease_duration_seconds: Some(DURATION_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}
