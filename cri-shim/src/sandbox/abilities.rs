//! What the kernel and the file system of the server's files can do of what not all can.

use std::path::Path;

use linux::mount::{self, Attributes, Overlay, attr};
use linux::namespace;

/// Asked once, when the server starts.
#[derive(Debug, Clone)]
pub struct Abilities {
    /// Linux 5.12.
    pub recursive_read_only_mounts: bool,
    /// Why pods can't have user namespaces of their own, if they can't.
    pub user_namespaces: Result<(), String>,
}

impl Abilities {
    /// `root` is where images and containers lie.
    pub fn observe(root: &Path) -> Self {
        let read_only = Attributes {
            set: attr::RDONLY,
            ..Attributes::default()
        };
        let mounted = mount::bind(root, true);
        let made = mounted.and_then(|mount| mount::set_attributes(mount, true, &read_only));
        Self {
            recursive_read_only_mounts: made.is_ok(),
            user_namespaces: try_mapped_layer(root).map_err(|why| why.to_string()),
        }
    }
}

fn try_mapped_layer(root: &Path) -> Result<(), Unable> {
    // Any range will do: nothing is read through it.
    const RANGE: &str = "0 65536 65536";
    let user = namespace::user_with_mapping(RANGE, RANGE).map_err(Unable::Namespace)?;
    let layer = mount::bind(root, false).map_err(Unable::Namespace)?;
    let unable = |cause| Unable::Layer {
        root: root.display().to_string(),
        cause,
    };
    mount::set_idmap(layer, false, &user).map_err(unable)?;
    let layers = ["images", "containers"].map(|folder| root.join(folder));
    for layer in &layers {
        std::fs::create_dir_all(layer).map_err(|cause| {
            unable(linux::Error::io(
                "mkdir",
                layer.display().to_string(),
                &cause,
            ))
        })?;
    }
    let lowers = layers.each_ref().map(std::path::PathBuf::as_path);
    let layers = Overlay {
        lowers: &lowers,
        upper: None,
        volatile: false,
    };
    mount::overlay_mapped(layers, &user)
        .map(drop)
        .map_err(Unable::Overlay)
}

#[derive(Debug, thiserror::Error)]
enum Unable {
    #[error(
        "the kernel makes no user namespace (is user.max_user_namespaces 0, or CONFIG_USER_NS not set?): {0}"
    )]
    Namespace(linux::Error),
    #[error(
        "the file system of {root} can't map ids, put it on one that can, as ext4, xfs, btrfs, or tmpfs of Linux 6.3: \
         {cause}"
    )]
    Layer { root: String, cause: linux::Error },
    #[error("the kernel's overlayfs can't map the ids of layers (Linux 5.19 can): {0}")]
    Overlay(linux::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_maps_no_ids_is_named() {
        let unable = try_mapped_layer(Path::new("/proc"))
            .unwrap_err()
            .to_string();
        assert!(unable.contains("file system of /proc"), "{unable}");
    }
}
