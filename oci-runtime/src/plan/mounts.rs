//! `mounts` of a spec: options parsed, sources opened.

use super::bind_flags::{BindFlags, mount_flags};
use super::namespaces::{host_id, map_text};
use super::{FdList, MountPlan, MountSource, NamespacePlan, UserMapping};
use crate::error::{DuringPlan, Error};
use linux::cgroup::{self, Cgroup, Hierarchies, Layout};
use linux::mount::{self, Attributes, FsOption, Propagation, attr};
use linux::namespace::NamespaceKind;
use linux::path::Target;
use oci_spec::runtime::{Linux, Mount};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What mount options mean, apart from the file system's own.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub bind: bool,
    pub recursive_bind: bool,
    pub attributes: Attributes,
    pub recursive: Attributes,
    /// The plain attributes as a bind mount takes them.
    pub bind_flags: BindFlags,
    /// With whether it is recursive.
    pub propagation: Option<(Propagation, bool)>,
    pub copy_up: bool,
    /// Ids are mapped; with whether that is recursive.
    pub idmap: Option<bool>,
    pub data: Vec<FsOption>,
}

/// An attribute option: bits to set, and bits to clear.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (attr::RDONLY, 0),
        "rw" => (0, attr::RDONLY),
        "nosuid" => (attr::NOSUID, 0),
        "suid" => (0, attr::NOSUID),
        "nodev" => (attr::NODEV, 0),
        "dev" => (0, attr::NODEV),
        "noexec" => (attr::NOEXEC, 0),
        "exec" => (0, attr::NOEXEC),
        "nodiratime" => (attr::NODIRATIME, 0),
        "diratime" => (0, attr::NODIRATIME),
        "nosymfollow" => (attr::NOSYMFOLLOW, 0),
        "symfollow" => (0, attr::NOSYMFOLLOW),
        "noatime" => (attr::NOATIME, attr::ATIME),
        "strictatime" => (attr::STRICTATIME, attr::ATIME),
        "relatime" | "atime" | "nostrictatime" => (0, attr::ATIME),
        // As mount(8): it takes a word back, and what is left without one is the kernel's default.
        "norelatime" => (0, 0),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<(Propagation, bool)> {
    Some(match option {
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "unbindable" => (Propagation::Unbindable, false),
        "runbindable" => (Propagation::Unbindable, true),
        _ => return None,
    })
}

/// `linux.rootfsPropagation`.
pub(super) fn parse_rootfs_propagation(text: &str) -> Result<(Propagation, bool), Error> {
    propagation(text)
        .ok_or_else(|| Error::spec("linux.rootfsPropagation", format!("unknown value {text:?}")))
}

/// The mount options that are ours and not the file system's, as `features` lists them.
pub(crate) const MOUNT_OPTIONS: &[&str] = &[
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "lazytime",
    "loud",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "unbindable",
];

fn change(attributes: &mut Attributes, (set, clear): (u64, u64)) {
    attributes.set = (attributes.set & !clear) | set;
    attributes.clear = (attributes.clear & !set) | clear;
}

/// Reads mount options (config.md, "Mounts"; config-linux.md for the recursive ones).
pub(super) fn parse_options(options: &[String]) -> Options {
    let mut out = Options::default();
    for option in options {
        out.bind_flags.read(option);
        match option.as_str() {
            "bind" => out.bind = true,
            "rbind" => {
                out.bind = true;
                out.recursive_bind = true;
            }
            "tmpcopyup" => out.copy_up = true,
            "idmap" => out.idmap = Some(false),
            "ridmap" => out.idmap = Some(true),
            "" | "defaults" | "async" | "loud" | "silent" | "nomand" | "noiversion"
            | "nolazytime" => {}
            other => {
                if let Some(bits) = attribute(other) {
                    change(&mut out.attributes, bits);
                } else if let Some(kind) = propagation(other) {
                    out.propagation = Some(kind);
                } else if let Some(bits) = other.strip_prefix('r').and_then(attribute) {
                    change(&mut out.recursive, bits);
                } else {
                    let (key, value) = match other.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (other.to_owned(), None),
                    };
                    out.data.push((key, value));
                }
            }
        }
    }
    out
}

/// The mapping of a mount that has none of its own.
pub(super) enum Mapping {
    None,
    Joined(OwnedFd),
    New(UserMapping),
}

impl Mapping {
    /// A user namespace with it.
    fn namespace(&self) -> Result<OwnedFd, Error> {
        let cause = |error: &std::io::Error| linux::Error::io("dup", "user namespace", error);
        match self {
            Mapping::None => Err(Error::spec(
                "mounts",
                "idmap without a mapping and without a user namespace",
            )),
            Mapping::Joined(fd) => fd
                .try_clone()
                .map_err(|error| cause(&error))
                .during(|| "map mount's ids"),
            Mapping::New(mapping) => {
                linux::namespace::user_with_mapping(&mapping.uid_map, &mapping.gid_map)
                    .during(|| "map mount's ids")
            }
        }
    }
}

/// What resolving the spec's mounts needs besides them.
pub(super) struct MountContext<'a> {
    pub bundle: &'a Path,
    pub namespaces: &'a NamespacePlan,
    pub cgroup: Option<&'a Cgroup>,
    pub user_namespace: Mapping,
    /// Detached mounts by destination, in place of sources.
    pub given: Vec<(PathBuf, OwnedFd)>,
    /// The root file system's directory, where it is one.
    pub rootfs: Option<PathBuf>,
    /// The destinations of the mounts before.
    pub earlier: Vec<PathBuf>,
}

impl MountContext<'_> {
    /// A destination in the container; one that repeats the root file system's directory means what is below that.
    pub(super) fn destination(&self, spec: &Mount) -> PathBuf {
        let given = spec.destination();
        let below = self
            .rootfs
            .as_ref()
            .and_then(|rootfs| given.strip_prefix(rootfs).ok());
        Path::new("/").join(below.unwrap_or(given))
    }

    /// A source's path in the container, if an earlier mount covers what is there on the host.
    fn inside(&self, source: &Path) -> Option<PathBuf> {
        let path = Path::new("/").join(source.strip_prefix(self.rootfs.as_ref()?).ok()?);
        let plain = path
            .components()
            .all(|part| !matches!(part, std::path::Component::ParentDir));
        (plain && self.earlier.iter().any(|mount| path.starts_with(mount))).then_some(path)
    }
}

/// Resolves one entry of `mounts` into one or, for cgroups, several.
pub(super) fn plan_mount(
    position: usize,
    spec: &Mount,
    context: &mut MountContext<'_>,
    fds: &mut FdList,
) -> Result<Vec<MountPlan>, Error> {
    let field = |name: &str| format!("mounts[{position}].{name}");
    let destination = context.destination(spec);
    if destination == Path::new("/") {
        return Err(Error::spec(field("destination"), "is the container's root"));
    }
    let options = parse_options(spec.options().as_deref().unwrap_or_default());
    let kind = spec.typ().as_deref().unwrap_or_default();
    if options.bind
        || kind == "bind"
        || kind == "rbind"
        || (kind.is_empty() && spec.source().is_some())
    {
        return plan_bind(position, spec, &destination, &options, context, fds)
            .map(|plan| vec![plan]);
    }
    if kind.is_empty() || kind == "none" {
        return Err(Error::spec(field("type"), "is missing"));
    }
    if kind == "cgroup" || kind == "cgroup2" {
        return plan_cgroup_mounts(&destination, &options, context, fds);
    }
    Ok(vec![plan_file_system(kind, spec, &destination, options)])
}

fn plan_file_system(kind: &str, spec: &Mount, destination: &Path, options: Options) -> MountPlan {
    let (attributes, recursive_attributes) = with_propagation(&options, None);
    MountPlan {
        destination: destination.to_owned(),
        source: MountSource::FileSystem {
            kind: kind.to_owned(),
            source: Some(
                spec.source()
                    .as_ref()
                    .map_or(kind.to_owned(), |path| path.display().to_string()),
            ),
            options: options.data,
            copy_up: options.copy_up,
        },
        target: Target::Directory,
        attributes,
        recursive_attributes,
    }
}

/// Splits the propagation into the plain or the recursive change.
fn with_propagation(
    options: &Options,
    default: Option<(Propagation, bool)>,
) -> (Attributes, Attributes) {
    let (mut attributes, mut recursive) = (options.attributes, options.recursive);
    match options.propagation.or(default) {
        Some((kind, true)) => recursive.propagation = Some(kind),
        Some((kind, false)) => attributes.propagation = Some(kind),
        None => {}
    }
    (attributes, recursive)
}

/// The type alone may say it, as in `"type": "rbind"` without options.
fn is_recursive(spec: &Mount, options: &Options) -> bool {
    options.recursive_bind || spec.typ().as_deref() == Some("rbind")
}

fn plan_bind(
    position: usize,
    spec: &Mount,
    destination: &Path,
    options: &Options,
    context: &mut MountContext<'_>,
    fds: &mut FdList,
) -> Result<MountPlan, Error> {
    let given = context
        .given
        .iter()
        .position(|(path, _)| Path::new("/").join(path) == destination);
    let inside = match (given, spec.source()) {
        (None, Some(source)) => context.inside(&context.bundle.join(source)),
        _ => None,
    };
    if let Some(path) = inside {
        let (attributes, recursive_attributes) =
            with_propagation(options, Some((Propagation::Private, true)));
        let idmap = plan_idmap(position, spec, options, context)?;
        return Ok(MountPlan {
            destination: destination.to_owned(),
            source: MountSource::Inside {
                path,
                recursive: is_recursive(spec, options),
                idmap: idmap.map(|(namespace, recursive)| (fds.push(namespace), recursive)),
            },
            target: Target::Directory,
            attributes,
            recursive_attributes,
        });
    }
    let detached = match (given, spec.source()) {
        (Some(index), _) => context.given.swap_remove(index).1,
        (None, Some(source)) => {
            mount::bind(&context.bundle.join(source), is_recursive(spec, options))
                .during(|| format!("open source of mount {}", destination.display()))?
        }
        (None, None) => {
            return Err(Error::spec(
                format!("mounts[{position}].source"),
                "is missing",
            ));
        }
    };
    if let Some((namespace, recursive)) = plan_idmap(position, spec, options, context)? {
        mount::set_idmap(&detached, recursive, &namespace).map_err(|error| match error.errno {
            // The kernel's one word for "this file system can't" (tmpfs before Linux 6.3, many others).
            libc::EINVAL => Error::unsupported(
                format!("mounts[{position}]"),
                format!("the file system of {} can't map ids", destination.display()),
            ),
            _ => Error::Kernel {
                step: format!("map ids of mount {}", destination.display()),
                cause: error,
            },
        })?;
    }
    let is_dir = linux::path::is_directory(&detached).during(|| "stat mount source")?;
    // The clone is a member of its source's peer group: what the container mounts must not reach the host.
    let (mut attributes, recursive) = with_propagation(options, Some((Propagation::Private, true)));
    if !options.bind_flags.is_empty() {
        let source = mount_flags(&detached).during(|| "stat mount source")?;
        let locked = context.namespaces.has_user() || linux::namespace::in_user_namespace();
        let wanted = options
            .bind_flags
            .over(source, locked)
            .map_err(|kept| Error::Kernel {
                step: format!("mount {}", destination.display()),
                cause: linux::Error::new(
                    "change flags that the source's mount locks",
                    kept,
                    libc::EPERM,
                ),
            })?;
        (attributes.set, attributes.clear) = (wanted.set, wanted.clear);
    }
    // Applied here and not in the child, where the source's flags would be locked in a user namespace.
    mount::set_attributes(&detached, true, &recursive)
        .during(|| format!("set attributes of mount {}", destination.display()))?;
    mount::set_attributes(&detached, false, &attributes)
        .during(|| format!("set attributes of mount {}", destination.display()))?;
    Ok(MountPlan {
        destination: destination.to_owned(),
        source: MountSource::Detached(fds.push(detached)),
        target: if is_dir {
            Target::Directory
        } else {
            Target::File
        },
        attributes: Attributes::default(),
        recursive_attributes: Attributes::default(),
    })
}

/// The user namespace that maps a mount's ids, and whether those of the mounts below too.
fn plan_idmap(
    position: usize,
    spec: &Mount,
    options: &Options,
    context: &MountContext<'_>,
) -> Result<Option<(OwnedFd, bool)>, Error> {
    let own =
        [spec.uid_mappings(), spec.gid_mappings()].map(|maps| maps.as_deref().unwrap_or_default());
    let recursive = options.idmap.unwrap_or(false);
    match own {
        [[], []] if options.idmap.is_none() => Ok(None),
        [[], []] => Ok(Some((context.user_namespace.namespace()?, recursive))),
        [[], _] | [_, []] => Err(Error::spec(
            format!("mounts[{position}]"),
            "uidMappings and gidMappings go together",
        )),
        [uids, gids] => {
            let namespace =
                linux::namespace::user_with_mapping(&map_text(uids), &map_text(gids))
                    .during(|| format!("map ids of mount {}", spec.destination().display()))?;
            Ok(Some((namespace, recursive)))
        }
    }
}

/// A path of `/proc/self/cgroup` in a hierarchy's mount; the mount itself for what is outside of it.
fn below(mount: &Path, path: String) -> PathBuf {
    match path.trim_start_matches('/') {
        outside if outside.starts_with("..") => mount.to_owned(),
        inside => mount.join(inside),
    }
}

/// A `cgroup` mount: the container's own part of the tree; that of the caller's cgroup if it has none, as a user's
/// who may make none.
fn plan_cgroup_mounts(
    destination: &Path,
    options: &Options,
    context: &MountContext<'_>,
    fds: &mut FdList,
) -> Result<Vec<MountPlan>, Error> {
    let namespaced = context.namespaces.makes(NamespaceKind::Cgroup);
    let hierarchies = match context.cgroup {
        Some(cgroup) => cgroup.hierarchies().clone(),
        None => Arc::new(Hierarchies::discover().during(|| "find the host's cgroup hierarchies")?),
    };
    let (attributes, recursive_attributes) = with_propagation(options, None);
    let mut one = |destination: PathBuf, dir: PathBuf, kind: &str, data: Vec<FsOption>| {
        let source = if namespaced {
            MountSource::FileSystem {
                kind: kind.to_owned(),
                source: Some("cgroup".to_owned()),
                options: data,
                copy_up: false,
            }
        } else {
            let detached =
                mount::bind(&dir, false).during(|| format!("open cgroup {}", dir.display()))?;
            mount::set_attributes(
                &detached,
                false,
                &Attributes {
                    propagation: Some(Propagation::Private),
                    ..attributes
                },
            )
            .during(|| "set attributes of cgroup mount")?;
            MountSource::Detached(fds.push(detached))
        };
        Ok(MountPlan {
            destination,
            source,
            target: Target::Directory,
            attributes,
            recursive_attributes,
        })
    };
    let unified_dir = match (context.cgroup, &hierarchies.unified) {
        (Some(cgroup), _) => cgroup.unified_dir(),
        (None, Some(mount)) => Some(below(
            mount,
            cgroup::own_path().during(|| "find own cgroup")?,
        )),
        (None, None) => None,
    };
    if hierarchies.layout() == Layout::Unified {
        let dir = unified_dir.unwrap_or_default();
        return Ok(vec![one(
            destination.to_owned(),
            dir,
            "cgroup2",
            Vec::new(),
        )?]);
    }
    let mut plans = vec![MountPlan {
        destination: destination.to_owned(),
        source: MountSource::FileSystem {
            kind: "tmpfs".to_owned(),
            source: Some("tmpfs".to_owned()),
            options: vec![("mode".to_owned(), Some("755".to_owned()))],
            copy_up: false,
        },
        target: Target::Directory,
        attributes: Attributes {
            set: attributes.set & !attr::RDONLY,
            ..attributes
        },
        recursive_attributes,
    }];
    for v1 in &hierarchies.v1 {
        let Some(controller) = v1.controllers.first() else {
            continue;
        };
        let name = v1.controllers.join(",");
        let dir = match context.cgroup {
            Some(cgroup) => cgroup.v1_dir(controller).unwrap_or_default(),
            None => {
                let own = cgroup::own_v1_path(controller).during(|| "find own cgroup")?;
                below(&v1.mount, own.unwrap_or_default())
            }
        };
        let data = v1
            .controllers
            .iter()
            .map(|name| (name.clone(), None))
            .collect();
        plans.push(one(destination.join(&name), dir, "cgroup", data)?);
        if v1.controllers.len() > 1 {
            plans.extend(v1.controllers.iter().map(|alias| MountPlan {
                destination: destination.join(alias),
                source: MountSource::Link(name.clone()),
                target: Target::File,
                attributes: Attributes::default(),
                recursive_attributes: Attributes::default(),
            }));
        }
    }
    if let Some(dir) = unified_dir {
        plans.push(one(
            destination.join("unified"),
            dir,
            "cgroup2",
            Vec::new(),
        )?);
    }
    if attributes.set & attr::RDONLY != 0 {
        plans.push(MountPlan {
            destination: destination.to_owned(),
            source: MountSource::Existing,
            target: Target::Directory,
            attributes: Attributes {
                set: attr::RDONLY,
                ..Attributes::default()
            },
            recursive_attributes: Attributes::default(),
        });
    }
    Ok(plans)
}

/// Turns the planned devpts into a detached mount that is made now, so that the terminal can be opened before the
/// child exists. Its ids count in this process's user namespace and are mapped for that.
pub(super) fn detach_devpts(
    mounts: &mut [MountPlan],
    linux: &Linux,
    mapped: bool,
    fds: &mut FdList,
) -> Result<Option<super::Fd>, Error> {
    for plan in mounts.iter_mut() {
        let MountSource::FileSystem {
            kind,
            source,
            options,
            ..
        } = &plan.source
        else {
            continue;
        };
        if kind != "devpts" {
            continue;
        }
        let mut options = options.clone();
        // A joined user namespace has its mapping itself, which the spec need not repeat: no id can be said then.
        let unknown = linux.uid_mappings().iter().flatten().next().is_none();
        options.retain(|(key, _)| !(mapped && unknown && ["uid", "gid"].contains(&key.as_str())));
        for (key, value) in &mut options {
            let mappings = match key.as_str() {
                "uid" => linux.uid_mappings(),
                "gid" => linux.gid_mappings(),
                _ => continue,
            };
            let id = value.as_deref().and_then(|text| text.parse::<u32>().ok());
            if let Some(id) = id.filter(|_| mapped) {
                let host = host_id(mappings, id).ok_or_else(|| {
                    Error::spec("mounts", format!("devpts: {key} {id} has no mapping"))
                })?;
                *value = Some(host.to_string());
            }
        }
        let devpts =
            mount::new_file_system("devpts", source.as_deref(), &options, plan.attributes.set)
                .during(|| "mount devpts")?;
        let fd = fds.push(devpts);
        plan.source = MountSource::Detached(fd);
        return Ok(Some(fd));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        parse_options(
            &options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn later_options_win_and_unknown_ones_are_the_file_systems() {
        let options = parse(&["ro", "nosuid", "rw", "size=64k", "mode=755", "inode64"]);
        assert_eq!(options.attributes.set, attr::NOSUID);
        assert_eq!(options.attributes.clear, attr::RDONLY);
        assert_eq!(
            options.data,
            [
                ("size".into(), Some("64k".into())),
                ("mode".into(), Some("755".into())),
                ("inode64".into(), None)
            ]
        );
    }

    #[test]
    fn recursive_options_are_apart() {
        let options = parse(&["rbind", "rro", "rslave", "rnosuid"]);
        assert!(options.recursive_bind);
        assert_eq!(options.recursive.set, attr::RDONLY | attr::NOSUID);
        assert_eq!(options.attributes, Attributes::default());
        assert_eq!(options.propagation, Some((Propagation::Slave, true)));
    }

    #[test]
    fn an_access_time_option_clears_the_others() {
        let options = parse(&["noatime"]);
        assert_eq!(options.attributes.set, attr::NOATIME);
        assert_eq!(
            options.attributes.clear,
            attr::ATIME,
            "the kernel wants the whole mask cleared"
        );
    }
}
