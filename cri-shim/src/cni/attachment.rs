//! What is connected to a network: one interface of one sandbox.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// One interface of one sandbox, as an ADD is given it (CNI 1.1 §2, Parameters).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The sandbox's id.
    pub container_id: String,
    /// The path that its network namespace is pinned at. For DEL it need not exist any more.
    pub netns: PathBuf,
    /// The interface's name inside the namespace, `eth0` for a pod.
    pub ifname: String,
    /// The pod, for plugins that ask.
    pub pod: PodIdentity,
    /// Arguments by capability (CNI conventions: `portMappings`, `bandwidth`, `dns`, `ips`, `mac`,
    /// `cgroupPath`, ...). A plugin sees those that its configuration declares.
    pub capability_args: Map<String, Value>,
}

/// Whose sandbox it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIdentity {
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.uid`
    pub uid: String,
}

/// Identifies an attachment among those of one network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The sandbox's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name inside the namespace.
    pub ifname: String,
}

/// A port of the host that leads to one of the pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// 1 to 65535
    pub host_port: u16,
    /// 1 to 65535
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`
    pub protocol: String,
    /// The host's address that it is bound to; all of them if absent.
    pub host_ip: Option<IpAddr>,
}

impl Attachment {
    /// An attachment without capability arguments.
    pub fn new(
        container_id: impl Into<String>,
        netns: impl Into<PathBuf>,
        ifname: impl Into<String>,
        pod: PodIdentity,
    ) -> Self {
        Self {
            container_id: container_id.into(),
            netns: netns.into(),
            ifname: ifname.into(),
            pod,
            capability_args: Map::new(),
        }
    }

    /// Adds `portMappings`; nothing if there are none.
    #[must_use]
    pub fn with_port_mappings(self, mappings: &[PortMapping]) -> Self {
        if mappings.is_empty() {
            return self;
        }
        let entry = |m: &PortMapping| {
            let mut entry = json!({
                "hostPort": m.host_port,
                "containerPort": m.container_port,
                "protocol": m.protocol.to_ascii_lowercase(),
            });
            if let Some(ip) = m.host_ip {
                entry["hostIP"] = json!(ip.to_string());
            }
            entry
        };
        self.with_capability("portMappings", mappings.iter().map(entry).collect())
    }

    /// Adds one capability's argument.
    #[must_use]
    pub fn with_capability(mut self, capability: &str, argument: Value) -> Self {
        self.capability_args.insert(capability.to_owned(), argument);
        self
    }

    /// What identifies this attachment.
    pub fn key(&self) -> AttachmentKey {
        AttachmentKey {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    /// `CNI_ARGS` as Kubernetes runtimes write it.
    pub(super) fn cni_args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.pod.namespace, self.pod.name, self.container_id, self.pod.uid
        )
    }
}
