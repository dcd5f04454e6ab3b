//! CDI, the Container Device Interface (specification 1.1): vendors' files say what a device takes inside a container,
//! and a request names the device as `vendor/class=name`.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cri_api::v1::ContainerConfig;
use oci_spec::runtime::{
    Hook, Hooks, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::devices::observe;

/// An annotation of this prefix names devices too, apart by commas (CDI, "Container Runtime Configuration").
const ANNOTATION: &str = "cdi.k8s.io/";

/// Why a device can't be given to a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request's name isn't one.
    #[error("CDI device {0:?}: not of the form vendor/class=name")]
    Name(String),
    /// No file has it, or a file that may have is damaged.
    #[error("CDI device {name}: no file in {folders} has it{}", not_read(.damaged))]
    Missing {
        name: String,
        folders: String,
        damaged: Vec<String>,
    },
    /// Two files of one folder have it.
    #[error("CDI device {name}: both {first} and {second} have it")]
    Conflict {
        name: String,
        first: String,
        second: String,
    },
    /// What the file says can't be done.
    #[error("{file}: {field}: {reason}")]
    Edit {
        file: String,
        field: String,
        reason: String,
    },
}

fn not_read(files: &[String]) -> String {
    match files {
        [] => String::new(),
        files => format!("; not read: {}", files.join("; ")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    cdi_version: String,
    kind: String,
    #[serde(rename = "annotations", default)]
    _annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(rename = "annotations", default)]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

/// What changes in a container's specification.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    hooks: Vec<HookEdit>,
    mounts: Vec<MountEdit>,
    additional_gids: Vec<u32>,
    net_devices: Option<IgnoredAny>,
    intel_rdt: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    path: String,
    host_path: Option<String>,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    major: i64,
    #[serde(default)]
    minor: i64,
    file_mode: Option<u32>,
    #[serde(default)]
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HookEdit {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MountEdit {
    host_path: String,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type", default)]
    kind: String,
}

/// Gives a container the CDI devices that its request names, by its field or by annotations.
///
/// A later folder's files win over an earlier one's. The files are read for each container that asks: they are few,
/// and what a device plugin has just written counts.
///
/// # Errors
/// [`Error`]; the specification is of no use then.
pub fn inject(folders: &[PathBuf], config: &ContainerConfig, spec: &mut Spec) -> Result<(), Error> {
    let names = asked(config);
    if names.is_empty() {
        return Ok(());
    }
    let files = Files::read(folders);
    let mut common = BTreeSet::new();
    for name in &names {
        let (path, file, device) = files.find(folders, name)?;
        if common.insert(path) {
            apply(&file.container_edits, path, spec)?;
        }
        apply(&device.container_edits, path, spec)?;
    }
    // A parent's mount comes before what is mounted in it.
    if let Some(mounts) = spec.mounts_mut() {
        mounts.sort_by_key(|mount| mount.destination().components().count());
    }
    Ok(())
}

/// The names, each once.
fn asked(config: &ContainerConfig) -> Vec<&str> {
    let fields = config.cdi_devices.iter().map(|device| device.name.as_str());
    let mut annotations: Vec<_> = config
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION))
        .collect();
    annotations.sort();
    let annotated = annotations
        .into_iter()
        .flat_map(|(_, value)| value.split(','));
    let mut seen = BTreeSet::new();
    fields
        .chain(annotated.map(str::trim))
        .filter(|name| seen.insert(*name))
        .collect()
}

/// What the folders hold: each file with the position of its folder.
struct Files {
    read: Vec<(usize, PathBuf, File)>,
    damaged: Vec<String>,
}

impl Files {
    fn read(folders: &[PathBuf]) -> Self {
        let mut files = Self {
            read: Vec::new(),
            damaged: Vec::new(),
        };
        for (position, folder) in folders.iter().enumerate() {
            let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| {
                    path.extension()
                        .is_some_and(|end| end == "json" || end == "yaml")
                })
                .collect();
            paths.sort();
            for path in paths {
                match parse(&path) {
                    Ok(file) => files.read.push((position, path, file)),
                    Err(why) => files.damaged.push(format!("{}: {why}", path.display())),
                }
            }
        }
        files
    }

    fn find(&self, folders: &[PathBuf], name: &str) -> Result<(&Path, &File, &Device), Error> {
        let (kind, device) = match name.split_once('=') {
            Some((kind, device)) if is_kind(kind) && !device.is_empty() => (kind, device),
            _ => return Err(Error::Name(name.to_owned())),
        };
        let mut found = self.read.iter().rev().filter_map(|(position, path, file)| {
            let device = file.devices.iter().find(|one| one.name == device)?;
            (file.kind == kind).then_some((*position, path.as_path(), file, device))
        });
        let Some((position, path, file, device)) = found.next() else {
            let folders: Vec<_> = folders
                .iter()
                .map(|folder| folder.display().to_string())
                .collect();
            return Err(Error::Missing {
                name: name.to_owned(),
                folders: folders.join(", "),
                damaged: self.damaged.clone(),
            });
        };
        match found.next() {
            Some((other, first, ..)) if other == position => Err(Error::Conflict {
                name: name.to_owned(),
                first: first.display().to_string(),
                second: path.display().to_string(),
            }),
            _ => Ok((path, file, device)),
        }
    }
}

fn is_kind(text: &str) -> bool {
    text.split_once('/').is_some_and(|(vendor, class)| {
        !vendor.is_empty() && !class.is_empty() && !class.contains('/')
    })
}

fn parse(path: &Path) -> Result<File, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let file: File =
        serde_saphyr::from_str_with_options(&text, options).map_err(|error| error.to_string())?;
    if !["0.", "1."]
        .iter()
        .any(|known| file.cdi_version.starts_with(known))
    {
        return Err(format!("cdiVersion {:?} is not known", file.cdi_version));
    }
    if !is_kind(&file.kind) {
        return Err(format!("kind {:?} is not vendor/class", file.kind));
    }
    Ok(file)
}

fn apply(edits: &Edits, file: &Path, spec: &mut Spec) -> Result<(), Error> {
    let fails = |field: &str, reason: String| Error::Edit {
        file: file.display().to_string(),
        field: format!("containerEdits.{field}"),
        reason,
    };
    for (field, given) in [
        ("netDevices", edits.net_devices.is_some()),
        ("intelRdt", edits.intel_rdt.is_some()),
    ] {
        if given {
            return Err(fails(field, "not supported".into()));
        }
    }
    for node in &edits.device_nodes {
        add_node(node, spec)
            .map_err(|reason| fails(&format!("deviceNodes {}", node.path), reason))?;
    }
    for hook in &edits.hooks {
        add_hook(hook, spec).map_err(|reason| fails("hooks", reason))?;
    }
    if let Some(process) = spec.process_mut() {
        let env = process.env_mut().get_or_insert_default();
        for entry in &edits.env {
            let name = entry.split('=').next();
            env.retain(|old| old.split('=').next() != name);
            env.push(entry.clone());
        }
        let groups = process
            .user_mut()
            .additional_gids_mut()
            .get_or_insert_default();
        for gid in &edits.additional_gids {
            // Root's group is no device's to give.
            if *gid != 0 && !groups.contains(gid) {
                groups.push(*gid);
            }
        }
    }
    let mounts = spec.mounts_mut().get_or_insert_default();
    for edit in &edits.mounts {
        if !edit.container_path.is_absolute() {
            let reason = format!("containerPath {:?} is not absolute", edit.container_path);
            return Err(fails("mounts", reason));
        }
        mounts.retain(|mount| *mount.destination() != edit.container_path);
        mounts.push(mount(edit));
    }
    Ok(())
}

fn mount(edit: &MountEdit) -> Mount {
    let mut options = edit.options.clone();
    let binds = |option: &String| option == "bind" || option == "rbind";
    if matches!(edit.kind.as_str(), "" | "bind") && !options.iter().any(binds) {
        options.push("rbind".into());
    }
    let kind = match edit.kind.as_str() {
        "" => "bind",
        kind => kind,
    };
    let mut mount = Mount::default();
    mount.set_destination(edit.container_path.clone());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(PathBuf::from(&edit.host_path)));
    mount.set_options(Some(options));
    mount
}

/// A device node and the right to use it. What the file leaves out is the host's device's; its owner is the
/// container's user.
fn add_node(node: &Node, spec: &mut Spec) -> Result<(), String> {
    let host = Path::new(node.host_path.as_deref().unwrap_or(&node.path));
    let user = spec
        .process()
        .as_ref()
        .map(|process| process.user().clone());
    let user = user.unwrap_or_default();
    let mut device = LinuxDevice::default();
    if node.kind.is_empty() || (node.kind != "p" && node.major == 0 && node.minor == 0) {
        let found = observe(host, Path::new(&node.path))
            .map_err(|error| format!("look up {}: {error}", host.display()))?;
        device = found.ok_or_else(|| format!("{} is not a device", host.display()))?;
    } else {
        device.set_major(node.major);
        device.set_minor(node.minor);
    }
    let kind = match node.kind.as_str() {
        "" => device.typ(),
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        "u" => LinuxDeviceType::U,
        "p" => LinuxDeviceType::P,
        other => return Err(format!("type {other:?} is none of b, c, u, p")),
    };
    device.set_path(node.path.clone().into());
    device.set_typ(kind);
    if node.file_mode.is_some() {
        device.set_file_mode(node.file_mode.map(|mode| mode & 0o7777));
    }
    device.set_uid(Some(node.uid.unwrap_or(user.uid())));
    device.set_gid(Some(node.gid.unwrap_or(user.gid())));
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    rule.set_typ(Some(kind));
    rule.set_major(Some(device.major()));
    rule.set_minor(Some(device.minor()));
    rule.set_access(Some(match node.permissions.as_str() {
        "" => "rwm".to_owned(),
        given => given.to_owned(),
    }));
    let linux = spec.linux_mut().get_or_insert_default();
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|other| other.path() != device.path());
    devices.push(device);
    if kind != LinuxDeviceType::P {
        let resources = linux.resources_mut().get_or_insert_default();
        resources.devices_mut().get_or_insert_default().push(rule);
    }
    Ok(())
}

fn add_hook(edit: &HookEdit, spec: &mut Spec) -> Result<(), String> {
    let mut hook = Hook::default();
    hook.set_path(edit.path.clone());
    hook.set_args(Some(edit.args.clone()));
    hook.set_env(Some(edit.env.clone()));
    hook.set_timeout(edit.timeout);
    let hooks: &mut Hooks = spec.hooks_mut().get_or_insert_default();
    // The others run on the host, whose programs and whose path to the root file system the keeper doesn't have.
    if edit.hook_name != "startContainer" {
        return Err(format!(
            "{} hooks are not run here, only startContainer",
            edit.hook_name
        ));
    }
    hooks
        .start_container_mut()
        .get_or_insert_default()
        .push(hook);
    Ok(())
}
