//! The JSON documents of an image: index, manifest, configuration, and a docker archive's table of contents.
//! Fields that nothing here reads are left out, and whatever may be null or missing is (OCI image-spec, Docker
//! manifest v2 schema 2).

use std::collections::BTreeMap;

use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// Points at a blob (image-spec descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that this program was built for, in Go's names, which images use.
    pub fn ours() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "x86" => "386",
            other => other,
        };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: None,
        }
    }

    /// Whether an image for `self` runs here.
    pub fn is_ours(&self) -> bool {
        let ours = Self::ours();
        self.os == ours.os && self.architecture == ours.architecture
    }
}

/// An index or a manifest: the two share a shape, and old registries leave the media type out.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Of an index: what there is to choose from.
    #[serde(default, deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
    /// Of a manifest: the configuration.
    #[serde(default)]
    pub config: Option<Descriptor>,
    /// Of a manifest: the layers, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
}

/// The image's configuration (image-spec config.md).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub os: String,
    pub architecture: String,
    #[serde(deserialize_with = "or_default")]
    pub config: Execution,
    pub rootfs: RootFs,
}

/// How to run the image: the inner `config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Execution {
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    #[serde(
        deserialize_with = "or_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "names", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
}

/// The layers' uncompressed digests, lowest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// One image in a docker archive's `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    pub config: String,
    #[serde(default, deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<String>,
}

/// `null` is an empty value: Go programs write it so.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    input: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(input).map(Option::unwrap_or_default)
}

/// A Go set: an object whose values mean nothing. It is written back as a plain list, and read as one too.
fn names<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        Set(BTreeMap<String, IgnoredAny>),
        List(Vec<String>),
    }
    Ok(match Option::<Names>::deserialize(input)? {
        Some(Names::Set(set)) => set.into_keys().collect(),
        Some(Names::List(list)) => list,
        None => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_full_of_nulls_is_read() {
        let config: ImageConfig = serde_json::from_str(
            r#"{"os":"linux","architecture":"amd64","config":{"User":"","Env":null,"Cmd":["sh"],"Entrypoint":null,
                "Volumes":{"/data":{}},"WorkingDir":"","Labels":null,"OnBuild":null},
                "rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"x"}]}"#,
        )
        .unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.volumes, ["/data"]);
        let again: ImageConfig =
            serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again.config, config.config);
        assert!(serde_json::from_str::<ImageConfig>(r#"{"config":null,"rootfs":{}}"#).is_ok());
    }
}
