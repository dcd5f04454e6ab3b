//! A container.
//!
//! ```text
//! CreateContainer   StartContainer           its first process ends
//!      --> Created --------------> Running ------------------------> Exited --> (removed)
//!             '--- its program can't be started --------------------^
//! ```

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use cri_api::v1::{
    ContainerConfig, ContainerResources, ContainerState, ContainerStatus as CriStatus,
    ContainerUser, IdMapping, ImageSpec, LinuxContainerResources, LinuxContainerUser,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::image::{Digest, Hold};
use crate::spec::User;

/// What never changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub config: ContainerConfig,
    /// Its image's id.
    pub image_id: Digest,
    /// What CRI calls the image's reference: a name by digest if it has one, else the id.
    pub image_ref: String,
    /// Its image's layers, lowest first.
    pub layers: Vec<Digest>,
    /// The images that are mounted in it.
    #[serde(default)]
    pub image_mounts: Vec<ImageMount>,
    /// The image's volumes that no mount of the request takes the place of.
    #[serde(default)]
    pub volumes: Vec<String>,
    pub user: User,
    /// What StopContainer sends first.
    pub stop_signal: i32,
    pub created_at_ns: i64,
    /// Where its log goes, if anywhere.
    pub log_path: Option<PathBuf>,
    /// Its cgroup, from the hierarchies' roots.
    pub cgroup: String,
}

impl ContainerRecord {
    /// All the layers that it needs.
    pub fn all_layers(&self) -> impl Iterator<Item = &Digest> {
        self.layers
            .iter()
            .chain(self.image_mounts.iter().flat_map(|mount| &mount.layers))
    }

    /// What a request is known by when it is repeated: the name within the sandbox and the attempt.
    pub fn key(sandbox_id: &str, config: &ContainerConfig) -> String {
        let metadata = config.metadata.clone().unwrap_or_default();
        format!("{sandbox_id}_{}_{}", metadata.name, metadata.attempt)
    }
}

/// An image mounted in a container (CRI `Mount.image`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageMount {
    /// Where, as the request's mount says it.
    pub container_path: String,
    /// The image's layers, lowest first.
    pub layers: Vec<Digest>,
    /// What of the image; all of it if empty.
    pub sub_path: String,
    /// How its ids are mapped, as the request says it; not at all if empty.
    #[serde(default)]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(default)]
    pub gid_mappings: Vec<IdMapping>,
}

/// What changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ContainerStatus {
    Created,
    Running {
        pid: i32,
        started_at_ns: i64,
    },
    Exited {
        started_at_ns: i64,
        finished_at_ns: i64,
        exit_code: i32,
        /// In CRI's words: `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
        reason: String,
        message: String,
    },
}

impl ContainerStatus {
    /// In CRI's words.
    pub fn cri_state(&self) -> ContainerState {
        match self {
            Self::Created => ContainerState::ContainerCreated,
            Self::Running { .. } => ContainerState::ContainerRunning,
            Self::Exited { .. } => ContainerState::ContainerExited,
        }
    }
}

/// What a running container is signalled and entered by.
#[derive(Debug, Clone)]
pub struct Launched {
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
}

/// A container in memory.
#[derive(Debug)]
pub struct Container {
    pub record: ContainerRecord,
    /// Held by whoever starts or removes it.
    pub turn: tokio::sync::Mutex<()>,
    /// Keeps its layers.
    hold: Mutex<Hold>,
    pub(super) status: watch::Sender<ContainerStatus>,
    launched: Mutex<Option<Launched>>,
    /// The limits that are in force, once they have been changed.
    resources: Mutex<Option<LinuxContainerResources>>,
}

impl Container {
    pub(super) fn new(
        record: ContainerRecord,
        status: ContainerStatus,
        hold: Hold,
        resources: Option<LinuxContainerResources>,
    ) -> Self {
        Self {
            record,
            turn: tokio::sync::Mutex::new(()),
            hold: Mutex::new(hold),
            status: watch::Sender::new(status),
            launched: Mutex::new(None),
            resources: Mutex::new(resources),
        }
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    pub fn status(&self) -> ContainerStatus {
        self.status.borrow().clone()
    }

    /// Tells each change of the status.
    pub fn changes(&self) -> watch::Receiver<ContainerStatus> {
        self.status.subscribe()
    }

    /// The running process.
    pub fn launched(&self) -> Option<Launched> {
        self.launched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set_launched(&self, launched: Option<Launched>) {
        *self.launched.lock().unwrap_or_else(PoisonError::into_inner) = launched;
    }

    /// Lets its image's layers go, once it has been removed.
    pub fn release_layers(&self) {
        self.hold
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .release();
    }

    /// The limits in force.
    pub fn resources(&self) -> LinuxContainerResources {
        let changed = self
            .resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let asked = || {
            self.record
                .config
                .linux
                .as_ref()
                .and_then(|linux| linux.resources.clone())
        };
        changed.or_else(asked).unwrap_or_default()
    }

    pub(super) fn set_resources(&self, resources: LinuxContainerResources) {
        *self
            .resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(resources);
    }

    /// As CRI lists it.
    pub fn to_cri(&self) -> cri_api::v1::Container {
        let record = &self.record;
        let config = &record.config;
        cri_api::v1::Container {
            id: record.id.clone(),
            pod_sandbox_id: record.sandbox_id.clone(),
            metadata: config.metadata.clone(),
            image: config.image.clone(),
            image_ref: record.image_ref.clone(),
            state: self.status.borrow().cri_state() as i32,
            created_at: record.created_at_ns,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            image_id: record.image_id.to_string(),
        }
    }

    /// As CRI shows it in full.
    pub fn to_cri_status(&self) -> CriStatus {
        let record = &self.record;
        let config = &record.config;
        let status = self.status();
        let asked = config.image.clone().unwrap_or_default();
        let shown = if asked.user_specified_image.is_empty() {
            asked.image
        } else {
            asked.user_specified_image
        };
        let user = LinuxContainerUser {
            uid: record.user.uid.into(),
            gid: record.user.gid.into(),
            supplemental_groups: record.user.groups.iter().copied().map(i64::from).collect(),
        };
        let mut shown = CriStatus {
            id: record.id.clone(),
            metadata: config.metadata.clone(),
            state: status.cri_state() as i32,
            created_at: record.created_at_ns,
            image: Some(ImageSpec {
                image: shown,
                ..Default::default()
            }),
            image_ref: record.image_ref.clone(),
            image_id: record.image_id.to_string(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: record
                .log_path
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            resources: Some(ContainerResources {
                linux: Some(self.resources()),
                windows: None,
            }),
            user: Some(ContainerUser { linux: Some(user) }),
            stop_signal: config.stop_signal,
            ..Default::default()
        };
        match status {
            ContainerStatus::Created => {}
            ContainerStatus::Running { started_at_ns, .. } => shown.started_at = started_at_ns,
            ContainerStatus::Exited {
                started_at_ns,
                finished_at_ns,
                exit_code,
                reason,
                message,
            } => {
                shown.started_at = started_at_ns;
                shown.finished_at = finished_at_ns;
                shown.exit_code = exit_code;
                shown.reason = reason;
                shown.message = message;
            }
        }
        shown
    }
}
