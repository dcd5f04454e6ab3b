//! What this machine is and has: from `/proc`, `/etc` and `statvfs`.

use std::collections::BTreeMap;
use std::path::Path;

use api::quantity::{Format, Quantity};

use crate::config::Config;

/// The machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// Logical CPUs.
    pub cpus: i64,
    /// All of the memory, bytes.
    pub memory_bytes: i64,
    /// What could be given out now, bytes.
    pub memory_available_bytes: i64,
    /// The file system of the kubelet's folder, bytes.
    pub storage_bytes: i64,
    /// What of it is free, bytes.
    pub storage_available_bytes: i64,
    /// Inodes of it that are free, of a thousand.
    pub inodes_free_permille: i64,
    /// Process ids that are free.
    pub pids_free: i64,
    /// Huge pages, by size as Kubernetes names it: bytes.
    pub huge_pages: BTreeMap<String, i64>,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The firmware's id.
    pub system_uuid: String,
    /// Of this boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// PRETTY_NAME of os-release.
    pub os_image: String,
}

impl Machine {
    /// Looks at everything.
    pub fn observe(config: &Config) -> Self {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let machine_id = read("/etc/machine-id");
        let system_uuid = Some(read("/sys/class/dmi/id/product_uuid")).filter(|u| !u.is_empty());
        let mut machine = Self {
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| i64::try_from(n.get()).unwrap_or(1)),
            system_uuid: system_uuid.unwrap_or_else(|| machine_id.clone()),
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            os_image: os_image(&read("/etc/os-release")),
            huge_pages: huge_pages(),
            ..Self::default()
        };
        machine.refresh(config);
        machine
    }

    /// Looks again at what changes.
    pub fn refresh(&mut self, config: &Config) {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        self.memory_bytes = meminfo(&text, "MemTotal:");
        self.memory_available_bytes = meminfo(&text, "MemAvailable:");
        let at: &Path = if config.root_dir.exists() {
            &config.root_dir
        } else {
            Path::new("/")
        };
        if let Ok(stat) = rustix::fs::statvfs(at) {
            let bytes = |blocks: u64| {
                i64::try_from(blocks.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX)
            };
            self.storage_bytes = bytes(stat.f_blocks);
            self.storage_available_bytes = bytes(stat.f_bavail);
            // A file system without fixed inodes says 0 of 0.
            self.inodes_free_permille = match stat.f_files {
                0 => 1000,
                files => i64::try_from(u128::from(stat.f_ffree) * 1000 / u128::from(files))
                    .unwrap_or(1000),
            };
        }
        self.pids_free = pids_free();
    }

    /// What the node has.
    pub fn capacity(&self, config: &Config) -> BTreeMap<String, Quantity> {
        let binary = |bytes: i64| Quantity::from_int(bytes / 1024 * 1024, Format::BinarySi);
        let mut all = BTreeMap::from([
            (
                "cpu".to_owned(),
                Quantity::from_int(self.cpus, Format::DecimalSi),
            ),
            ("memory".into(), binary(self.memory_bytes)),
            ("ephemeral-storage".into(), binary(self.storage_bytes)),
            (
                "pods".into(),
                Quantity::from_int(config.max_pods.into(), Format::DecimalSi),
            ),
        ]);
        all.extend(
            self.huge_pages
                .iter()
                .map(|(size, bytes)| (format!("hugepages-{size}"), binary(*bytes))),
        );
        all
    }

    /// What of it pods may have.
    pub fn allocatable(&self, config: &Config) -> BTreeMap<String, Quantity> {
        let mut all = self.capacity(config);
        for (name, amount) in &config.reserved {
            if let (Some(have), Ok(less)) = (all.get_mut(name), amount.parse::<Quantity>()) {
                *have = Quantity::max(*have - less, Quantity::ZERO);
            }
        }
        all
    }
}

fn meminfo(text: &str, key: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok());
    kib.unwrap_or(0) * 1024
}

fn pids_free() -> i64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let max: i64 = read("/proc/sys/kernel/pid_max")
        .trim()
        .parse()
        .unwrap_or(i64::MAX);
    let threads: i64 = read("/proc/sys/kernel/threads-max")
        .trim()
        .parse()
        .unwrap_or(i64::MAX);
    // The fourth word is `running/all`.
    let loadavg = read("/proc/loadavg");
    let used = loadavg
        .split_whitespace()
        .nth(3)
        .and_then(|w| w.split_once('/')?.1.parse::<i64>().ok());
    max.min(threads) - used.unwrap_or(0)
}

fn os_image(os_release: &str) -> String {
    let line = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or_else(
        || "Linux".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

fn huge_pages() -> BTreeMap<String, i64> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kib = name
            .strip_prefix("hugepages-")
            .and_then(|n| n.strip_suffix("kB")?.parse::<i64>().ok());
        let pages = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        let pages = pages.and_then(|n| n.trim().parse::<i64>().ok());
        if let (Some(kib), Some(pages)) = (kib, pages) {
            let size = Quantity::from_int(kib * 1024, Format::BinarySi).to_string();
            all.insert(size, pages * kib * 1024);
        }
    }
    all
}

/// Kubernetes' name of the architecture, which is Go's.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether the machine has cgroup v2 alone.
pub fn cgroup_unified() -> bool {
    const CGROUP2: u64 = 0x6367_7270;
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|stat| stat.f_type as u64 == CGROUP2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_cpus_memory_and_room() {
        let mut config = Config::new("n", Vec::new());
        config.root_dir = "/".into();
        config.reserved.insert("cpu".into(), "500m".into());
        let machine = Machine::observe(&config);
        assert!(
            machine.cpus > 0
                && machine.memory_bytes > machine.memory_available_bytes
                && machine.storage_bytes > 0
        );
        assert!(machine.pids_free > 0, "{machine:?}");
        let (have, give) = (machine.capacity(&config), machine.allocatable(&config));
        assert_eq!((have["cpu"] - give["cpu"]).milli_value(), 500);
        assert_eq!(have["pods"].to_string(), "110");
    }

    #[test]
    fn meminfo_and_os_release_are_read() {
        assert_eq!(
            meminfo("MemTotal:       2048 kB\nMemFree: 1 kB\n", "MemTotal:"),
            2048 * 1024
        );
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
