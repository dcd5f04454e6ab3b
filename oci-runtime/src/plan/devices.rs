//! `linux.devices`, and the devices that every container has.

use super::{DevicePlan, DeviceSource, FdList};
use crate::error::{DuringPlan, Error};
use linux::mount::{self, Attributes, Propagation};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Spec};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

pub(super) fn plan_devices(
    spec: &Spec,
    linux: &Linux,
    mapped: bool,
    fds: &mut FdList,
) -> Result<Option<Vec<DevicePlan>>, Error> {
    let host_dev = spec.mounts().iter().flatten().any(|mount| {
        let bound = mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind");
        mount.destination() == Path::new("/dev")
            && (bound || mount.typ().as_deref() == Some("bind"))
    });
    if host_dev {
        return Ok(None);
    }
    let listed = linux.devices().as_deref().unwrap_or_default();
    let mut out = Vec::new();
    for (path, major, minor) in DEFAULT_DEVICES {
        if listed.iter().any(|device| device.path() == Path::new(path)) {
            continue;
        }
        let node = DeviceSource::Node {
            mode: libc::S_IFCHR | 0o666,
            major,
            minor,
            uid: 0,
            gid: 0,
        };
        out.push(device_plan(PathBuf::from(path), node, mapped, fds)?);
    }
    for (position, device) in listed.iter().enumerate() {
        let node = device_node(position, device)?;
        out.push(device_plan(
            Path::new("/").join(device.path()),
            node,
            mapped,
            fds,
        )?);
    }
    Ok(Some(out))
}

fn device_plan(
    path: PathBuf,
    node: DeviceSource,
    mapped: bool,
    fds: &mut FdList,
) -> Result<DevicePlan, Error> {
    if !mapped {
        return Ok(DevicePlan { path, source: node });
    }
    let source = host_node(&path, &node)?;
    let bound = mount::bind(&source, false)
        .during(|| format!("open host's device {}", source.display()))?;
    let private = Attributes {
        propagation: Some(Propagation::Private),
        ..Attributes::default()
    };
    mount::set_attributes(&bound, false, &private)
        .during(|| format!("make device {} private", path.display()))?;
    Ok(DevicePlan {
        path,
        source: DeviceSource::Bind(fds.push(bound)),
    })
}

/// Where the host has a device: at the container's path, or else wherever in `/dev`.
fn host_node(path: &Path, node: &DeviceSource) -> Result<PathBuf, Error> {
    let &DeviceSource::Node {
        mode, major, minor, ..
    } = node
    else {
        return Ok(path.to_owned());
    };
    let number = rustix::fs::makedev(major, minor);
    let same = |path: &Path| {
        path.symlink_metadata().is_ok_and(|found| {
            found.mode() & libc::S_IFMT == mode & libc::S_IFMT && found.rdev() == number
        })
    };
    if mode & libc::S_IFMT == libc::S_IFIFO || same(path) {
        return Ok(path.to_owned());
    }
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        // One that goes away meanwhile has no device.
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if same(&entry.path()) {
                return Ok(entry.path());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    Err(Error::unsupported(
        "linux.devices",
        format!(
            "{} in a user namespace must be a device of the host's, and its /dev has no {major}:{minor}",
            path.display()
        ),
    ))
}

fn device_node(position: usize, device: &LinuxDevice) -> Result<DeviceSource, Error> {
    let field = || format!("linux.devices[{position}]");
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(Error::spec(field(), "a node can't be of type a")),
    };
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| Error::spec(field(), "device number out of range"))
    };
    let (major, minor) = if kind == libc::S_IFIFO {
        (0, 0)
    } else {
        (number(device.major())?, number(device.minor())?)
    };
    Ok(DeviceSource::Node {
        mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
        major,
        minor,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}
