//! `--systemd-cgroup`: a container's cgroup is that of a unit of systemd's.
//!
//! A scope begins with a process. A short-lived one is put there, so that the cgroup is there with its limits before
//! the container's first process is cloned into it, as without systemd.

use super::Failure;
use crate::error::{Error, LaunchError};
use crate::plan::{apply_devices, cgroup_resources, spec_device_rules};
use crate::state::{Container, Record, UnitRecord};
use crate::systemd::{self, Manager, Owner, Property, UnitPlan};
use linux::cgroup::{Cgroup, Layout, Resources};
use linux::process::{self, Child, CloneOptions};
use linux::{namespace, pidfd};
use oci_spec::runtime::Spec;
use std::path::Path;

/// What of the spec is read before anything is made.
pub(super) struct ScopePlan {
    owner: Owner,
    unit: UnitPlan,
    annotations: Vec<Property>,
}

/// A container's cgroup in its new unit, until its first process is there.
pub(super) struct Scope {
    pub cgroup: Cgroup,
    owner: Owner,
    /// `None` for a slice, which may be empty.
    holder: Option<Holder>,
    limits: Resources,
}

impl ScopePlan {
    /// # Errors
    /// Where systemd doesn't run; for a `linux.cgroupsPath` or an annotation that names no unit or property.
    pub fn read(record: &Record, cgroups_path: Option<&Path>) -> Result<Self, Failure> {
        if !systemd::is_running() {
            return Err(Failure::other(
                "--systemd-cgroup: systemd does not run on this host; leave it out, and have cgroups managed directly (cgroupfs)",
            ));
        }
        let owner = if rustix::process::geteuid().is_root() && !namespace::in_user_namespace() {
            Owner::System
        } else {
            Owner::User
        };
        let path = cgroups_path.map_or(Some(""), Path::to_str);
        let path = path.ok_or_else(|| Failure::other("linux.cgroupsPath is not UTF-8"))?;
        Ok(ScopePlan {
            owner,
            unit: UnitPlan::parse(path, &record.id, owner)?,
            annotations: systemd::plan_annotations(&record.annotations)?,
        })
    }

    /// Has systemd make the unit with the spec's limits, and writes to its cgroup what systemd leaves out.
    ///
    /// # Errors
    /// If systemd refuses or fails, or the kernel refuses a limit.
    pub fn start(self, container: &mut Container, spec: &Spec) -> Result<Scope, Failure> {
        // It tells which hierarchies the container is in; what undoes it looks at the path, which comes last.
        container.record.unit = Some(UnitRecord {
            name: self.unit.name.clone(),
            owner: self.owner,
        });
        let hierarchies = container.hierarchies()?;
        let layout = hierarchies.layout();
        if self.owner == Owner::User && layout != Layout::Unified {
            return Err(Failure::other(
                "--systemd-cgroup: a user's systemd can't manage cgroups of version 1; leave it out, or boot with cgroup v2",
            ));
        }
        let mut limits = limits_of(spec)?;
        systemd::round_quota(&mut limits);
        let mut manager = Manager::connect(self.owner)?;
        let above = match self.owner {
            Owner::System => String::new(),
            Owner::User => manager.control_group()?,
        };
        let path = format!("{}{}", above.trim_end_matches('/'), self.unit.path);
        let cgroup = Cgroup::at(hierarchies, &path)?;
        let version = manager.version()?;
        let holder = match self.unit.is_slice() {
            true => None,
            false => Some(Holder::start()?),
        };
        let pid = holder.as_ref().map(|holder| holder.0.pid);
        let mut properties = systemd::plan_unit(&self.unit, pid, layout);
        properties.extend(self.annotations);
        // A user's manager may load no filter, and the container's user may make no node.
        if self.owner == Owner::System {
            properties.extend(systemd::plan_devices(&spec_device_rules(spec)?, version));
        }
        properties.extend(systemd::plan_limits(&limits, layout, version)?);
        manager.start(&self.unit.name, &properties, pid)?;
        container.record.cgroup_path = path;
        container.save()?;
        let scope = Scope {
            cgroup,
            owner: self.owner,
            holder,
            limits,
        };
        scope.write_limits(spec)?;
        Ok(scope)
    }
}

impl Scope {
    fn write_limits(&self, spec: &Spec) -> Result<(), Failure> {
        match self.cgroup.ensure() {
            // What systemd has not enabled, a user may not either.
            Err(error)
                if self.cgroup.exists()
                    && [libc::EACCES, libc::EPERM, libc::EROFS].contains(&error.errno) => {}
            other => other.map(drop)?,
        }
        let mut limits = self.limits.clone();
        // The holder is one too.
        if self.holder.is_some() {
            limits.pids_limit = limits
                .pids_limit
                .map(|pids| if pids > 0 { pids + 1 } else { pids });
        }
        self.cgroup.apply(&limits)?;
        Ok(apply_devices(&self.cgroup, spec)?)
    }

    /// Says what to do where a user may not move processes from their own cgroup to the unit's.
    pub fn explain(&self, mut error: LaunchError) -> LaunchError {
        if self.owner == Owner::User
            && error.errno == libc::EACCES
            && error.step == "start the process"
        {
            error.cause.push_str(
                ": this command's cgroup is not one of the user's own systemd; run it below that, as with systemd-run --user",
            );
        }
        error
    }

    /// The container's first process is there, or has been: from here on the unit is its alone.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn hand_over(self) -> Result<(), Failure> {
        let Some(holder) = self.holder else {
            return Ok(());
        };
        drop(holder);
        if self.limits.pids_limit.is_some_and(|pids| pids > 0) {
            let pids = Resources {
                pids_limit: self.limits.pids_limit,
                ..Resources::default()
            };
            match self.cgroup.apply(&pids) {
                // A short program has ended, and its unit is gone.
                Err(error) if error.is(libc::ENOENT) || error.is(libc::ENODEV) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

fn limits_of(spec: &Spec) -> Result<Resources, Error> {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    resources.map_or_else(|| Ok(Resources::default()), cgroup_resources)
}

/// The process that a scope begins with. It does nothing, and ends with this value, or with this process.
struct Holder(Child);

impl Holder {
    fn start() -> Result<Self, Failure> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let parent = pidfd::open(own)?;
        let child = process::clone_child(CloneOptions::default(), || {
            i32::from(pidfd::wait_exit(&parent, None).is_err())
        })?;
        Ok(Holder(child))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It can only have ended, or be ended by this.
        let _ = pidfd::kill(&self.0.pidfd);
        let _ = pidfd::reap(&self.0.pidfd, true);
    }
}

/// `update`: has systemd know the new limits, and fits them to what it can express.
///
/// # Errors
/// If systemd refuses, or the limits aren't the layout's.
pub(super) fn update(
    unit: &UnitRecord,
    cgroup: &Cgroup,
    limits: &mut Resources,
) -> Result<(), Failure> {
    complete_bandwidth(cgroup, limits);
    systemd::round_quota(limits);
    let mut manager = Manager::connect(unit.owner)?;
    let version = manager.version()?;
    let properties = systemd::plan_limits(limits, cgroup.hierarchies().layout(), version)?;
    Ok(manager.set(&unit.name, &properties)?)
}

/// A quota is one of a period to systemd: what isn't given of the two stays as it is.
fn complete_bandwidth(cgroup: &Cgroup, limits: &mut Resources) {
    let given = |value: Option<i64>| value.is_some_and(|value| value != 0);
    let (quota, period) = (
        given(limits.cpu_quota_us),
        limits.cpu_period_us.is_some_and(|period| period != 0),
    );
    if quota == period {
        return;
    }
    // Without the controller there is nothing in force.
    let Some((own_quota, own_period)) = cgroup.cpu_bandwidth() else {
        return;
    };
    if quota {
        limits.cpu_period_us = Some(own_period);
    } else {
        limits.cpu_quota_us = Some(own_quota.unwrap_or(-1));
    }
}

/// `delete`: the processes have ended. systemd removes the unit by itself then, so that this only makes sure of it.
pub(super) fn stop(unit: &UnitRecord) {
    let stopped = Manager::connect(unit.owner).and_then(|mut manager| manager.stop(&unit.name));
    if let Err(error) = stopped {
        tracing::warn!(%error, "the container's unit may be left");
    }
}
