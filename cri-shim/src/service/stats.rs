//! Statistics, read from the cgroups on request; a pod's network from its own end of the link.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use cri_api::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, CpuUsage, FilesystemIdentifier,
    FilesystemUsage, LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage,
    PodSandboxAttributes, PodSandboxStats, PodSandboxStatsFilter, ProcessUsage, SwapUsage,
    UInt64Value,
};
use linux::cgroup::{Cgroup, Stats, StatsReader};
use linux::netlink::{LinkStatistics, Netlink};

use super::Error;
use super::list::selects;
use crate::runtime::{Runtime, blocking};
use crate::state::{Container, ContainerStatus, Network, Sandbox, now_ns};

impl Runtime {
    /// CRI ContainerStats.
    pub async fn container_stats(self: &Arc<Self>, id: &str) -> Result<ContainerStats, Error> {
        let container = self.container(id)?;
        let this = self.clone();
        blocking(move || this.read_container(&container)).await
    }

    /// CRI ListContainerStats: of the containers that run.
    pub async fn list_container_stats(
        self: &Arc<Self>,
        filter: Option<ContainerStatsFilter>,
    ) -> Result<Vec<ContainerStats>, Error> {
        let filter = filter.unwrap_or_default();
        let this = self.clone();
        blocking(move || {
            let passes = |container: &Arc<Container>| {
                container.id().starts_with(&filter.id)
                    && container
                        .record
                        .sandbox_id
                        .starts_with(&filter.pod_sandbox_id)
                    && selects(&filter.label_selector, &container.record.config.labels)
                    && matches!(container.status(), ContainerStatus::Running { .. })
            };
            let containers = this.state.containers().into_iter().filter(passes);
            // One that ends while it is read is left out.
            Ok(containers
                .filter_map(|container| this.read_container(&container).ok())
                .collect())
        })
        .await
    }

    /// CRI PodSandboxStats.
    pub async fn pod_sandbox_stats(self: &Arc<Self>, id: &str) -> Result<PodSandboxStats, Error> {
        let sandbox = self.sandbox(id)?;
        let this = self.clone();
        blocking(move || this.read_sandbox(&sandbox)).await
    }

    /// CRI ListPodSandboxStats: of the sandboxes that are ready.
    pub async fn list_pod_sandbox_stats(
        self: &Arc<Self>,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodSandboxStats>, Error> {
        let filter = filter.unwrap_or_default();
        let this = self.clone();
        blocking(move || {
            let passes = |sandbox: &Arc<Sandbox>| {
                sandbox.id().starts_with(&filter.id)
                    && selects(&filter.label_selector, &sandbox.record.config.labels)
                    && sandbox.status().is_ready()
            };
            let sandboxes = this.state.sandboxes().into_iter().filter(passes);
            Ok(sandboxes
                .filter_map(|sandbox| this.read_sandbox(&sandbox).ok())
                .collect())
        })
        .await
    }

    fn read_container(&self, container: &Container) -> Result<ContainerStats, Error> {
        let config = &container.record.config;
        let timestamp = now_ns();
        let mut stats = ContainerStats {
            attributes: Some(ContainerAttributes {
                id: container.id().to_owned(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            ..Default::default()
        };
        if matches!(container.status(), ContainerStatus::Running { .. }) {
            let read = read(&self.container_cgroup(&container.record)?)?;
            stats.cpu = Some(cpu(&read, timestamp));
            stats.memory = Some(memory(&read, timestamp));
            stats.swap = Some(SwapUsage {
                timestamp,
                swap_available_bytes: None,
                swap_usage_bytes: value(read.swap_usage_bytes),
            });
        }
        let folder = self.container_folder(container.id()).join("fs");
        let (used_bytes, inodes) = disk_usage(&folder);
        let mountpoint = self.config.root.display().to_string();
        stats.writable_layer = Some(FilesystemUsage {
            timestamp,
            fs_id: Some(FilesystemIdentifier { mountpoint }),
            used_bytes: value(Some(used_bytes)),
            inodes_used: value(Some(inodes)),
        });
        Ok(stats)
    }

    fn read_sandbox(&self, sandbox: &Sandbox) -> Result<PodSandboxStats, Error> {
        let config = &sandbox.record.config;
        let timestamp = now_ns();
        let read = read(&self.cgroups.at(&sandbox.record.cgroup)?)?;
        let containers = self.state.containers_of(sandbox.id());
        let running = |container: &Arc<Container>| {
            matches!(container.status(), ContainerStatus::Running { .. })
        };
        Ok(PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: sandbox.id().to_owned(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(cpu(&read, timestamp)),
                memory: Some(memory(&read, timestamp)),
                network: network(sandbox, timestamp),
                process: Some(ProcessUsage {
                    timestamp,
                    process_count: value(read.pids),
                }),
                containers: containers
                    .into_iter()
                    .filter(running)
                    .filter_map(|container| self.read_container(&container).ok())
                    .collect(),
                io: None,
            }),
            windows: None,
        })
    }
}

fn value(value: Option<u64>) -> Option<UInt64Value> {
    value.map(|value| UInt64Value { value })
}

fn read(cgroup: &Cgroup) -> Result<Stats, Error> {
    Ok(StatsReader::open(cgroup).read()?)
}

fn cpu(stats: &Stats, timestamp: i64) -> CpuUsage {
    CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(stats.cpu_usage_ns),
        ..Default::default()
    }
}

fn memory(stats: &Stats, timestamp: i64) -> MemoryUsage {
    let available = stats.memory_limit_bytes.zip(stats.memory_working_set_bytes);
    MemoryUsage {
        timestamp,
        working_set_bytes: value(stats.memory_working_set_bytes),
        available_bytes: value(available.map(|(limit, used)| limit.saturating_sub(used))),
        usage_bytes: value(stats.memory_usage_bytes),
        rss_bytes: value(stats.memory_rss_bytes),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
        psi: None,
    }
}

/// What the host's end of a pod's link has counted; `None` for a pod of the host's network.
pub(super) fn link_statistics(sandbox: &Sandbox) -> Option<LinkStatistics> {
    let status = sandbox.status();
    let Network::Connected(result) = &status.network else {
        return None;
    };
    Netlink::open()
        .ok()?
        .link_statistics(result.host_interface()?)
        .ok()?
}

/// The pod's traffic: what the host's end of its link sends is what the pod receives.
fn network(sandbox: &Sandbox, timestamp: i64) -> Option<NetworkUsage> {
    let link = link_statistics(sandbox)?;
    let interface = NetworkInterfaceUsage {
        name: "eth0".into(),
        rx_bytes: value(Some(link.tx_bytes)),
        rx_errors: value(Some(link.tx_errors)),
        tx_bytes: value(Some(link.rx_bytes)),
        tx_errors: value(Some(link.rx_errors)),
    };
    Some(NetworkUsage {
        timestamp,
        default_interface: Some(interface.clone()),
        interfaces: vec![interface],
    })
}

/// Bytes on disk and inodes below a folder. What goes away meanwhile isn't counted.
pub(super) fn disk_usage(folder: &Path) -> (u64, u64) {
    let mut total = (0, 0);
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else {
                continue;
            };
            // Of a file with several names each counts its share.
            total = (
                total.0 + found.blocks() * 512 / found.nlink().max(1),
                total.1 + 1,
            );
            if found.is_dir() {
                folders.push(entry.path());
                total.0 += found.blocks() * 512 - found.blocks() * 512 / found.nlink().max(1);
            }
        }
    }
    total
}
