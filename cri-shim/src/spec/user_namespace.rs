//! User namespaces of pods, and mounts whose ids are mapped (CRI NamespaceOption.userns_options, Mount.uidMappings).

use cri_api::v1::{IdMapping, Mount, NamespaceMode, NamespaceOption};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::Error;

const FIELD: &str = "linux.security_context.namespace_options.userns_options";

/// The host's ids that a pod's from 0 on are, user and group ids alike; `None` for a pod of the host's user namespace.
///
/// # Errors
/// [`Error::Invalid`], with the field, for a mode or a mapping that makes no sense.
pub fn user_mapping(options: &NamespaceOption) -> Result<Option<IdMapping>, Error> {
    let Some(user) = &options.userns_options else {
        return Ok(None);
    };
    let invalid = |field: &str, reason: String| Error::invalid(format!("{FIELD}{field}"), reason);
    match user.mode() {
        NamespaceMode::Node if user.uids.is_empty() && user.gids.is_empty() => return Ok(None),
        NamespaceMode::Node => {
            return Err(invalid(
                "",
                "can't use user namespace mode NODE with mappings".into(),
            ));
        }
        NamespaceMode::Pod => {}
        other => {
            let reason = format!("unsupported user namespace mode {}", other.as_str_name());
            return Err(invalid(".mode", reason));
        }
    }
    let one = |field: &str, mappings: &[IdMapping]| match mappings {
        [] => Err(invalid(
            field,
            "can't use user namespace mode POD without a mapping".into(),
        )),
        [mapping] => check_range(mapping)
            .map(|()| *mapping)
            .map_err(|reason| invalid(field, reason)),
        several => Err(invalid(
            field,
            format!(
                "only one mapping line supported, got {} mapping lines",
                several.len()
            ),
        )),
    };
    let (uids, gids) = (one(".uids", &user.uids)?, one(".gids", &user.gids)?);
    if uids != gids {
        return Err(invalid(".gids", "must be the same mapping as uids".into()));
    }
    if uids.container_id != 0 {
        return Err(invalid(
            ".uids",
            format!("container id 0 is not mapped, only {}", uids.container_id),
        ));
    }
    Ok(Some(uids))
}

fn check_range(mapping: &IdMapping) -> Result<(), String> {
    let length = mapping.length;
    // The largest number, -1, is no id.
    let fits = |first: u32| first.checked_add(length).is_some();
    if length == 0 {
        return Err("invalid mapping length: 0".into());
    }
    if !fits(mapping.host_id) || !fits(mapping.container_id) {
        return Err(format!(
            "{length} ids from {} on the host and {} in the pod don't fit in 32 bits",
            mapping.host_id, mapping.container_id
        ));
    }
    Ok(())
}

/// Whether a sandbox with a user namespace may have these options: what it shares with the host it can't own.
///
/// # Errors
/// [`Error::Invalid`] with the field.
pub fn check_owned(options: &NamespaceOption) -> Result<(), Error> {
    let shared = [
        ("network", options.network()),
        ("pid", options.pid()),
        ("ipc", options.ipc()),
    ];
    for (name, mode) in shared {
        if mode == NamespaceMode::Node {
            return Err(Error::invalid(
                format!("linux.security_context.namespace_options.{name}"),
                "NODE and a user namespace of the pod exclude each other",
            ));
        }
    }
    Ok(())
}

/// A mount's mappings of users and groups; `None` for one whose ids are as on the host.
///
/// # Errors
/// [`Error::Invalid`] for one of the two without the other, and for a range that isn't one.
pub fn mount_mappings(mount: &Mount) -> Result<Option<[&[IdMapping]; 2]>, Error> {
    let both = [&mount.uid_mappings, &mount.gid_mappings].map(Vec::as_slice);
    let invalid = |field: &str, why: String| {
        Error::invalid(format!("mounts[{}]{field}", mount.container_path), why)
    };
    match both {
        [[], []] => Ok(None),
        [[], _] | [_, []] => Err(invalid(
            "",
            "uidMappings and gidMappings go together".into(),
        )),
        _ => {
            for (field, mappings) in [".uidMappings", ".gidMappings"].into_iter().zip(both) {
                let checked = mappings.iter().try_for_each(check_range);
                checked.map_err(|why| invalid(field, why))?;
            }
            Ok(Some(both))
        }
    }
}

/// Mappings as a specification has them.
///
/// # Errors
/// None that a mapping can cause.
pub fn oci_mappings(mappings: &[IdMapping]) -> Result<Vec<LinuxIdMapping>, Error> {
    let oci = mappings.iter().map(|mapping| {
        LinuxIdMappingBuilder::default()
            .container_id(mapping.container_id)
            .host_id(mapping.host_id)
            .size(mapping.length)
            .build()
            .map_err(|error| Error::invalid("id mapping", error.to_string()))
    });
    oci.collect()
}

/// Mappings as a map file has them (user_namespaces(7)).
pub fn map_text(mappings: &[IdMapping]) -> String {
    let line = |mapping: &IdMapping| {
        format!(
            "{} {} {}\n",
            mapping.container_id, mapping.host_id, mapping.length
        )
    };
    mappings.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use cri_api::v1::UserNamespace;

    use super::*;

    fn map(host_id: u32, container_id: u32, length: u32) -> IdMapping {
        IdMapping {
            host_id,
            container_id,
            length,
        }
    }

    fn parse(
        mode: NamespaceMode,
        uids: &[IdMapping],
        gids: &[IdMapping],
    ) -> Result<Option<IdMapping>, String> {
        let options = NamespaceOption {
            userns_options: Some(UserNamespace {
                mode: mode as i32,
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            }),
            ..Default::default()
        };
        user_mapping(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pod_has_one_mapping_for_users_and_groups_that_begins_at_root() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let good = map(65_536, 0, 65_536);
        assert_eq!(parse(Pod, &[good], &[good]), Ok(Some(good)));
        assert_eq!(parse(Node, &[], &[]), Ok(None));
        assert_eq!(user_mapping(&NamespaceOption::default()).unwrap(), None);
        let refused = |mode, uids: &[IdMapping], gids: &[IdMapping], field: &str| {
            let error = parse(mode, uids, gids).unwrap_err();
            assert!(error.starts_with(&format!("{FIELD}{field}: ")), "{error}");
        };
        refused(Pod, &[], &[], ".uids");
        refused(Pod, &[good], &[], ".gids");
        refused(Pod, &[good, map(200_000, 65_536, 1)], &[good], ".uids");
        refused(Pod, &[good], &[map(65_536, 0, 65_535)], ".gids");
        refused(Pod, &[map(65_536, 0, 0)], &[good], ".uids");
        refused(Pod, &[map(u32::MAX - 1, 0, 2)], &[good], ".uids");
        refused(Pod, &[map(1000, 1, 100)], &[map(1000, 1, 100)], ".uids");
        refused(Node, &[good], &[], "");
        refused(Container, &[good], &[good], ".mode");
        refused(Target, &[], &[], ".mode");
    }

    #[test]
    fn a_mounts_mappings_go_together() {
        let mount = |uids: &[IdMapping], gids: &[IdMapping]| Mount {
            container_path: "/data".into(),
            uid_mappings: uids.to_vec(),
            gid_mappings: gids.to_vec(),
            ..Default::default()
        };
        let good = [map(65_536, 0, 65_536)];
        assert!(mount_mappings(&mount(&[], &[])).unwrap().is_none());
        assert!(mount_mappings(&mount(&good, &good)).unwrap().is_some());
        for bad in [mount(&good, &[]), mount(&good, &[map(0, 0, 0)])] {
            let error = mount_mappings(&bad).unwrap_err().to_string();
            assert!(error.starts_with("mounts[/data]"), "{error}");
        }
        assert_eq!(map_text(&good), "0 65536 65536\n");
    }
}
