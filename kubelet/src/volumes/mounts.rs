//! The mounts of one container (CRI Mount).

use std::path::Path;

use cri_api::v1;
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::subpath::{self, SubPath};
use super::{Error, Place, Places};
use crate::runtime::image_spec;
use crate::spec::expand::expand_strictly;

/// A container's mounts. The descriptors must live until the container has started: paths name them.
#[derive(Debug, Default)]
pub struct ContainerMounts {
    /// For the CRI.
    pub mounts: Vec<v1::Mount>,
    /// What keeps sub-paths where they are.
    pub held: Vec<SubPath>,
}

/// Makes the mounts of a container's volumes. `env` gives values for `subPathExpr`. It blocks.
pub fn container_mounts(
    container: &Container,
    places: &Places,
    env: impl Fn(&str) -> Option<String>,
) -> Result<ContainerMounts, Error> {
    let mut all = ContainerMounts::default();
    for mount in container.volume_mounts.iter().flatten() {
        let place = places
            .get(&mount.name)
            .ok_or_else(|| Error::NoVolume(mount.name.clone()))?;
        let sub_path = sub_path(mount, &env)?;
        let made = match place {
            Place::Image { reference } => v1::Mount {
                container_path: absolute(&mount.mount_path),
                readonly: true,
                image: Some(image_spec(reference)),
                image_sub_path: sub_path,
                ..v1::Mount::default()
            },
            Place::Host { path, read_only } => {
                let host_path = if sub_path.is_empty() {
                    path.to_string_lossy().into_owned()
                } else {
                    let place =
                        subpath::resolve(path, &sub_path).map_err(|source| Error::SubPath {
                            volume: mount.name.clone(),
                            source,
                        })?;
                    let path = place.path();
                    all.held.push(place);
                    path
                };
                let readonly = *read_only || mount.read_only == Some(true);
                v1::Mount {
                    container_path: absolute(&mount.mount_path),
                    host_path,
                    readonly,
                    propagation: propagation(mount) as i32,
                    recursive_read_only: readonly
                        && mount.recursive_read_only.as_deref() == Some("Enabled"),
                    ..v1::Mount::default()
                }
            }
        };
        all.mounts.push(made);
    }
    Ok(all)
}

fn sub_path(mount: &VolumeMount, env: &impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    match mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
        None => Ok(mount.sub_path.clone().unwrap_or_default()),
        Some(expression) => {
            expand_strictly(expression, env).map_err(|missing| Error::SubPathExpr {
                volume: mount.name.clone(),
                missing,
            })
        }
    }
}

fn absolute(path: &str) -> String {
    Path::new("/").join(path).to_string_lossy().into_owned()
}

fn propagation(mount: &VolumeMount) -> v1::MountPropagation {
    match mount.mount_propagation.as_deref() {
        Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
        Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
        _ => v1::MountPropagation::PropagationPrivate,
    }
}
