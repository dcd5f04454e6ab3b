//! The devices that a container asks for, looked up on the host.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use cri_api::v1::{ContainerConfig, Device};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::Error;

/// Folders below `/dev` that hold no devices of the host's for a container, or another namespace's.
const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// The request's devices; all of the host's for a privileged container.
///
/// # Errors
/// For a device that isn't there, or isn't one.
pub fn of(config: &ContainerConfig, privileged: bool) -> Result<Vec<LinuxDevice>, Error> {
    let mut devices = Vec::new();
    if privileged {
        collect(Path::new("/dev"), Path::new("/dev"), &mut devices);
    }
    for asked in &config.devices {
        add(asked, &mut devices)?;
    }
    Ok(devices)
}

fn add(asked: &Device, devices: &mut Vec<LinuxDevice>) -> Result<(), Error> {
    let what = || format!("look up device {}", asked.host_path);
    let host = Path::new(&asked.host_path)
        .canonicalize()
        .map_err(Error::io(what()))?;
    let container = if asked.container_path.is_empty() {
        &asked.host_path
    } else {
        &asked.container_path
    };
    if host.is_dir() {
        collect(&host, Path::new(container), devices);
        return Ok(());
    }
    let found = observe(&host, Path::new(container)).map_err(Error::io(what()))?;
    let device =
        found.ok_or_else(|| Error::Invalid(format!("{} is not a device", asked.host_path)))?;
    devices.retain(|other| other.path() != device.path());
    devices.push(device);
    Ok(())
}

/// All devices of a folder of the host's. One that goes away while it is looked at isn't there.
fn collect(host: &Path, container: &Path, devices: &mut Vec<LinuxDevice>) {
    for entry in std::fs::read_dir(host).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let (host, container) = (entry.path(), container.join(&name));
        if kind.is_dir() {
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                collect(&host, &container, devices);
            }
        } else if name != "console"
            && name != "ptmx"
            && let Ok(Some(device)) = observe(&host, &container)
        {
            devices.push(device);
        }
    }
}

/// The host's device at `host` as one at `container`; `None` if it isn't a device. A link isn't followed.
pub(super) fn observe(host: &Path, container: &Path) -> std::io::Result<Option<LinuxDevice>> {
    let found = host.symlink_metadata()?;
    let kind = match found.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Ok(None),
    };
    let mut device = LinuxDevice::default();
    device.set_path(container.to_path_buf());
    device.set_typ(kind);
    device.set_major(i64::from(rustix::fs::major(found.rdev())));
    device.set_minor(i64::from(rustix::fs::minor(found.rdev())));
    device.set_file_mode(Some(found.mode() & 0o7777));
    device.set_uid(Some(found.uid()));
    device.set_gid(Some(found.gid()));
    Ok(Some(device))
}
