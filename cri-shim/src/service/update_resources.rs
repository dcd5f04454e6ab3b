//! UpdateContainerResources and UpdatePodSandboxResources: limits changed while they are in force.

use std::sync::Arc;

use cri_api::v1::{
    LinuxContainerResources, UpdateContainerResourcesRequest, UpdateContainerResourcesResponse,
    UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse,
};

use super::Error;
use crate::runtime::{Runtime, blocking};
use crate::spec;
use crate::state::ContainerStatus;

impl Runtime {
    /// CRI UpdateContainerResources. A container that doesn't run gets the limits when it is started.
    pub async fn update_container_resources(
        self: &Arc<Self>,
        request: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse, Error> {
        let container = self.container(&request.container_id)?;
        let Some(mut asked) = request.linux else {
            return Ok(UpdateContainerResourcesResponse {});
        };
        self.cgroups.tolerate(&mut asked);
        let _turn = container.turn.lock().await;
        match container.status() {
            ContainerStatus::Exited { .. } => {
                return Err(Error::Precondition(format!(
                    "container {} has ended",
                    container.id()
                )));
            }
            ContainerStatus::Running { .. } => {
                let cgroup = self.container_cgroup(&container.record)?;
                let limits = spec::cgroup_resources(&asked);
                blocking(move || Ok(cgroup.apply(&limits)?)).await?;
            }
            ContainerStatus::Created => {}
        }
        self.state
            .set_resources(&container, merge(container.resources(), asked))?;
        Ok(UpdateContainerResourcesResponse {})
    }

    /// CRI UpdatePodSandboxResources: the limits of the pod's cgroup.
    pub async fn update_pod_sandbox_resources(
        self: &Arc<Self>,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<UpdatePodSandboxResourcesResponse, Error> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let mut asked = request.resources.unwrap_or_default();
        self.cgroups.tolerate(&mut asked);
        if !spec::resources_are_empty(&asked) {
            let cgroup = self.cgroups.at(&sandbox.record.cgroup)?;
            blocking(move || Ok(cgroup.apply(&spec::cgroup_resources(&asked))?)).await?;
        }
        Ok(UpdatePodSandboxResourcesResponse {})
    }
}

/// Zero and the empty text leave what was.
fn merge(old: LinuxContainerResources, new: LinuxContainerResources) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: String, new: String| if new.is_empty() { old } else { new };
    let mut unified = old.unified;
    unified.extend(new.unified);
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        memory_swap_limit_in_bytes: number(
            old.memory_swap_limit_in_bytes,
            new.memory_swap_limit_in_bytes,
        ),
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(old.cpuset_cpus, new.cpuset_cpus),
        cpuset_mems: text(old.cpuset_mems, new.cpuset_mems),
        hugepage_limits: if new.hugepage_limits.is_empty() {
            old.hugepage_limits
        } else {
            new.hugepage_limits
        },
        unified,
    }
}
