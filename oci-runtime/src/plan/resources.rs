//! `linux.resources` of a spec as limits of a cgroup.

use crate::error::{DuringPlan, Error};
use linux::cgroup::{Cgroup, DeviceKind, DeviceRule, IoLimit, Resources};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, LinuxThrottleDevice, Spec,
};

/// Puts a spec's `linux.resources` in force on its cgroup, which exists: limits and device rules.
///
/// # Errors
/// [`Error::Spec`] for a malformed rule, [`Error::Kernel`] with the file that a limit could not be written to.
pub fn apply_resources(cgroup: &Cgroup, spec: &Spec) -> Result<(), Error> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    if let Some(resources) = resources {
        let limits = cgroup_resources(resources)?;
        cgroup
            .apply(&limits)
            .during(|| format!("set limits of cgroup {}", cgroup.path()))?;
    }
    apply_devices(cgroup, spec)
}

/// Puts a spec's device rules alone in force on its cgroup.
pub(crate) fn apply_devices(cgroup: &Cgroup, spec: &Spec) -> Result<(), Error> {
    match cgroup.set_devices(&spec_device_rules(spec)?) {
        // Root of a user namespace may load no program; and may make no device node to be kept from.
        Err(error) if error.is(libc::EPERM) && linux::namespace::in_user_namespace() => Ok(()),
        other => other.during(|| format!("limit devices of cgroup {}", cgroup.path())),
    }
}

/// The rules that a spec's container is held to.
pub(crate) fn spec_device_rules(spec: &Spec) -> Result<Vec<DeviceRule>, Error> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let listed = resources.and_then(|resources| resources.devices().as_deref());
    device_rules(listed.unwrap_or_default())
}

/// `linux.resources.devices`, after which come the devices that every container has (config-linux.md, "Default
/// Devices"), its terminals, and the making of nodes that can't be used.
fn device_rules(listed: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, Error> {
    let mut rules = vec![DeviceRule::everything(false)];
    for (position, rule) in listed.iter().enumerate() {
        rules.push(device_rule(position, rule)?);
    }
    if rules.last() == Some(&DeviceRule::everything(true)) {
        return Ok(rules);
    }
    for kind in [DeviceKind::Char, DeviceKind::Block] {
        rules.push(DeviceRule {
            kind,
            read: false,
            write: false,
            ..DeviceRule::everything(true)
        });
    }
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(DeviceRule::allow_char(major, Some(minor)));
    }
    rules.push(DeviceRule::allow_char(136, None));
    Ok(rules)
}

fn device_rule(position: usize, rule: &LinuxDeviceCgroup) -> Result<DeviceRule, Error> {
    let bad = |reason: String| Error::spec(format!("linux.resources.devices[{position}]"), reason);
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => DeviceKind::All,
        Some(LinuxDeviceType::B) => DeviceKind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => DeviceKind::Char,
        Some(LinuxDeviceType::P) => return Err(bad("a pipe is no device".to_owned())),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| bad(format!("device number {value}"))),
    };
    let access = rule.access().as_deref().unwrap_or("rwm");
    if let Some(other) = access.chars().find(|c| !"rwm".contains(*c)) {
        // Callers have it from old runtimes, where `a` stood for nothing.
        if other != 'a' {
            return Err(bad(format!("access {other:?}")));
        }
        tracing::warn!("linux.resources.devices[{position}].access: ignoring 'a'");
    }
    let has = |c: char| access.is_empty() || access.contains(c);
    Ok(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        read: has('r'),
        write: has('w'),
        mknod: has('m'),
    })
}

/// The limits that a spec's `linux.resources` asks for (config-linux.md, "Control groups"), without the device rules.
///
/// # Errors
/// [`Error::Spec`] for a `unified` key that isn't the name of a file.
pub fn cgroup_resources(spec: &LinuxResources) -> Result<Resources, Error> {
    let mut out = Resources::default();
    if let Some(memory) = spec.memory() {
        out.memory_limit_bytes = memory.limit();
        out.memory_reservation_bytes = memory.reservation();
        out.memory_swap_bytes = memory.swap();
        out.memory_swappiness = memory.swappiness();
        out.disable_oom_killer = memory.disable_oom_killer();
    }
    if let Some(cpu) = spec.cpu() {
        out.cpu_shares = cpu.shares();
        out.cpu_quota_us = cpu.quota();
        out.cpu_period_us = cpu.period();
        out.cpu_burst_us = cpu.burst();
        out.cpu_idle = cpu.idle();
        out.cpu_realtime_runtime_us = cpu.realtime_runtime();
        out.cpu_realtime_period_us = cpu.realtime_period();
        out.cpuset_cpus = cpu.cpus().clone();
        out.cpuset_mems = cpu.mems().clone();
    }
    out.pids_limit = spec.pids().as_ref().map(|pids| pids.limit());
    if let Some(io) = spec.block_io() {
        add_block_io(io, &mut out);
    }
    for limit in spec.hugepage_limits().iter().flatten() {
        out.hugepage_limits
            .insert(limit.page_size().clone(), limit.limit());
    }
    for (device, limits) in spec.rdma().iter().flatten() {
        out.rdma
            .insert(device.clone(), (limits.hca_handles(), limits.hca_objects()));
    }
    for (file, value) in spec.unified().iter().flatten() {
        if file.contains('/') || !file.contains('.') {
            return Err(Error::spec(
                format!("linux.resources.unified[{file}]"),
                "is not a cgroup file's name",
            ));
        }
        out.unified.insert(file.clone(), value.clone());
    }
    Ok(out)
}

fn add_block_io(io: &LinuxBlockIo, out: &mut Resources) {
    out.io_weight = io.weight();
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            out.io_weight_devices
                .push((device.major(), device.minor(), weight));
        }
    }
    let mut add = |kind: IoLimit, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            out.io_throttle.entry(kind).or_default().push((
                device.major(),
                device.minor(),
                device.rate(),
            ));
        }
    };
    add(IoLimit::ReadBps, io.throttle_read_bps_device());
    add(IoLimit::WriteBps, io.throttle_write_bps_device());
    add(IoLimit::ReadIops, io.throttle_read_iops_device());
    add(IoLimit::WriteIops, io.throttle_write_iops_device());
}
