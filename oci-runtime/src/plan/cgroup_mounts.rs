//! `cgroup` mounts, which are one or many by the host's hierarchies.

use super::mount_options::{Options, with_propagation};
use super::mounts::MountContext;
use super::{FdList, MountPlan, MountSource};
use crate::error::{DuringPlan, Error};
use linux::cgroup::{self, Hierarchies, Layout};
use linux::mount::{self, Attributes, FsOption, Propagation, attr};
use linux::namespace::NamespaceKind;
use linux::path::Target;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A path of `/proc/self/cgroup` in a hierarchy's mount; the mount itself for what is outside of it.
fn below(mount: &Path, path: String) -> PathBuf {
    match path.trim_start_matches('/') {
        outside if outside.starts_with("..") => mount.to_owned(),
        inside => mount.join(inside),
    }
}

/// A `cgroup` mount: the container's own part of the tree; that of the caller's cgroup if it has none, as a user's
/// who may make none.
pub(super) fn plan_cgroup_mounts(
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
