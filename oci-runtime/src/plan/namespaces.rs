//! `linux.namespaces`, `linux.uidMappings` and `linux.timeOffsets`.

use super::{FdList, NamespacePlan, UserMapping};
use crate::error::{DuringPlan, Error};
use linux::namespace::{self, NamespaceKind};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};
use std::fmt::Write;
use std::os::fd::OwnedFd;

fn kind_of(kind: LinuxNamespaceType) -> NamespaceKind {
    match kind {
        LinuxNamespaceType::Mount => NamespaceKind::Mount,
        LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        LinuxNamespaceType::Uts => NamespaceKind::Uts,
        LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        LinuxNamespaceType::User => NamespaceKind::User,
        LinuxNamespaceType::Pid => NamespaceKind::Pid,
        LinuxNamespaceType::Network => NamespaceKind::Network,
        LinuxNamespaceType::Time => NamespaceKind::Time,
    }
}

/// Resolves the spec's namespaces; `given` takes the place of an entry of its kind.
pub(super) fn plan_namespaces(
    spec: &Linux,
    given: Vec<(NamespaceKind, OwnedFd)>,
    fds: &mut FdList,
) -> Result<NamespacePlan, Error> {
    let mut plan = NamespacePlan::default();
    let mut seen: Vec<NamespaceKind> = given.iter().map(|(kind, _)| *kind).collect();
    for (kind, fd) in given {
        plan.join.push((kind, fds.push(fd)));
    }
    let given_count = seen.len();
    for (position, entry) in spec.namespaces().iter().flatten().enumerate() {
        let kind = kind_of(entry.typ());
        if seen.iter().take(given_count).any(|given| *given == kind) {
            continue;
        }
        if seen.contains(&kind) {
            return Err(Error::spec(
                format!("linux.namespaces[{position}]"),
                "duplicate namespace",
            ));
        }
        seen.push(kind);
        match entry.path() {
            Some(path) if !path.as_os_str().is_empty() => {
                let fd = namespace::open(path)
                    .during(|| format!("join {} namespace", kind.proc_name()))?;
                plan.join.push((kind, fds.push(fd)));
            }
            _ if kind == NamespaceKind::Cgroup => plan.new_cgroup = true,
            _ => plan.new.push(kind),
        }
    }
    if plan.makes(NamespaceKind::User) {
        plan.user_mapping = Some(plan_user_mapping(spec)?);
    }
    if plan.makes(NamespaceKind::Time) {
        plan.time_offsets = plan_time_offsets(spec)?;
    }
    Ok(plan)
}

/// The mapping of a new user namespace.
pub(crate) fn plan_user_mapping(spec: &Linux) -> Result<UserMapping, Error> {
    let text = |field: &str, mappings: &Option<Vec<LinuxIdMapping>>| {
        let mappings = mappings.as_deref().unwrap_or_default();
        if mappings.is_empty() {
            return Err(Error::spec(
                format!("linux.{field}"),
                "a new user namespace needs a mapping",
            ));
        }
        Ok(map_text(mappings))
    };
    let privileged = linux::capability::current()
        .is_ok_and(|sets| sets.effective.contains(linux::capability::SETGID));
    Ok(UserMapping {
        uid_map: text("uidMappings", spec.uid_mappings())?,
        gid_map: text("gidMappings", spec.gid_mappings())?,
        deny_setgroups: !privileged,
    })
}

/// The text of a map file.
pub(super) fn map_text(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut out, map| {
        let _ = writeln!(
            out,
            "{} {} {}",
            map.container_id(),
            map.host_id(),
            map.size()
        );
        out
    })
}

fn plan_time_offsets(spec: &Linux) -> Result<String, Error> {
    let mut out = String::new();
    for (clock, offset) in spec.time_offsets().iter().flatten() {
        if clock != "monotonic" && clock != "boottime" {
            return Err(Error::spec(
                format!("linux.timeOffsets[{clock}]"),
                "is not a clock with an offset",
            ));
        }
        let _ = writeln!(
            out,
            "{clock} {} {}",
            offset.secs().unwrap_or(0),
            offset.nanosecs().unwrap_or(0)
        );
    }
    Ok(out)
}

/// A container's id as the host's, by the spec's mappings; `None` if it has none.
pub(super) fn host_id(mappings: &Option<Vec<LinuxIdMapping>>, id: u32) -> Option<u32> {
    mappings.iter().flatten().find_map(|map| {
        let offset = id.checked_sub(map.container_id())?;
        (offset < map.size())
            .then(|| map.host_id().checked_add(offset))
            .flatten()
    })
}
