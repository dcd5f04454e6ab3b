//! `update`.

use super::args::UpdateArgs;
use super::{Context, Failure, Outcome, scope};
use crate::plan::cgroup_resources;
use crate::state::{Container, StateError, Status};
use linux::cgroup::Resources;
use oci_spec::runtime::LinuxResources;
use std::io::Read;
use std::path::PathBuf;

pub(super) fn update(context: &Context, args: &UpdateArgs) -> Outcome {
    let container = Container::lock(&context.root, &args.id)?;
    if container.status() == Status::Stopped {
        return Err(Failure::other("container not running"));
    }
    let mut resources = match &args.resources {
        Some(path) => cgroup_resources(&read_resources(path)?)?,
        None => from_flags(args)?,
    };
    let Some(cgroup) = container.cgroup()? else {
        return Err(Failure::other("container has no cgroup"));
    };
    if let Some(unit) = &container.record.unit {
        scope::update(unit, &cgroup, &mut resources)?;
    }
    cgroup.apply(&resources)?;
    Ok(0)
}

fn read_resources(path: &PathBuf) -> Result<LinuxResources, Failure> {
    let mut text = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut text).map(drop)
    } else {
        std::fs::read(path).map(|bytes| text = bytes)
    };
    read.map_err(|error| Failure::other(format!("read {}: {error}", path.display())))?;
    Ok(
        serde_json::from_slice(&text).map_err(|cause| StateError::Malformed {
            path: path.clone(),
            cause,
        })?,
    )
}

fn from_flags(args: &UpdateArgs) -> Result<Resources, Failure> {
    let bytes = |text: &Option<String>| text.as_deref().map(parse_bytes).transpose();
    Ok(Resources {
        memory_limit_bytes: bytes(&args.memory)?,
        memory_reservation_bytes: bytes(&args.memory_reservation)?,
        memory_swap_bytes: bytes(&args.memory_swap)?,
        cpu_shares: args.cpu_share,
        cpu_quota_us: args.cpu_quota,
        cpu_period_us: args.cpu_period,
        cpu_burst_us: args.cpu_burst,
        cpu_idle: args.cpu_idle,
        cpu_realtime_period_us: args.cpu_rt_period,
        cpu_realtime_runtime_us: args.cpu_rt_runtime,
        cpuset_cpus: args.cpuset_cpus.clone(),
        cpuset_mems: args.cpuset_mems.clone(),
        pids_limit: args.pids_limit,
        io_weight: args.blkio_weight,
        ..Resources::default()
    })
}

/// A number of bytes, with a binary unit or without, or -1.
fn parse_bytes(text: &str) -> Result<i64, Failure> {
    let bad = || Failure::other(format!("{text:?} is not a number of bytes"));
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower
        .strip_suffix("ib")
        .or_else(|| lower.strip_suffix('b'))
        .unwrap_or(&lower);
    let (digits, shift) = match lower.chars().last() {
        Some('k') => (&lower[..lower.len() - 1], 10),
        Some('m') => (&lower[..lower.len() - 1], 20),
        Some('g') => (&lower[..lower.len() - 1], 30),
        Some('t') => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let number: i64 = digits.parse().map_err(|_| bad())?;
    if number < -1 {
        return Err(bad());
    }
    if number == -1 {
        Ok(-1)
    } else {
        number.checked_mul(1 << shift).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_units() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("1g", 1 << 30),
            ("-1", -1),
            ("512", 512),
            ("2KiB", 2048),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "M", "-2", "9999999999G", "1x"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
