//! A container's cgroup as a unit of systemd's (`--systemd-cgroup`): systemd makes it, knows its limits, and lists it.
//!
//! [`UnitPlan`] and the properties are pure; [`Manager`] asks systemd over D-Bus, whose answers are taken as anybody's.
//! What systemd has no property for is written to the unit's cgroup, which is delegated to us.

mod address;
mod connection;
mod devices;
mod gvariant;
mod manager;
mod message;
mod properties;
mod unit;
mod value;

pub(crate) use address::Owner;
pub(crate) use manager::{Manager, is_running};
pub(crate) use properties::{
    Property, plan_annotations, plan_devices, plan_limits, plan_unit, round_quota,
};
pub(crate) use unit::UnitPlan;

use connection::BusError;

/// A container's unit could not be had, or not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SystemdError {
    #[error(
        "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {0:?} \
         instead"
    )]
    CgroupsPath(String),
    #[error("linux.cgroupsPath: invalid slice name: {0}")]
    Slice(String),
    #[error("linux.cgroupsPath: invalid unit name: {0}")]
    UnitName(String),
    #[error("annotation {name}: {reason}")]
    Annotation { name: String, reason: String },
    #[error("linux.resources: {file} can't be {value:?}")]
    Limit { file: String, value: String },
    #[error("{0}")]
    NoSuchLimit(&'static str),
    #[error("connect to systemd at {place}: {cause}")]
    Connect { place: String, cause: BusError },
    #[error(
        "connect to the user's systemd: neither XDG_RUNTIME_DIR nor DBUS_SESSION_BUS_ADDRESS says where it is; log in \
         by way of pam_systemd, or set one of them"
    )]
    NoAddress,
    #[error("{operation} {unit}: {cause}")]
    Call {
        operation: &'static str,
        unit: String,
        cause: BusError,
    },
    #[error(
        "{operation} {unit}: systemd's job ended as {result:?}; see journalctl and systemctl status {unit}"
    )]
    Job {
        operation: &'static str,
        unit: String,
        result: String,
    },
}
