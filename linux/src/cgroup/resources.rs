//! Limits as runtime-spec states them, and the cgroup files that they become.

use super::Layout;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Limits on a cgroup, in the units and with the meaning of runtime-spec config-linux.md ("Control groups"). An absent
/// field leaves the kernel's value as it is; -1 is "no limit" where the specification says so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Bytes.
    pub memory_limit_bytes: Option<i64>,
    /// Soft limit, bytes: `memory.low` on v2.
    pub memory_reservation_bytes: Option<i64>,
    /// Memory and swap together, bytes.
    pub memory_swap_bytes: Option<i64>,
    /// 0 to 100; v1 only.
    pub memory_swappiness: Option<u64>,
    /// v1 only.
    pub disable_oom_killer: Option<bool>,
    /// 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Microseconds in each period.
    pub cpu_quota_us: Option<i64>,
    /// Microseconds.
    pub cpu_period_us: Option<u64>,
    /// Microseconds.
    pub cpu_burst_us: Option<u64>,
    /// 1 for SCHED_IDLE.
    pub cpu_idle: Option<i64>,
    /// Microseconds; v1 only.
    pub cpu_realtime_runtime_us: Option<i64>,
    /// Microseconds; v1 only.
    pub cpu_realtime_period_us: Option<u64>,
    /// A list such as `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// A list of memory nodes.
    pub cpuset_mems: Option<String>,
    /// Number of tasks; 0 is 1.
    pub pids_limit: Option<i64>,
    /// 10 to 1000, as v1's `blkio.weight`.
    pub io_weight: Option<u16>,
    /// `(major, minor, weight)`.
    pub io_weight_devices: Vec<(i64, i64, u16)>,
    /// `(major, minor, limit)` by the kind of limit.
    pub io_throttle: BTreeMap<IoLimit, Vec<(i64, i64, u64)>>,
    /// Bytes by page size, as in `2MB`.
    pub hugepage_limits: BTreeMap<String, i64>,
    /// `(handles, objects)` by device; absent is unlimited.
    pub rdma: BTreeMap<String, (Option<u32>, Option<u32>)>,
    /// v2 files written as they are, last.
    pub unified: BTreeMap<String, String>,
}

/// What an I/O limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoLimit {
    /// Bytes read a second.
    ReadBps,
    /// Bytes written a second.
    WriteBps,
    /// Reads a second.
    ReadIops,
    /// Writes a second.
    WriteIops,
}

impl IoLimit {
    fn v2_key(self) -> &'static str {
        match self {
            IoLimit::ReadBps => "rbps",
            IoLimit::WriteBps => "wbps",
            IoLimit::ReadIops => "riops",
            IoLimit::WriteIops => "wiops",
        }
    }

    fn v1_file(self) -> &'static str {
        match self {
            IoLimit::ReadBps => "blkio.throttle.read_bps_device",
            IoLimit::WriteBps => "blkio.throttle.write_bps_device",
            IoLimit::ReadIops => "blkio.throttle.read_iops_device",
            IoLimit::WriteIops => "blkio.throttle.write_iops_device",
        }
    }
}

/// One write to one cgroup file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The v1 controller whose hierarchy has the file; v2's single hierarchy for `None`.
    pub controller: Option<&'static str>,
    /// The file's name.
    pub file: String,
    /// The text.
    pub value: String,
    /// Whether a kernel without the file may leave it at that: the value is its default.
    pub optional: bool,
}

/// A limit that this host's layout has no file for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSuchLimit(pub &'static str);

/// v1's `cpu.shares` (2 to 262144) as v2's `cpu.weight` (1 to 10000), so that the minimum, the default (1024 to 100)
/// and the maximum correspond. 0 means "not set" and stays 0.
pub fn cpu_weight_from_shares(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// v1's `blkio.weight` (10 to 1000) as v2's `io.weight` (1 to 10000).
pub fn io_weight_from_blkio(weight: u16) -> u64 {
    if weight == 0 {
        0
    } else {
        1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
    }
}

fn limit_or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// No process at all can't be asked for: there is the one that is to run.
fn room_for_one(pids: i64) -> i64 {
    if pids == 0 { 1 } else { pids }
}

impl Resources {
    /// The writes that these limits are, in the order in which the kernel takes them.
    ///
    /// # Errors
    /// [`NoSuchLimit`] for one that the layout can't express; it is never ignored in silence.
    pub fn settings(&self, layout: Layout) -> Result<Vec<Setting>, NoSuchLimit> {
        match layout {
            Layout::Unified => self.v2_settings(),
            Layout::Hybrid | Layout::Legacy => self.v1_settings(),
        }
    }

    fn v2_settings(&self) -> Result<Vec<Setting>, NoSuchLimit> {
        let mut out = Vec::new();
        let mut set = |file: &str, value: String, optional: bool| {
            out.push(Setting {
                controller: None,
                file: file.to_owned(),
                value,
                optional,
            });
        };
        if self.cpu_realtime_runtime_us.is_some_and(|us| us != 0)
            || self.cpu_realtime_period_us.is_some_and(|us| us != 0)
        {
            return Err(NoSuchLimit(
                "cpu.realtimeRuntime and cpu.realtimePeriod need cgroup v1",
            ));
        }
        if self.disable_oom_killer == Some(true) {
            return Err(NoSuchLimit("memory.disableOOMKiller needs cgroup v1"));
        }
        if let Some(idle) = self.cpu_idle {
            set("cpu.idle", idle.to_string(), idle == 0);
        }
        if let Some(shares) = self
            .cpu_shares
            .filter(|shares| *shares != 0 && self.cpu_idle != Some(1))
        {
            set(
                "cpu.weight",
                cpu_weight_from_shares(shares).to_string(),
                false,
            );
        }
        if let Some(value) = self.v2_cpu_max() {
            set("cpu.max", value, false);
        }
        if let Some(burst) = self.cpu_burst_us {
            set("cpu.max.burst", burst.to_string(), burst == 0);
        }
        for (file, list) in [
            ("cpuset.cpus", &self.cpuset_cpus),
            ("cpuset.mems", &self.cpuset_mems),
        ] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                set(file, list.clone(), false);
            }
        }
        if let Some(swap) = self.v2_swap_max()? {
            // A kernel without swap accounting has no such file, and "max" and "0" are then equally true.
            set(
                "memory.swap.max",
                swap.clone(),
                swap == "max" || swap == "0",
            );
        }
        if let Some(limit) = self.memory_limit_bytes.filter(|limit| *limit != 0) {
            set("memory.max", limit_or_max(limit), false);
        }
        if let Some(low) = self.memory_reservation_bytes.filter(|low| *low != 0) {
            set("memory.low", limit_or_max(low), false);
        }
        if let Some(limit) = self.pids_limit.map(room_for_one) {
            set("pids.max", limit_or_max(limit), limit < 0);
        }
        if let Some(weight) = self.io_weight.filter(|weight| *weight != 0) {
            set(
                "io.weight",
                format!("default {}", io_weight_from_blkio(weight)),
                false,
            );
        }
        for (major, minor, weight) in &self.io_weight_devices {
            set(
                "io.weight",
                format!("{major}:{minor} {}", io_weight_from_blkio(*weight)),
                false,
            );
        }
        for (limit, devices) in &self.io_throttle {
            for (major, minor, rate) in devices {
                let rate = if *rate == 0 {
                    "max".to_owned()
                } else {
                    rate.to_string()
                };
                set(
                    "io.max",
                    format!("{major}:{minor} {}={rate}", limit.v2_key()),
                    false,
                );
            }
        }
        for (size, bytes) in &self.hugepage_limits {
            set(
                &format!("hugetlb.{size}.max"),
                limit_or_max(*bytes),
                *bytes < 0,
            );
            set(
                &format!("hugetlb.{size}.rsvd.max"),
                limit_or_max(*bytes),
                true,
            );
        }
        for (device, limits) in &self.rdma {
            set("rdma.max", rdma_value(device, *limits), false);
        }
        for (file, value) in &self.unified {
            set(file, value.clone(), false);
        }
        Ok(out)
    }

    fn v2_cpu_max(&self) -> Option<String> {
        if self.cpu_quota_us.unwrap_or(0) == 0 && self.cpu_period_us.unwrap_or(0) == 0 {
            return None;
        }
        let quota = match self.cpu_quota_us {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        Some(match self.cpu_period_us.filter(|period| *period != 0) {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        })
    }

    /// v2 counts swap alone, the specification memory and swap together.
    fn v2_swap_max(&self) -> Result<Option<String>, NoSuchLimit> {
        match (self.memory_swap_bytes, self.memory_limit_bytes) {
            (None | Some(0), limit) => Ok((limit == Some(-1)).then(|| "max".to_owned())),
            (Some(-1), _) => Ok(Some("max".to_owned())),
            (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
                Ok(Some((swap - limit).to_string()))
            }
            (Some(_), Some(limit)) if limit > 0 => Err(NoSuchLimit(
                "memory.swap (memory and swap together) is below memory.limit",
            )),
            (Some(_), _) => Err(NoSuchLimit("memory.swap without memory.limit")),
        }
    }

    fn v1_settings(&self) -> Result<Vec<Setting>, NoSuchLimit> {
        let mut out = Vec::new();
        let mut set = |controller: &'static str, file: &str, value: String, optional: bool| {
            out.push(Setting {
                controller: Some(controller),
                file: file.to_owned(),
                value,
                optional,
            });
        };
        if !self.unified.is_empty() {
            return Err(NoSuchLimit("linux.resources.unified needs cgroup v2"));
        }
        for (file, list) in [
            ("cpuset.cpus", &self.cpuset_cpus),
            ("cpuset.mems", &self.cpuset_mems),
        ] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                set("cpuset", file, list.clone(), false);
            }
        }
        if let Some(idle) = self.cpu_idle {
            set("cpu", "cpu.idle", idle.to_string(), idle == 0);
        }
        if let Some(shares) = self
            .cpu_shares
            .filter(|shares| *shares != 0 && self.cpu_idle != Some(1))
        {
            set("cpu", "cpu.shares", shares.to_string(), false);
        }
        if let Some(period) = self.cpu_period_us.filter(|period| *period != 0) {
            set("cpu", "cpu.cfs_period_us", period.to_string(), false);
        }
        if let Some(quota) = self.cpu_quota_us.filter(|quota| *quota != 0) {
            set("cpu", "cpu.cfs_quota_us", quota.max(-1).to_string(), false);
        }
        if let Some(burst) = self.cpu_burst_us {
            set("cpu", "cpu.cfs_burst_us", burst.to_string(), burst == 0);
        }
        if let Some(period) = self.cpu_realtime_period_us.filter(|period| *period != 0) {
            set("cpu", "cpu.rt_period_us", period.to_string(), false);
        }
        if let Some(runtime) = self.cpu_realtime_runtime_us.filter(|runtime| *runtime != 0) {
            set("cpu", "cpu.rt_runtime_us", runtime.to_string(), false);
        }
        if let Some(limit) = self.memory_limit_bytes.filter(|limit| *limit != 0) {
            set(
                "memory",
                "memory.limit_in_bytes",
                limit.max(-1).to_string(),
                false,
            );
        }
        match (self.memory_swap_bytes, self.memory_limit_bytes) {
            // Without swap accounting there is no file; a swap limit equal to the memory limit is then true anyway.
            (Some(swap), limit) if swap != 0 => {
                set(
                    "memory",
                    "memory.memsw.limit_in_bytes",
                    swap.max(-1).to_string(),
                    swap < 0 || Some(swap) == limit,
                );
            }
            (_, Some(-1)) => set(
                "memory",
                "memory.memsw.limit_in_bytes",
                "-1".to_owned(),
                true,
            ),
            _ => {}
        }
        if let Some(soft) = self.memory_reservation_bytes.filter(|soft| *soft != 0) {
            set(
                "memory",
                "memory.soft_limit_in_bytes",
                soft.max(-1).to_string(),
                false,
            );
        }
        if let Some(swappiness) = self.memory_swappiness {
            set("memory", "memory.swappiness", swappiness.to_string(), false);
        }
        if self.disable_oom_killer == Some(true) {
            set("memory", "memory.oom_control", "1".to_owned(), false);
        }
        if let Some(limit) = self.pids_limit.map(room_for_one) {
            set("pids", "pids.max", limit_or_max(limit), limit < 0);
        }
        if let Some(weight) = self.io_weight.filter(|weight| *weight != 0) {
            set("blkio", "blkio.weight", weight.to_string(), false);
        }
        for (major, minor, weight) in &self.io_weight_devices {
            set(
                "blkio",
                "blkio.weight_device",
                format!("{major}:{minor} {weight}"),
                false,
            );
        }
        for (limit, devices) in &self.io_throttle {
            for (major, minor, rate) in devices {
                set(
                    "blkio",
                    limit.v1_file(),
                    format!("{major}:{minor} {rate}"),
                    false,
                );
            }
        }
        for (size, bytes) in &self.hugepage_limits {
            set(
                "hugetlb",
                &format!("hugetlb.{size}.limit_in_bytes"),
                bytes.max(&-1).to_string(),
                *bytes < 0,
            );
        }
        for (device, limits) in &self.rdma {
            set("rdma", "rdma.max", rdma_value(device, *limits), false);
        }
        Ok(out)
    }
}

fn rdma_value(device: &str, (handles, objects): (Option<u32>, Option<u32>)) -> String {
    let text =
        |limit: Option<u32>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
    format!(
        "{device} hca_handle={} hca_object={}",
        text(handles),
        text(objects)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(resources: &Resources) -> Vec<(String, String)> {
        resources
            .settings(Layout::Unified)
            .unwrap()
            .into_iter()
            .map(|s| (s.file, s.value))
            .collect()
    }

    #[test]
    fn shares_become_weights_with_both_ends_and_the_default_kept() {
        for (shares, weight) in [
            (0, 0),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (1_000_000, 10_000),
        ] {
            assert_eq!(cpu_weight_from_shares(shares), weight, "{shares} shares");
        }
    }

    #[test]
    fn swap_on_v2_is_what_is_above_memory() {
        let resources = Resources {
            memory_limit_bytes: Some(100),
            memory_swap_bytes: Some(150),
            ..Resources::default()
        };
        assert!(v2(&resources).contains(&("memory.swap.max".into(), "50".into())));
        let below = Resources {
            memory_limit_bytes: Some(100),
            memory_swap_bytes: Some(50),
            ..Resources::default()
        };
        assert!(below.settings(Layout::Unified).is_err());
    }

    #[test]
    fn a_quota_without_period_leaves_the_period() {
        let resources = Resources {
            cpu_quota_us: Some(5000),
            ..Resources::default()
        };
        assert_eq!(v2(&resources), [("cpu.max".into(), "5000".into())]);
        let lifted = Resources {
            cpu_quota_us: Some(-1),
            cpu_period_us: Some(100_000),
            ..Resources::default()
        };
        assert_eq!(v2(&lifted), [("cpu.max".into(), "max 100000".into())]);
    }

    #[test]
    fn what_a_layout_cannot_limit_is_refused() {
        let realtime = Resources {
            cpu_realtime_runtime_us: Some(1),
            ..Resources::default()
        };
        assert!(realtime.settings(Layout::Unified).is_err());
        assert!(realtime.settings(Layout::Hybrid).is_ok());
        let unified = Resources {
            unified: [("memory.high".into(), "1".into())].into(),
            ..Resources::default()
        };
        assert!(unified.settings(Layout::Hybrid).is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_weight_is_in_range_and_grows_with_the_shares(a in 1u64..1 << 40, b in 1u64..1 << 40) {
            let (less, more) = (a.min(b), a.max(b));
            let (low, high) = (cpu_weight_from_shares(less), cpu_weight_from_shares(more));
            proptest::prop_assert!((1..=10_000).contains(&low) && (1..=10_000).contains(&high));
            proptest::prop_assert!(low <= high);
        }

        #[test]
        fn an_io_weight_is_in_range_and_grows(a in 10u16..=1000, b in 10u16..=1000) {
            let (low, high) = (io_weight_from_blkio(a.min(b)), io_weight_from_blkio(a.max(b)));
            proptest::prop_assert!((1..=10_000).contains(&low) && (1..=10_000).contains(&high));
            proptest::prop_assert!(low <= high);
        }

        #[test]
        fn memory_and_swap_of_v2_add_up_to_v1s(memory in 1i64..1 << 40, more in 0i64..1 << 40) {
            let resources = Resources {
                memory_limit_bytes: Some(memory),
                memory_swap_bytes: Some(memory + more),
                ..Resources::default()
            };
            let value = |file: &str| -> i64 {
                let all = v2(&resources);
                all.iter().find(|(name, _)| name == file).unwrap().1.parse().unwrap()
            };
            proptest::prop_assert_eq!(value("memory.max") + value("memory.swap.max"), memory + more);
        }

        #[test]
        fn a_limit_that_is_taken_writes_one_line(
            quota in proptest::option::of(proptest::num::i64::ANY), period in proptest::option::of(proptest::num::u64::ANY),
            memory in proptest::option::of(proptest::num::i64::ANY), swap in proptest::option::of(proptest::num::i64::ANY),
            pids in proptest::option::of(proptest::num::i64::ANY),
        ) {
            let resources = Resources {
                cpu_quota_us: quota,
                cpu_period_us: period,
                memory_limit_bytes: memory,
                memory_swap_bytes: swap,
                pids_limit: pids,
                ..Resources::default()
            };
            for layout in [Layout::Unified, Layout::Hybrid] {
                for setting in resources.settings(layout).into_iter().flatten() {
                    proptest::prop_assert!(!setting.value.is_empty() && !setting.value.contains('\n'));
                    proptest::prop_assert!(setting.file.contains('.') && !setting.file.contains('/'));
                }
            }
        }
    }
}
