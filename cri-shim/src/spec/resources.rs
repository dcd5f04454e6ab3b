//! Limits: CRI's into OCI's, and into what a cgroup takes.

use std::collections::HashMap;

use cri_api::v1::{ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext};
use linux::cgroup::Resources;
use oci_spec::runtime::{
    LinuxCpu, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory,
    LinuxResources,
};

/// The limits as a cgroup takes them. In CRI zero and the empty text mean "leave as it is".
pub fn cgroup_resources(asked: &LinuxContainerResources) -> Resources {
    let signed = |value: i64| (value != 0).then_some(value);
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    Resources {
        memory_limit_bytes: signed(asked.memory_limit_in_bytes),
        memory_swap_bytes: signed(asked.memory_swap_limit_in_bytes),
        cpu_shares: u64::try_from(asked.cpu_shares)
            .ok()
            .filter(|shares| *shares > 0),
        cpu_quota_us: signed(asked.cpu_quota),
        cpu_period_us: u64::try_from(asked.cpu_period)
            .ok()
            .filter(|period| *period > 0),
        cpuset_cpus: text(&asked.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems),
        hugepage_limits: asked
            .hugepage_limits
            .iter()
            .map(|limit| {
                (
                    limit.page_size.clone(),
                    i64::try_from(limit.limit).unwrap_or(i64::MAX),
                )
            })
            .collect(),
        unified: asked.unified.clone().into_iter().collect(),
        ..Resources::default()
    }
}

/// Whether nothing is asked for.
pub fn is_empty(asked: &LinuxContainerResources) -> bool {
    cgroup_resources(asked) == Resources::default()
}

/// The limits and the device rules, as the specification states them.
pub fn oci(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
    devices: &[LinuxDevice],
) -> LinuxResources {
    let asked = config
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.clone())
        .unwrap_or_default();
    let limits = cgroup_resources(&asked);
    let mut memory = LinuxMemory::default();
    memory.set_limit(limits.memory_limit_bytes);
    memory.set_swap(limits.memory_swap_bytes);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(limits.cpu_shares);
    cpu.set_quota(limits.cpu_quota_us);
    cpu.set_period(limits.cpu_period_us);
    cpu.set_cpus(limits.cpuset_cpus);
    cpu.set_mems(limits.cpuset_mems);
    let pages = limits.hugepage_limits.into_iter().map(|(size, limit)| {
        let mut page = LinuxHugepageLimit::default();
        page.set_page_size(size);
        page.set_limit(limit);
        page
    });
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory));
    resources.set_cpu(Some(cpu));
    resources.set_hugepage_limits(Some(pages.collect()));
    resources.set_unified(Some(limits.unified.into_iter().collect::<HashMap<_, _>>()));
    resources.set_devices(Some(device_rules(config, security, devices)));
    resources
}

/// Nothing but what is listed; a privileged container may use all. The runtime adds the devices that every
/// container has.
fn device_rules(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
    devices: &[LinuxDevice],
) -> Vec<LinuxDeviceCgroup> {
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(security.privileged);
    all.set_access(Some("rwm".into()));
    all.set_typ(Some(LinuxDeviceType::A));
    if security.privileged {
        return vec![all];
    }
    let listed = devices.iter().map(|device| {
        let path = device.path().to_string_lossy();
        let within = |target: &str| {
            *path == *target || path.starts_with(&format!("{}/", target.trim_end_matches('/')))
        };
        let asked = config
            .devices
            .iter()
            .find(|asked| within(&asked.container_path));
        let access = asked
            .map(|asked| asked.permissions.clone())
            .filter(|access| !access.is_empty());
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(device.typ()));
        rule.set_major(Some(device.major()));
        rule.set_minor(Some(device.minor()));
        rule.set_access(Some(access.unwrap_or_else(|| "rwm".into())));
        rule
    });
    std::iter::once(all).chain(listed).collect()
}
