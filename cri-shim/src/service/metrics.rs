//! The metrics that a kubelet hands on as `/metrics/cadvisor` (CRI ListMetricDescriptors, ListPodSandboxMetrics):
//! cAdvisor's names and labels, read from cgroups, `/proc` and netlink on request. CRI's values are whole numbers,
//! seconds among them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri_api::v1::{
    ContainerMetrics, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, UInt64Value,
};
use linux::cgroup::{Cgroup, StatsReader};

use super::Error;
use super::stats::{disk_usage, link_statistics};
use crate::runtime::{Runtime, blocking};
use crate::state::{Container, ContainerStatus, Sandbox, now_ns};

/// The labels of every metric; a metric's own come after them.
const LABELS: [&str; 6] = ["id", "name", "image", "container", "namespace", "pod"];
const OF_INTERFACE: &[&str] = &["interface"];
const NS_PER_S: u64 = 1_000_000_000;
/// The unit in which the kernel tells programs processor time, on every architecture that we build for.
const TICKS_PER_S: u64 = 100;

/// What a metric is: name, kind, own labels, help.
type Descriptor = (
    &'static str,
    MetricType,
    &'static [&'static str],
    &'static str,
);

const C: MetricType = MetricType::Counter;
const G: MetricType = MetricType::Gauge;
#[rustfmt::skip] // a table
const DESCRIPTORS: [Descriptor; 45] = [
    ("container_blkio_device_usage_total", C, &["device", "major", "minor", "operation"], "Bytes by device and operation."),
    ("container_cpu_cfs_periods_total", C, &[], "Enforcement periods that have passed."),
    ("container_cpu_cfs_throttled_periods_total", C, &[], "Periods in which it was throttled."),
    ("container_cpu_cfs_throttled_seconds_total", C, &[], "Seconds for which it was throttled."),
    ("container_cpu_system_seconds_total", C, &[], "Processor seconds in the kernel."),
    ("container_cpu_usage_seconds_total", C, &["cpu"], "Processor seconds."),
    ("container_cpu_user_seconds_total", C, &[], "Processor seconds outside the kernel."),
    ("container_file_descriptors", G, &[], "Open file descriptors."),
    ("container_fs_inodes_free", G, &["device"], "Free inodes of its file system."),
    ("container_fs_inodes_total", G, &["device"], "Inodes of its file system."),
    ("container_fs_limit_bytes", G, &["device"], "Size of its file system in bytes."),
    ("container_fs_reads_bytes_total", C, &["device"], "Bytes read."),
    ("container_fs_reads_total", C, &["device"], "Reads."),
    ("container_fs_usage_bytes", G, &["device"], "Bytes that it has written and kept."),
    ("container_fs_writes_bytes_total", C, &["device"], "Bytes written."),
    ("container_fs_writes_total", C, &["device"], "Writes."),
    ("container_last_seen", G, &[], "When it was last seen, in seconds since 1970."),
    ("container_memory_cache", G, &[], "Page cache in bytes."),
    ("container_memory_failcnt", C, &[], "How often its memory limit was hit."),
    ("container_memory_failures_total", C, &["failure_type", "scope"], "Page faults."),
    ("container_memory_kernel_usage", G, &[], "Kernel memory in bytes."),
    ("container_memory_mapped_file", G, &[], "Mapped files in bytes."),
    ("container_memory_max_usage_bytes", G, &[], "The most memory that it had, in bytes."),
    ("container_memory_rss", G, &[], "Anonymous memory in bytes."),
    ("container_memory_swap", G, &[], "Swap in bytes."),
    ("container_memory_usage_bytes", G, &[], "Memory in bytes, caches included."),
    ("container_memory_working_set_bytes", G, &[], "Memory in bytes that can't easily be taken back."),
    ("container_network_receive_bytes_total", C, OF_INTERFACE, "Bytes received."),
    ("container_network_receive_errors_total", C, OF_INTERFACE, "Errors while receiving."),
    ("container_network_receive_packets_dropped_total", C, OF_INTERFACE, "Packets dropped while receiving."),
    ("container_network_receive_packets_total", C, OF_INTERFACE, "Packets received."),
    ("container_network_transmit_bytes_total", C, OF_INTERFACE, "Bytes sent."),
    ("container_network_transmit_errors_total", C, OF_INTERFACE, "Errors while sending."),
    ("container_network_transmit_packets_dropped_total", C, OF_INTERFACE, "Packets dropped while sending."),
    ("container_network_transmit_packets_total", C, OF_INTERFACE, "Packets sent."),
    ("container_oom_events_total", C, &[], "Processes killed for want of memory."),
    ("container_processes", G, &[], "Processes."),
    ("container_sockets", G, &[], "Open sockets."),
    ("container_spec_cpu_period", G, &[], "Its processor period in microseconds."),
    ("container_spec_cpu_shares", G, &[], "Its processor shares."),
    ("container_spec_memory_limit_bytes", G, &[], "Its memory limit in bytes, 0 for none."),
    ("container_spec_memory_swap_limit_bytes", G, &[], "Its limit of memory and swap in bytes, 0 for none."),
    ("container_start_time_seconds", G, &[], "When it was started, in seconds since 1970."),
    ("container_threads", G, &[], "Threads."),
    ("container_threads_max", G, &[], "The most threads that it may have, 0 for any number."),
];

/// CRI ListMetricDescriptors.
pub fn descriptors() -> Vec<MetricDescriptor> {
    let describe = |(name, _, own, help): &Descriptor| MetricDescriptor {
        name: (*name).into(),
        help: (*help).into(),
        label_keys: LABELS
            .iter()
            .chain(*own)
            .map(|label| (*label).to_owned())
            .collect(),
    };
    DESCRIPTORS.iter().map(describe).collect()
}

impl Runtime {
    /// CRI ListPodSandboxMetrics: of the sandboxes that are ready.
    pub async fn list_pod_sandbox_metrics(
        self: &Arc<Self>,
    ) -> Result<Vec<PodSandboxMetrics>, Error> {
        let this = self.clone();
        blocking(move || {
            let ready = this
                .state
                .sandboxes()
                .into_iter()
                .filter(|sandbox| sandbox.status().is_ready());
            Ok(ready
                .map(|sandbox| this.sandbox_metrics(&sandbox))
                .collect())
        })
        .await
    }

    fn sandbox_metrics(&self, sandbox: &Sandbox) -> PodSandboxMetrics {
        let containers = self.state.containers_of(sandbox.id()).into_iter();
        let running = containers.filter_map(|container| match container.status() {
            ContainerStatus::Running { started_at_ns, .. } => {
                // One that ends while it is read is left out.
                let metrics = self
                    .container_metrics(sandbox, &container, started_at_ns)
                    .ok()?;
                Some(ContainerMetrics {
                    container_id: container.id().to_owned(),
                    metrics,
                })
            }
            _ => None,
        });
        PodSandboxMetrics {
            pod_sandbox_id: sandbox.id().to_owned(),
            container_metrics: running.collect(),
            metrics: network(sandbox),
        }
    }

    fn container_metrics(
        &self,
        sandbox: &Sandbox,
        container: &Container,
        started_at_ns: i64,
    ) -> Result<Vec<Metric>, Error> {
        let record = &container.record;
        let name = record.config.metadata.clone().unwrap_or_default().name;
        let image = record.config.image.clone().unwrap_or_default().image;
        let mut readings = Readings::new(sandbox, [&record.cgroup, container.id(), &image, &name]);
        let cgroup = self.container_cgroup(record)?;
        processor(&mut readings, &cgroup);
        memory(&mut readings, &cgroup)?;
        processes(&mut readings, &cgroup)?;
        block_devices(&mut readings, &cgroup);
        self.file_system(&mut readings, container);
        let limits = container.resources();
        for (name, value) in [
            ("container_spec_cpu_period", limits.cpu_period),
            ("container_spec_cpu_shares", limits.cpu_shares),
            (
                "container_spec_memory_limit_bytes",
                limits.memory_limit_in_bytes,
            ),
            (
                "container_spec_memory_swap_limit_bytes",
                limits.memory_swap_limit_in_bytes,
            ),
            (
                "container_start_time_seconds",
                started_at_ns / 1_000_000_000,
            ),
            ("container_last_seen", now_ns() / 1_000_000_000),
        ] {
            readings.add(name, &[], u64::try_from(value).unwrap_or(0));
        }
        Ok(readings.metrics)
    }

    fn file_system(&self, readings: &mut Readings, container: &Container) {
        let folder = self.container_folder(container.id()).join("fs");
        let (used, _) = disk_usage(&folder);
        readings.add("container_fs_usage_bytes", &[""], used);
        if let Ok(found) = rustix::fs::statvfs(&folder) {
            readings.add(
                "container_fs_limit_bytes",
                &[""],
                found.f_blocks * found.f_frsize,
            );
            readings.add("container_fs_inodes_total", &[""], found.f_files);
            readings.add("container_fs_inodes_free", &[""], found.f_ffree);
        }
    }
}

/// The metrics of one object, with the labels that all of them have.
struct Readings {
    labels: Vec<String>,
    timestamp: i64,
    metrics: Vec<Metric>,
}

impl Readings {
    /// `own` is the object's cgroup, id, image and container name.
    fn new(sandbox: &Sandbox, own: [&str; 4]) -> Self {
        let pod = sandbox.record.config.metadata.clone().unwrap_or_default();
        let labels = own
            .into_iter()
            .chain([pod.namespace.as_str(), pod.name.as_str()]);
        Self {
            labels: labels.map(str::to_owned).collect(),
            timestamp: now_ns(),
            metrics: Vec::new(),
        }
    }

    fn add(&mut self, name: &'static str, own: &[&str], value: u64) {
        let kind = DESCRIPTORS
            .iter()
            .find(|(known, ..)| *known == name)
            .map_or(G, |(_, kind, ..)| *kind);
        self.metrics.push(Metric {
            name: name.into(),
            timestamp: self.timestamp,
            metric_type: kind as i32,
            label_values: self
                .labels
                .iter()
                .cloned()
                .chain(own.iter().map(|label| (*label).to_owned()))
                .collect(),
            value: Some(UInt64Value { value }),
        });
    }
}

/// A pod's traffic, from the host's end of its link: what the host sends is what the pod receives.
fn network(sandbox: &Sandbox) -> Vec<Metric> {
    let Some(link) = link_statistics(sandbox) else {
        return Vec::new();
    };
    let mut readings = Readings::new(sandbox, [&sandbox.record.cgroup, sandbox.id(), "", ""]);
    for (name, value) in [
        ("container_network_receive_bytes_total", link.tx_bytes),
        ("container_network_receive_errors_total", link.tx_errors),
        (
            "container_network_receive_packets_dropped_total",
            link.tx_dropped,
        ),
        ("container_network_receive_packets_total", link.tx_packets),
        ("container_network_transmit_bytes_total", link.rx_bytes),
        ("container_network_transmit_errors_total", link.rx_errors),
        (
            "container_network_transmit_packets_dropped_total",
            link.rx_dropped,
        ),
        ("container_network_transmit_packets_total", link.rx_packets),
    ] {
        readings.add(name, &["eth0"], value);
    }
    readings.metrics
}

fn processor(readings: &mut Readings, cgroup: &Cgroup) {
    let throttling = flat(cgroup, "cpu", "cpu.stat");
    let of = |key: &str| throttling.get(key).copied().unwrap_or(0);
    let (user, system, total);
    if throttling.contains_key("usage_usec") {
        (user, system, total) = (
            of("user_usec") / 1_000_000,
            of("system_usec") / 1_000_000,
            of("usage_usec") / 1_000_000,
        );
    } else {
        let split = flat(cgroup, "cpuacct", "cpuacct.stat");
        let of = |key: &str| split.get(key).copied().unwrap_or(0) / TICKS_PER_S;
        (user, system) = (of("user"), of("system"));
        total = number(cgroup, "cpuacct", "cpuacct.usage").unwrap_or(0) / NS_PER_S;
    }
    readings.add("container_cpu_user_seconds_total", &[], user);
    readings.add("container_cpu_system_seconds_total", &[], system);
    readings.add("container_cpu_usage_seconds_total", &["total"], total);
    readings.add("container_cpu_cfs_periods_total", &[], of("nr_periods"));
    readings.add(
        "container_cpu_cfs_throttled_periods_total",
        &[],
        of("nr_throttled"),
    );
    let throttled = of("throttled_usec") / 1_000_000 + of("throttled_time") / NS_PER_S;
    readings.add("container_cpu_cfs_throttled_seconds_total", &[], throttled);
}

fn memory(readings: &mut Readings, cgroup: &Cgroup) -> Result<(), Error> {
    let stats = StatsReader::open(cgroup).read()?;
    let stat = flat(cgroup, "memory", "memory.stat");
    // v2's name, or v1's, whose own count leaves descendants out.
    let of = |v2: &str, v1: &str| stat.get(v1).or_else(|| stat.get(v2)).copied().unwrap_or(0);
    let either = |v2: &str, v1: &str| {
        number(cgroup, "memory", v1)
            .or_else(|| number(cgroup, "memory", v2))
            .unwrap_or(0)
    };
    let hits = || flat(cgroup, "memory", "memory.events").get("max").copied();
    for (name, value) in [
        (
            "container_memory_usage_bytes",
            stats.memory_usage_bytes.unwrap_or(0),
        ),
        (
            "container_memory_working_set_bytes",
            stats.memory_working_set_bytes.unwrap_or(0),
        ),
        ("container_memory_rss", stats.memory_rss_bytes.unwrap_or(0)),
        ("container_memory_swap", stats.swap_usage_bytes.unwrap_or(0)),
        ("container_memory_cache", of("file", "total_cache")),
        (
            "container_memory_mapped_file",
            of("file_mapped", "total_mapped_file"),
        ),
        (
            "container_memory_max_usage_bytes",
            either("memory.peak", "memory.max_usage_in_bytes"),
        ),
        (
            "container_memory_failcnt",
            number(cgroup, "memory", "memory.failcnt")
                .or_else(hits)
                .unwrap_or(0),
        ),
        (
            "container_memory_kernel_usage",
            number(cgroup, "memory", "memory.kmem.usage_in_bytes")
                .unwrap_or_else(|| of("kernel", "")),
        ),
        ("container_oom_events_total", stats.oom_kills.unwrap_or(0)),
        ("container_threads", stats.pids.unwrap_or(0)),
        // "max" isn't a number.
        (
            "container_threads_max",
            number(cgroup, "pids", "pids.max").unwrap_or(0),
        ),
    ] {
        readings.add(name, &[], value);
    }
    for (kind, value) in [
        ("pgfault", stats.page_faults),
        ("pgmajfault", stats.major_page_faults),
    ] {
        readings.add(
            "container_memory_failures_total",
            &[kind, "container"],
            value.unwrap_or(0),
        );
    }
    Ok(())
}

fn processes(readings: &mut Readings, cgroup: &Cgroup) -> Result<(), Error> {
    let pids = cgroup.processes()?;
    let (mut open, mut sockets) = (0, 0);
    for pid in &pids {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            open += 1;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
        }
    }
    readings.add("container_processes", &[], pids.len() as u64);
    readings.add("container_file_descriptors", &[], open);
    readings.add("container_sockets", &[], sockets);
    Ok(())
}

/// Input and output by device: `io.stat` on v2; on v1 two files, of bytes and of operations.
fn block_devices(readings: &mut Readings, cgroup: &Cgroup) {
    let mut counts: HashMap<(String, &str), u64> = HashMap::new();
    if let Some(text) = text(cgroup, "io", "io.stat") {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let device = words.next().unwrap_or_default().to_owned();
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let known = ["rbytes", "wbytes", "rios", "wios"]
                    .into_iter()
                    .find(|known| *known == key);
                if let (Some(key), Ok(value)) = (known, value.parse()) {
                    counts.insert((device.clone(), key), value);
                }
            }
        }
    }
    for (file, read, write) in [
        (
            "blkio.throttle.io_service_bytes_recursive",
            "rbytes",
            "wbytes",
        ),
        ("blkio.throttle.io_serviced_recursive", "rios", "wios"),
    ] {
        for line in text(cgroup, "blkio", file).unwrap_or_default().lines() {
            if let [device, operation, value] =
                line.split_whitespace().collect::<Vec<_>>().as_slice()
            {
                let key = match *operation {
                    "Read" => read,
                    "Write" => write,
                    _ => continue,
                };
                counts.insert(((*device).to_owned(), key), value.parse().unwrap_or(0));
            }
        }
    }
    for ((device, key), value) in counts {
        let name = match key {
            "rbytes" => "container_fs_reads_bytes_total",
            "wbytes" => "container_fs_writes_bytes_total",
            "rios" => "container_fs_reads_total",
            _ => "container_fs_writes_total",
        };
        readings.add(name, &[&device], value);
        let (major, minor) = device.split_once(':').unwrap_or_default();
        let operation = if key.starts_with('r') {
            "Read"
        } else {
            "Write"
        };
        if key.ends_with("bytes") {
            readings.add(
                "container_blkio_device_usage_total",
                &[&device, major, minor, operation],
                value,
            );
        }
    }
}

fn text(cgroup: &Cgroup, controller: &str, file: &str) -> Option<String> {
    let folder: PathBuf = cgroup.controller_dir(controller)?;
    std::fs::read_to_string(Path::new(&folder).join(file)).ok()
}

fn number(cgroup: &Cgroup, controller: &str, file: &str) -> Option<u64> {
    text(cgroup, controller, file)?.trim().parse().ok()
}

/// A file of lines of `key value`.
fn flat(cgroup: &Cgroup, controller: &str, file: &str) -> HashMap<String, u64> {
    let text = text(cgroup, controller, file).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}
