//! The lists and statuses of sandboxes and containers.

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::v1::{
    Container as CriContainer, ContainerEventType, ContainerFilter, ContainerStatusRequest,
    ContainerStatusResponse, PodSandbox, PodSandboxFilter, PodSandboxStatusRequest,
    PodSandboxStatusResponse,
};
use serde_json::json;

use super::Error;
use crate::runtime::Runtime;
use crate::state::{Container, ContainerStatus, Sandbox, now_ns};

impl Runtime {
    /// The sandboxes that a filter lets through.
    pub fn list_pod_sandbox(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let passes = |sandbox: &Arc<Sandbox>| {
            sandbox.id().starts_with(&filter.id)
                && filter
                    .state
                    .as_ref()
                    .is_none_or(|state| state.state() == sandbox.cri_state())
                && selects(&filter.label_selector, &sandbox.record.config.labels)
        };
        let shown = |sandbox: Arc<Sandbox>| {
            let status = sandbox.to_cri();
            PodSandbox {
                id: status.id,
                metadata: status.metadata,
                state: status.state,
                created_at: status.created_at,
                labels: status.labels,
                annotations: status.annotations,
                runtime_handler: status.runtime_handler,
            }
        };
        self.state
            .sandboxes()
            .into_iter()
            .filter(passes)
            .map(shown)
            .collect()
    }

    /// The containers that a filter lets through.
    pub fn list_containers(&self, filter: Option<ContainerFilter>) -> Vec<CriContainer> {
        let filter = filter.unwrap_or_default();
        let passes = |container: &Arc<Container>| {
            container.id().starts_with(&filter.id)
                && container
                    .record
                    .sandbox_id
                    .starts_with(&filter.pod_sandbox_id)
                && filter
                    .state
                    .as_ref()
                    .is_none_or(|state| state.state() == container.status().cri_state())
                && selects(&filter.label_selector, &container.record.config.labels)
        };
        self.state
            .containers()
            .into_iter()
            .filter(passes)
            .map(|container| container.to_cri())
            .collect()
    }

    /// CRI PodSandboxStatus.
    pub fn pod_sandbox_status(
        &self,
        request: &PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Error> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let containers = self.state.containers_of(sandbox.id());
        let info = if request.verbose {
            self.sandbox_info(&sandbox, &containers)
        } else {
            HashMap::new()
        };
        Ok(PodSandboxStatusResponse {
            status: Some(sandbox.to_cri()),
            info,
            containers_statuses: containers
                .iter()
                .map(|container| container.to_cri_status())
                .collect(),
            timestamp: now_ns(),
        })
    }

    /// What `crictl inspectp` shows. There is no process of the sandbox's own: `pid` is a running container's, or 0.
    fn sandbox_info(
        &self,
        sandbox: &Sandbox,
        containers: &[Arc<Container>],
    ) -> HashMap<String, String> {
        let pid = containers
            .iter()
            .find_map(|container| container.launched())
            .map_or(0, |launched| launched.pid);
        let status = sandbox.status();
        let info = json!({
            "pid": pid,
            "netNamespace": self.netns_path(sandbox.id()),
            "cgroup": sandbox.record.cgroup,
            "network": status.network,
            "config": sandbox.record.config,
        });
        HashMap::from([("info".to_owned(), info.to_string())])
    }

    /// CRI ContainerStatus.
    pub fn container_status(
        &self,
        request: &ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Error> {
        let container = self.container(&request.container_id)?;
        let mut response = ContainerStatusResponse {
            status: Some(container.to_cri_status()),
            info: HashMap::new(),
        };
        if request.verbose {
            let pid = match container.status() {
                ContainerStatus::Running { pid, .. } => pid,
                _ => 0,
            };
            let info = json!({
                "sandboxID": container.record.sandbox_id,
                "pid": pid,
                "cgroup": container.record.cgroup,
                "runtimeSpec": self.read_spec(container.id()).ok(),
                "config": container.record.config,
            });
            response.info.insert("info".to_owned(), info.to_string());
        }
        Ok(response)
    }

    /// Tells of a container's change.
    pub(super) fn tell_of(&self, container: &Container, kind: ContainerEventType) {
        match self.state.sandbox(&container.record.sandbox_id) {
            Some(sandbox) => self.tell(container.id(), kind, &sandbox),
            None => self.events.add(container.id(), kind, |_| {}),
        }
    }

    /// Tells of a change in a sandbox.
    pub(super) fn tell(&self, id: &str, kind: ContainerEventType, sandbox: &Sandbox) {
        self.events.add(id, kind, |event| {
            event.pod_sandbox_status = Some(sandbox.to_cri());
            let containers = self.state.containers_of(sandbox.id());
            event.containers_statuses = containers
                .iter()
                .map(|container| container.to_cri_status())
                .collect();
        });
    }
}

/// Whether every label that is asked for is there with its value.
pub(super) fn selects(
    selector: &HashMap<String, String>,
    labels: &HashMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
