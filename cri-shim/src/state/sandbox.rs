//! A pod sandbox.
//!
//! ```text
//!            RunPodSandbox            StopPodSandbox, or the host restarted
//! (nothing) --> Creating --> Ready --> NotReady --> (removed)
//!                  '--- failed, or the server was killed: undone ---'
//! ```

use cri_api::v1::{PodSandboxConfig, PodSandboxState, PodSandboxStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::cni::CniResult;

/// What never changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    pub config: PodSandboxConfig,
    pub runtime_handler: String,
    pub created_at_ns: i64,
    /// The pod's cgroup, from the hierarchies' roots; its containers' are below.
    pub cgroup: String,
}

impl SandboxRecord {
    /// What a request is known by when it is repeated: the pod and the attempt.
    pub fn key(config: &PodSandboxConfig) -> String {
        let metadata = config.metadata.clone().unwrap_or_default();
        let parts = [
            &metadata.name,
            &metadata.namespace,
            &metadata.uid,
            &metadata.attempt.to_string(),
        ];
        parts.map(String::as_str).join("_")
    }
}

/// How far the pod's network is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The host's: nothing to do.
    Host,
    /// An ADD may have been begun: only a DEL makes sure.
    Unknown,
    /// Connected.
    Connected(Box<CniResult>),
    /// Disconnected, or never connected.
    Released,
}

/// What changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    pub phase: Phase,
    pub network: Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Creating,
    Ready,
    NotReady,
}

impl SandboxStatus {
    pub fn creating(network: Network) -> Self {
        Self {
            phase: Phase::Creating,
            network,
        }
    }

    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }
}

/// A sandbox in memory.
#[derive(Debug)]
pub struct Sandbox {
    pub record: SandboxRecord,
    /// Held by whoever stops or removes it.
    pub turn: Mutex<()>,
    /// Held by whoever starts the init of its shared pid namespace.
    pub init_turn: Mutex<()>,
    pub(super) status: watch::Sender<SandboxStatus>,
}

impl Sandbox {
    pub(super) fn new(record: SandboxRecord, status: SandboxStatus) -> Self {
        Self {
            record,
            turn: Mutex::new(()),
            init_turn: Mutex::new(()),
            status: watch::Sender::new(status),
        }
    }

    pub fn status(&self) -> SandboxStatus {
        self.status.borrow().clone()
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// As CRI shows it.
    pub fn to_cri(&self) -> PodSandboxStatus {
        use cri_api::v1::{LinuxPodSandboxStatus, Namespace, PodIp, PodSandboxNetworkStatus};
        let status = self.status();
        let config = &self.record.config;
        let mut network = PodSandboxNetworkStatus::default();
        if let Network::Connected(result) = &status.network {
            network.ip = result
                .primary_ip()
                .map(|ip| ip.to_string())
                .unwrap_or_default();
            network.additional_ips = result
                .additional_ips()
                .iter()
                .map(|ip| PodIp { ip: ip.to_string() })
                .collect();
        }
        let options = crate::spec::sandbox_namespaces_of(config);
        PodSandboxStatus {
            id: self.record.id.clone(),
            metadata: config.metadata.clone(),
            state: self.cri_state() as i32,
            created_at: self.record.created_at_ns,
            network: Some(network),
            linux: Some(LinuxPodSandboxStatus {
                namespaces: Some(Namespace {
                    options: Some(options),
                }),
            }),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: self.record.runtime_handler.clone(),
        }
    }

    /// Ready or not.
    pub fn cri_state(&self) -> PodSandboxState {
        if self.status.borrow().is_ready() {
            PodSandboxState::SandboxReady
        } else {
            PodSandboxState::SandboxNotready
        }
    }
}
