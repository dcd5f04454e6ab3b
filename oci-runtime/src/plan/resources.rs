//! `linux.resources` of a spec as limits of a cgroup.

use crate::Error;
use linux::cgroup::{IoLimit, Resources};
use oci_spec::runtime::{LinuxBlockIo, LinuxResources, LinuxThrottleDevice};

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
