//! What files a ConfigMap, a Secret, the downward API, a token or a projection of them puts into a volume: pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume,
};

use super::atomic::{File, Payload};
use crate::fields::{self, NodeFacts};
use crate::pod::PodExt;

const DEFAULT_MODE: i32 = 0o644;

/// A volume whose files can't be made (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An object that isn't there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A key that the object doesn't have.
    #[error("references non-existent {kind} key: {key}")]
    NoKey {
        /// `config` or `secret`.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// A token that wasn't issued.
    #[error("failed to fetch token: {0}")]
    Token(String),
    /// A field that has no value.
    #[error(transparent)]
    Field(#[from] fields::Error),
    /// A source that this kubelet doesn't know.
    #[error("unsupported projected source in volume \"{0}\"")]
    Unsupported(String),
}

/// The objects that volumes are made of, as they are now.
#[derive(Default)]
pub struct Objects {
    /// ConfigMaps of the pod's namespace, by name.
    pub config_maps: HashMap<String, Arc<ConfigMap>>,
    /// Secrets of the pod's namespace, by name.
    pub secrets: HashMap<String, Arc<Secret>>,
    /// Tokens, by volume name and path in it.
    pub tokens: HashMap<(String, String), String>,
}

/// Whose files these are, beside the group.
pub struct Owner {
    /// The one user that all containers run as, if there is one.
    pub run_as_user: Option<u32>,
    /// Whether a group owns the volume.
    pub fs_group: bool,
}

/// The files of a volume; none if the volume isn't made of files of ours.
pub fn payload(
    pod: &Pod,
    volume: &Volume,
    objects: &Objects,
    node: &NodeFacts,
    owner: &Owner,
) -> Option<Result<Payload, Error>> {
    let mut files = Payload::new();
    let outcome = if let Some(source) = &volume.config_map {
        let mode = mode(source.default_mode, None);
        config_map(
            &source.name,
            source.items.as_deref(),
            source.optional,
            mode,
            objects,
            &mut files,
        )
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let mode = mode(source.default_mode, None);
        secret(
            name,
            source.items.as_deref(),
            source.optional,
            mode,
            objects,
            &mut files,
        )
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or(&[]);
        downward(
            pod,
            items,
            mode(source.default_mode, None),
            node,
            &mut files,
        )
    } else {
        volume.projected.as_ref()?;
        projected(pod, volume, objects, node, owner, &mut files)
    };
    Some(outcome.map(|()| files))
}

fn projected(
    pod: &Pod,
    volume: &Volume,
    objects: &Objects,
    node: &NodeFacts,
    owner: &Owner,
    files: &mut Payload,
) -> Result<(), Error> {
    let Some(source) = &volume.projected else {
        return Ok(());
    };
    let default = mode(source.default_mode, None);
    for part in source.sources.iter().flatten() {
        if let Some(part) = &part.config_map {
            config_map(
                &part.name,
                part.items.as_deref(),
                part.optional,
                default,
                objects,
                files,
            )?;
        } else if let Some(part) = &part.secret {
            secret(
                &part.name,
                part.items.as_deref(),
                part.optional,
                default,
                objects,
                files,
            )?;
        } else if let Some(part) = &part.downward_api {
            downward(
                pod,
                part.items.as_deref().unwrap_or(&[]),
                default,
                node,
                files,
            )?;
        } else if let Some(part) = &part.service_account_token {
            token(&volume.name, part, default, objects, owner, files)?;
        } else {
            return Err(Error::Unsupported(volume.name.clone()));
        }
    }
    Ok(())
}

fn mode(default: Option<i32>, own: Option<i32>) -> u32 {
    own.or(default).unwrap_or(DEFAULT_MODE).unsigned_abs() & 0o7777
}

fn config_map(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
    objects: &Objects,
    files: &mut Payload,
) -> Result<(), Error> {
    let mut keys = BTreeMap::new();
    match objects.config_maps.get(name) {
        Some(object) => {
            let text = object
                .data
                .iter()
                .flatten()
                .map(|(k, v)| (k.as_str(), v.as_bytes()));
            let binary = object
                .binary_data
                .iter()
                .flatten()
                .map(|(k, v)| (k.as_str(), v.0.as_slice()));
            keys.extend(text.chain(binary));
        }
        None if optional == Some(true) => return Ok(()),
        None => {
            return Err(Error::NotFound {
                kind: "configmap",
                name: name.to_owned(),
            });
        }
    }
    take_keys("config", &keys, items, optional, mode, files)
}

fn secret(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
    objects: &Objects,
    files: &mut Payload,
) -> Result<(), Error> {
    let keys = match objects.secrets.get(name) {
        Some(object) => object
            .data
            .iter()
            .flatten()
            .map(|(k, v)| (k.as_str(), v.0.as_slice()))
            .collect(),
        None if optional == Some(true) => return Ok(()),
        None => {
            return Err(Error::NotFound {
                kind: "secret",
                name: name.to_owned(),
            });
        }
    };
    take_keys("secret", &keys, items, optional, mode, files)
}

fn take_keys(
    kind: &'static str,
    keys: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    default: u32,
    files: &mut Payload,
) -> Result<(), Error> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(
            keys.iter()
                .map(|(key, data)| ((*key).to_owned(), file(data.to_vec(), default))),
        );
        return Ok(());
    };
    for item in items {
        match keys.get(item.key.as_str()) {
            Some(data) => {
                let mode = item.mode.map_or(default, |m| mode(None, Some(m)));
                files.insert(item.path.clone(), file(data.to_vec(), mode));
            }
            None if optional == Some(true) => {}
            None => {
                return Err(Error::NoKey {
                    kind,
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(())
}

fn file(data: Vec<u8>, mode: u32) -> File {
    File {
        data,
        mode,
        uid: None,
    }
}

fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default: u32,
    node: &NodeFacts,
    files: &mut Payload,
) -> Result<(), Error> {
    for item in items {
        let text = if let Some(selector) = &item.field_ref {
            fields::field(pod, selector, node, &[])?
        } else if let Some(selector) = &item.resource_field_ref {
            fields::resource(pod, None, selector, node)?
        } else {
            continue;
        };
        let mode = item.mode.map_or(default, |m| mode(None, Some(m)));
        files.insert(item.path.clone(), file(text.into_bytes(), mode));
    }
    Ok(())
}

fn token(
    volume: &str,
    part: &ServiceAccountTokenProjection,
    default: u32,
    objects: &Objects,
    owner: &Owner,
    files: &mut Payload,
) -> Result<(), Error> {
    let key = (volume.to_owned(), part.path.clone());
    let token = objects
        .tokens
        .get(&key)
        .ok_or_else(|| Error::Token("not issued".into()))?;
    // Readable by those who are meant to: the group, or the one user of the pod.
    let private = owner.fs_group || owner.run_as_user.is_some();
    let uid = owner.run_as_user.filter(|_| !owner.fs_group);
    let mode = if private { 0o600 } else { default };
    files.insert(
        part.path.clone(),
        File {
            data: token.clone().into_bytes(),
            mode,
            uid,
        },
    );
    Ok(())
}

/// The names of the ConfigMaps and Secrets that a pod's volumes refer to.
pub fn references(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for volume in pod.pod_spec().volumes.iter().flatten() {
        config_maps.extend(volume.config_map.as_ref().map(|s| s.name.clone()));
        secrets.extend(volume.secret.as_ref().and_then(|s| s.secret_name.clone()));
        for part in volume
            .projected
            .iter()
            .flat_map(|p| p.sources.iter().flatten())
        {
            config_maps.extend(part.config_map.as_ref().map(|s| s.name.clone()));
            secrets.extend(part.secret.as_ref().map(|s| s.name.clone()));
        }
    }
    (config_maps, secrets)
}

/// The tokens that a pod's volumes need: volume name and projection.
pub fn token_projections(pod: &Pod) -> Vec<(&str, &ServiceAccountTokenProjection)> {
    let volumes = pod.pod_spec().volumes.iter().flatten();
    volumes
        .flat_map(|v| {
            let parts = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
            parts.filter_map(|p| Some((v.name.as_str(), p.service_account_token.as_ref()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn make(volume: serde_json::Value, objects: &Objects) -> Result<Payload, Error> {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c"}], "volumes": [volume]}}),
        )
        .expect("a pod");
        let volume = &pod.pod_spec().volumes.as_ref().expect("volumes")[0];
        let owner = Owner {
            run_as_user: None,
            fs_group: false,
        };
        payload(&pod, volume, objects, &NodeFacts::default(), &owner).expect("files of ours")
    }

    fn objects() -> Objects {
        let config_map = serde_json::from_value(
            json!({"data": {"k": "v", "l": "w"}, "binaryData": {"b": "AAE="}}),
        );
        Objects {
            config_maps: [("m".to_owned(), Arc::new(config_map.expect("a config map")))].into(),
            tokens: [(("t".to_owned(), "token".to_owned()), "jwt".to_owned())].into(),
            ..Objects::default()
        }
    }

    #[test]
    fn a_config_map_gives_all_keys_or_the_chosen_ones() {
        let all = make(
            json!({"name": "v", "configMap": {"name": "m", "defaultMode": 0o400}}),
            &objects(),
        )
        .expect("files");
        assert_eq!(all.keys().collect::<Vec<_>>(), ["b", "k", "l"]);
        assert_eq!(
            (all["b"].data.as_slice(), all["b"].mode),
            ([0, 1].as_slice(), 0o400)
        );
        let items = json!([{"key": "k", "path": "x/y", "mode": 0o600}]);
        let some = make(
            json!({"name": "v", "configMap": {"name": "m", "items": items}}),
            &objects(),
        )
        .expect("files");
        assert_eq!((some.len(), some["x/y"].mode), (1, 0o600));
    }

    #[test]
    fn what_is_missing_is_an_error_unless_optional() {
        let optional = json!({"name": "v", "secret": {"secretName": "s", "optional": true}});
        assert_eq!(make(optional, &objects()).map(|f| f.len()), Ok(0));
        let needed = make(
            json!({"name": "v", "secret": {"secretName": "s"}}),
            &objects(),
        );
        assert_eq!(
            needed.err().map(|e| e.to_string()).as_deref(),
            Some("secret \"s\" not found")
        );
        let key =
            json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "z", "path": "z"}]}});
        assert_eq!(
            make(key, &objects())
                .err()
                .map(|e| e.to_string())
                .as_deref(),
            Some("references non-existent config key: z")
        );
    }

    #[test]
    fn a_projection_joins_its_sources() {
        let volume = json!({"name": "t", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "m", "items": [{"key": "k", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}});
        let files = make(volume, &objects()).expect("files");
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            ["ca.crt", "labels", "token"]
        );
        assert_eq!(files["labels"].data, b"a=\"b\"");
    }
}
