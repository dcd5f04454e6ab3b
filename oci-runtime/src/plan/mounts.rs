//! `mounts` of a spec: sources opened.

use super::bind_flags::mount_flags;
use super::cgroup_mounts::plan_cgroup_mounts;
use super::mount_options::{Options, parse_options, with_propagation};
use super::namespaces::{host_id, map_text};
use super::{FdList, MountPlan, MountSource, NamespacePlan, UserMapping};
use crate::error::{DuringPlan, Error};
use linux::cgroup::Cgroup;
use linux::mount::{self, Attributes, Propagation};
use linux::path::Target;
use oci_spec::runtime::{Linux, Mount};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

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
