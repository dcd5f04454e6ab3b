//! A unit's properties (`org.freedesktop.systemd1(5)`, `systemd.resource-control(5)`).

use super::unit::UnitPlan;
use super::value::Value;
use super::{SystemdError, devices, gvariant};
use linux::cgroup::{DeviceRule, Layout, NoSuchLimit, Resources};
use std::collections::BTreeMap;

/// The kernel's, where none is given.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// systemd has a quota in whole percents of a processor.
const PERCENT_US: u64 = 10_000;

/// The versions that brought properties.
const WITH_QUOTA_PERIOD: u32 = 242;
const WITH_CPUSET: u32 = 244;
const WITH_CPU_IDLE: u32 = 252;
const WITH_SCOPE_OOM_POLICY: u32 = 253;

/// Of which a processor's or a memory node's number is to be below.
const MOST_CPUS: u32 = 1 << 16;

/// What a user's annotation names a property by.
const ANNOTATION: &str = "org.systemd.property.";

/// A property and what it is set to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Property {
    pub name: String,
    pub value: Value,
}

impl Property {
    pub(super) fn new(name: &str, value: Value) -> Self {
        Property {
            name: name.to_owned(),
            value,
        }
    }
}

/// What a container's new unit is, before its limits. `pid` is of a process that is to be in it: a scope needs one.
pub(crate) fn plan_unit(unit: &UnitPlan, pid: Option<i32>, layout: Layout) -> Vec<Property> {
    let mut out = vec![Property::new(
        "Description",
        Value::Text(format!("orlop container {}", unit.container)),
    )];
    if unit.is_slice() {
        let slices = Value::Array("s".to_owned(), vec![Value::text(&unit.slice)]);
        out.push(Property::new("Wants", slices));
    } else {
        out.push(Property::new("Slice", Value::text(&unit.slice)));
        out.push(Property::new("Delegate", Value::Bool(true)));
    }
    if let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) {
        out.push(Property::new(
            "PIDs",
            Value::Array("u".to_owned(), vec![Value::U32(pid)]),
        ));
    }
    let io = match layout {
        Layout::Unified => "IOAccounting",
        Layout::Hybrid | Layout::Legacy => "BlockIOAccounting",
    };
    for accounting in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
        out.push(Property::new(accounting, Value::Bool(true)));
    }
    out.push(Property::new("DefaultDependencies", Value::Bool(false)));
    out
}

/// The properties that annotations ask for, `org.systemd.property.NAME` with a value in GVariant's text format.
///
/// # Errors
/// For a name that no property has, or a malformed value.
pub(crate) fn plan_annotations(
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<Property>, SystemdError> {
    let named = annotations
        .iter()
        .filter_map(|(key, text)| Some((key.strip_prefix(ANNOTATION)?, text)));
    named.map(|(name, text)| annotation(name, text)).collect()
}

fn annotation(name: &str, text: &str) -> Result<Property, SystemdError> {
    let bad = |reason: String| SystemdError::Annotation {
        name: format!("{ANNOTATION}{name}={text}"),
        reason,
    };
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(bad("not the name of a property".to_owned()));
    }
    let value = gvariant::parse(text).map_err(|reason| bad(format!("the value {reason}")))?;
    // They are documented in seconds, and asked for in microseconds.
    match name
        .strip_suffix("Sec")
        .filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase()))
    {
        Some(stem) => {
            let microseconds = microseconds(&value)
                .ok_or_else(|| bad("the value is not a number of seconds".to_owned()))?;
            Ok(Property::new(
                &format!("{stem}USec"),
                Value::U64(microseconds),
            ))
        }
        None => Ok(Property::new(name, value)),
    }
}

fn microseconds(value: &Value) -> Option<u64> {
    let seconds: i128 = match value {
        Value::Byte(value) => (*value).into(),
        Value::I16(value) => (*value).into(),
        Value::U16(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::U64(value) => (*value).into(),
        Value::F64(value) if *value >= 0.0 => return Some((value * 1e6) as u64),
        _ => return None,
    };
    u64::try_from(seconds.checked_mul(1_000_000)?).ok()
}

/// The properties that hold a container to its device rules.
pub(crate) fn plan_devices(rules: &[DeviceRule], version: u32) -> Vec<Property> {
    devices::properties(rules, version)
}

/// Rounds the CPU quota up to what systemd can express, so that both have the same.
pub(crate) fn round_quota(resources: &mut Resources) {
    let period = resources
        .cpu_period_us
        .filter(|period| *period != 0)
        .unwrap_or(DEFAULT_PERIOD_US);
    if let Some(quota) = resources
        .cpu_quota_us
        .and_then(|quota| u64::try_from(quota).ok())
    {
        let rounded = u128::from(per_second(quota, period)) * u128::from(period) / 1_000_000;
        resources.cpu_quota_us = i64::try_from(rounded).ok();
    }
}

/// Microseconds of processor time in a second, in whole percents.
fn per_second(quota: u64, period: u64) -> u64 {
    let exact = u128::from(quota) * 1_000_000 / u128::from(period.max(1));
    let rounded = exact.next_multiple_of(PERCENT_US.into());
    u64::try_from(rounded).unwrap_or(u64::MAX)
}

/// The properties that these limits are to a systemd of this version. Those that it has no property for are left out.
///
/// # Errors
/// For a limit that the layout doesn't have, or a value of `unified` that can't be read.
pub(crate) fn plan_limits(
    resources: &Resources,
    layout: Layout,
    version: u32,
) -> Result<Vec<Property>, SystemdError> {
    let settings = resources.settings(layout);
    let settings = settings.map_err(|NoSuchLimit(reason)| SystemdError::NoSuchLimit(reason))?;
    let idle = Property::new("CPUWeight", Value::U64(0));
    let mut out: Vec<Property> = Vec::new();
    for setting in &settings {
        let found = limit(&setting.file, setting.value.trim(), version);
        let found = found.ok_or_else(|| SystemdError::Limit {
            file: setting.file.clone(),
            value: setting.value.clone(),
        })?;
        // Idle is a weight too, and the one that counts.
        let is_idle = out.contains(&idle);
        out.extend(
            found
                .into_iter()
                .filter(|new| !is_idle || new.name != idle.name),
        );
    }
    if layout != Layout::Unified {
        let quota = resources.cpu_quota_us.filter(|quota| *quota != 0);
        let period = resources.cpu_period_us.filter(|period| *period != 0);
        if quota.is_some() || period.is_some() {
            out.extend(bandwidth(
                quota.and_then(|quota| u64::try_from(quota).ok()),
                period,
                version,
            ));
        }
    }
    Ok(out)
}

/// One cgroup file's value as properties; `None` if the value is malformed.
fn limit(file: &str, value: &str, version: u32) -> Option<Vec<Property>> {
    let one = |name: &str, value: Value| Some(vec![Property::new(name, value)]);
    let name = match file {
        "memory.max" => "MemoryMax",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "memory.limit_in_bytes" => "MemoryLimit",
        "pids.max" => "TasksMax",
        "cpu.weight" => "CPUWeight",
        "cpu.shares" => "CPUShares",
        "blkio.weight" => "BlockIOWeight",
        "cpu.idle" if value == "1" && version >= WITH_CPU_IDLE => {
            return one("CPUWeight", Value::U64(0));
        }
        "cpu.max" => return cpu_max(value, version),
        "cpuset.cpus" | "cpuset.mems" => {
            let bits = Value::Array("y".to_owned(), list_to_bits(value)?);
            let name = if file == "cpuset.cpus" {
                "AllowedCPUs"
            } else {
                "AllowedMemoryNodes"
            };
            return if version >= WITH_CPUSET {
                one(name, bits)
            } else {
                Some(Vec::new())
            };
        }
        "memory.oom.group" if version >= WITH_SCOPE_OOM_POLICY => match value {
            "0" => return one("OOMPolicy", Value::text("continue")),
            "1" => return one("OOMPolicy", Value::text("kill")),
            _ => return Some(Vec::new()),
        },
        _ => return Some(Vec::new()),
    };
    let number = match value {
        "max" | "-1" => u64::MAX,
        text => text.parse().ok()?,
    };
    one(
        name,
        Value::U64(if name == "TasksMax" {
            number.max(1)
        } else {
            number
        }),
    )
}

/// `QUOTA [PERIOD]`
fn cpu_max(value: &str, version: u32) -> Option<Vec<Property>> {
    let mut words = value.split_whitespace();
    let quota = match words.next()? {
        "max" => None,
        text => Some(text.parse().ok()?),
    };
    let period = words
        .next()
        .map(|text| text.parse().ok())
        .map_or(Some(None), |period| period.map(Some))?;
    words
        .next()
        .is_none()
        .then(|| bandwidth(quota, period, version))
}

/// Without a quota there is no limit.
fn bandwidth(quota: Option<u64>, period: Option<u64>, version: u32) -> Vec<Property> {
    let mut out = Vec::new();
    if let Some(period) = period.filter(|_| version >= WITH_QUOTA_PERIOD) {
        out.push(Property::new("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    let per_second = quota.map_or(u64::MAX, |quota| {
        per_second(quota, period.unwrap_or(DEFAULT_PERIOD_US))
    });
    out.push(Property::new("CPUQuotaPerSecUSec", Value::U64(per_second)));
    out
}

/// `0-2,7` as a bit for each, the lowest first.
fn list_to_bits(list: &str) -> Option<Vec<Value>> {
    let mut bits: Vec<u8> = Vec::new();
    for range in list
        .split(',')
        .map(str::trim)
        .filter(|range| !range.is_empty())
    {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST_CPUS {
            return None;
        }
        for number in first..=last {
            let byte = (number / 8) as usize;
            bits.resize(bits.len().max(byte + 1), 0);
            bits[byte] |= 1 << (number % 8);
        }
    }
    (!bits.is_empty()).then(|| bits.into_iter().map(Value::Byte).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(resources: &Resources, layout: Layout) -> Vec<(String, Value)> {
        let planned = plan_limits(resources, layout, 252).unwrap();
        planned
            .into_iter()
            .map(|property| (property.name, property.value))
            .collect()
    }

    fn number(name: &str, value: u64) -> (String, Value) {
        (name.to_owned(), Value::U64(value))
    }

    #[test]
    fn limits_are_properties_by_layout() {
        let mut resources = Resources {
            memory_limit_bytes: Some(1 << 25),
            memory_swap_bytes: Some(1 << 26),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(25_500),
            cpu_period_us: Some(50_000),
            cpuset_cpus: Some("0-1,9".to_owned()),
            pids_limit: Some(0),
            ..Resources::default()
        };
        let bits = [3, 2].map(Value::Byte).to_vec();
        let cpus = ("AllowedCPUs".to_owned(), Value::Array("y".into(), bits));
        assert_eq!(
            limits(&resources, Layout::Unified),
            [
                number("CPUWeight", 100),
                number("CPUQuotaPeriodUSec", 50_000),
                number("CPUQuotaPerSecUSec", 510_000),
                cpus.clone(),
                number("MemorySwapMax", 1 << 25),
                number("MemoryMax", 1 << 25),
                number("TasksMax", 1),
            ]
        );
        resources.memory_swap_bytes = None;
        resources.io_weight = Some(300);
        assert_eq!(
            limits(&resources, Layout::Hybrid),
            [
                cpus,
                number("CPUShares", 1024),
                number("MemoryLimit", 1 << 25),
                number("TasksMax", 1),
                number("BlockIOWeight", 300),
                number("CPUQuotaPeriodUSec", 50_000),
                number("CPUQuotaPerSecUSec", 510_000),
            ]
        );
    }

    #[test]
    fn no_limit_is_infinity() {
        let resources = Resources {
            memory_limit_bytes: Some(-1),
            cpu_quota_us: Some(-1),
            pids_limit: Some(-1),
            ..Resources::default()
        };
        assert_eq!(
            limits(&resources, Layout::Unified),
            [
                number("CPUQuotaPerSecUSec", u64::MAX),
                number("MemorySwapMax", u64::MAX),
                number("MemoryMax", u64::MAX),
                number("TasksMax", u64::MAX),
            ]
        );
    }

    #[test]
    fn files_of_unified_are_properties_too() {
        let unified = |pairs: &[(&str, &str)]| Resources {
            unified: pairs
                .iter()
                .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
                .collect(),
            ..Resources::default()
        };
        let resources = unified(&[
            ("cpu.idle", "1"),
            ("cpu.max", "max 50000"),
            ("cpu.weight", "50"),
            ("hugetlb.2MB.max", "0"),
            ("memory.high", " 4096 "),
        ]);
        assert_eq!(
            limits(&resources, Layout::Unified),
            [
                number("CPUWeight", 0),
                number("CPUQuotaPeriodUSec", 50_000),
                number("CPUQuotaPerSecUSec", u64::MAX),
                number("MemoryHigh", 4096),
            ]
        );
        for bad in [
            ("cpu.max", "1 2 3"),
            ("memory.max", "4k"),
            ("cpuset.cpus", "3-1"),
            ("cpuset.cpus", "0-99999999"),
        ] {
            let planned = plan_limits(&unified(&[bad]), Layout::Unified, 252);
            assert!(
                matches!(planned, Err(SystemdError::Limit { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn an_older_systemd_is_not_told_what_it_does_not_know() {
        let resources = Resources {
            cpu_quota_us: Some(50_000),
            cpu_period_us: Some(100_000),
            cpuset_cpus: Some("0".to_owned()),
            cpu_idle: Some(1),
            ..Resources::default()
        };
        let planned = plan_limits(&resources, Layout::Unified, 241).unwrap();
        assert_eq!(
            planned,
            [Property::new("CPUQuotaPerSecUSec", Value::U64(500_000))]
        );
    }

    #[test]
    fn a_quota_is_rounded_up_to_whole_percents() {
        let mut resources = Resources {
            cpu_quota_us: Some(10_001),
            ..Resources::default()
        };
        round_quota(&mut resources);
        assert_eq!(resources.cpu_quota_us, Some(11_000));
        resources.cpu_quota_us = Some(-1);
        round_quota(&mut resources);
        assert_eq!(resources.cpu_quota_us, Some(-1));
    }

    #[test]
    fn annotations_are_properties() {
        let plan = |name: &str, value: &str| {
            let annotations = [(name.to_owned(), value.to_owned())].into();
            plan_annotations(&annotations)
        };
        let good = |name: &str, value: &str| plan(name, value).unwrap().remove(0);
        assert_eq!(
            good("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            Property::new("CollectMode", Value::text("inactive-or-failed"))
        );
        assert_eq!(
            good("org.systemd.property.TimeoutStopSec", "2.5"),
            Property::new("TimeoutStopUSec", Value::U64(2_500_000))
        );
        assert_eq!(
            good("org.systemd.property.TimeoutStopUSec", "uint64 7"),
            Property::new("TimeoutStopUSec", Value::U64(7))
        );
        assert!(plan("other.annotation", "[").unwrap().is_empty());
        for (name, value) in [
            ("org.systemd.property.", "1"),
            ("org.systemd.property.X-Y", "1"),
            ("org.systemd.property.Slice", "system.slice"),
            ("org.systemd.property.TimeoutStopSec", "'1'"),
            ("org.systemd.property.TimeoutStopSec", "-1"),
            (
                "org.systemd.property.TimeoutStopSec",
                "uint64 18446744073709551615",
            ),
        ] {
            assert!(plan(name, value).is_err(), "{name}={value}");
        }
    }
}
