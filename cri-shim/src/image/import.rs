//! Images from files: OCI archives and layouts (image-spec image-layout.md), and docker archives.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::archive::{Archive, blob_name};
use super::digest::Digest;
use super::document::{Descriptor, DockerImage, ImageConfig, Manifest, Platform};
use super::error::Error;
use super::layer::LayerSource;
use super::reference::{Reference, Version};
use super::store::{ImageRecord, Store};

/// An image that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its id.
    pub id: Digest,
    /// All names that it has now; none if the archive gave none and neither did the caller.
    pub names: Vec<String>,
}

/// Indexes may nest; deeper than this is a loop or a mistake.
const INDEX_DEPTH: usize = 4;
/// The name that containerd writes, which is whole, and the specification's, which may be a mere tag.
const NAME_ANNOTATIONS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

impl Store {
    /// Imports every image of an archive, which may be compressed: an OCI archive, or what `docker save` writes.
    /// `name` names the image, for an archive of one image that doesn't name it or names it otherwise.
    ///
    /// # Errors
    /// [`Error::Archive`] when it isn't an image archive, and those of reading, verifying and unpacking. Images
    /// before the one that failed stay.
    pub fn import(
        &self,
        reader: impl Read + Send,
        name: Option<&str>,
    ) -> Result<Vec<Imported>, Error> {
        let archive = Archive::spool(reader, self.ingest_path(), self.limits)?;
        if archive.has("index.json") {
            self.import_oci(&archive, name)
        } else if archive.has("manifest.json") {
            self.import_docker(&archive, name)
        } else {
            Err(Error::Archive(
                "it has neither an index.json (OCI) nor a manifest.json (docker)".into(),
            ))
        }
    }

    /// Imports every image of an OCI layout's folder. `name` as in [`Store::import`].
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn import_layout(&self, folder: &Path, name: Option<&str>) -> Result<Vec<Imported>, Error> {
        self.import_oci(&Archive::Layout(folder.into()), name)
    }

    fn import_oci(&self, archive: &Archive, name: Option<&str>) -> Result<Vec<Imported>, Error> {
        let index: Manifest = parse("index.json", &archive.read("index.json")?)?;
        if name.is_some() && index.manifests.len() > 1 {
            return Err(Error::Archive(
                "it holds several images, and one name was given".into(),
            ));
        }
        if index.manifests.is_empty() {
            return Err(Error::Archive("its index.json names no image".into()));
        }
        index
            .manifests
            .iter()
            .map(|entry| self.import_manifest(archive, entry, name))
            .collect()
    }

    fn import_manifest(
        &self,
        archive: &Archive,
        entry: &Descriptor,
        name: Option<&str>,
    ) -> Result<Imported, Error> {
        let name = match name {
            Some(name) => Some(Reference::parse(name)?),
            None => NAME_ANNOTATIONS
                .iter()
                .filter_map(|key| entry.annotations.get(*key))
                // A mere tag says nothing about the repository.
                .find(|name| name.contains(['/', ':', '@']))
                .map(|name| Reference::parse(name))
                .transpose()?,
        };
        let (manifest_digest, manifest_bytes) = choose(archive, entry)?;
        let manifest: Manifest = parse("the image's manifest", &manifest_bytes)?;
        let config = manifest
            .config
            .as_ref()
            .ok_or_else(|| Error::Archive("its manifest names no configuration".into()))?;
        let config_bytes = archive.read_blob(&config.digest)?;
        let sources = manifest
            .layers
            .iter()
            .map(|layer| {
                let file = archive.open(&blob_name(&layer.digest))?;
                Ok(LayerSource::file(file, Some(layer.digest.clone())))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let size_bytes = config.size + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        let mut names = Names::default();
        if let Some(name) = name {
            names.digests.insert(name.with_digest(&manifest_digest));
            if matches!(name.version, Version::Tag(_)) {
                names.tags.insert(name.to_string());
            }
        }
        let _manifest = self.hold([&manifest_digest]);
        self.write_blob(&manifest_digest, &manifest_bytes)?;
        self.install(&config_bytes, sources, names, size_bytes)
    }

    fn import_docker(&self, archive: &Archive, name: Option<&str>) -> Result<Vec<Imported>, Error> {
        let images: Vec<DockerImage> = parse("manifest.json", &archive.read("manifest.json")?)?;
        if images.is_empty() || (name.is_some() && images.len() > 1) {
            return Err(Error::Archive(format!("it holds {} images", images.len())));
        }
        images
            .iter()
            .map(|image| self.import_docker_image(archive, image, name))
            .collect()
    }

    fn import_docker_image(
        &self,
        archive: &Archive,
        image: &DockerImage,
        name: Option<&str>,
    ) -> Result<Imported, Error> {
        let config = archive.read(&image.config)?;
        let mut size_bytes = config.len() as u64;
        let mut sources = Vec::new();
        for layer in &image.layers {
            let file = archive.open(layer)?;
            size_bytes += file.metadata().map_err(Error::io("look at", layer))?.len();
            sources.push(LayerSource::file(file, None));
        }
        let mut names = Names::default();
        for tag in name.into_iter().chain(
            image
                .repo_tags
                .iter()
                .map(String::as_str)
                .filter(|_| name.is_none()),
        ) {
            names.tags.insert(Reference::parse(tag)?.to_string());
        }
        self.install(&config, sources, names, size_bytes)
    }

    /// Unpacks what is missing of an image and records it.
    pub(super) fn install(
        &self,
        config_bytes: &[u8],
        layers: Vec<LayerSource>,
        names: Names,
        size_bytes: u64,
    ) -> Result<Imported, Error> {
        let config: ImageConfig = parse("the image's configuration", config_bytes)?;
        let platform = Platform {
            os: config.os.clone(),
            architecture: config.architecture.clone(),
            variant: None,
        };
        if !config.os.is_empty() && !platform.is_ours() {
            return Err(Error::Platform {
                wanted: text(&Platform::ours()),
                found: text(&platform),
            });
        }
        let id = Digest::of(config_bytes);
        let hold = self.ensure_layers(&config, layers)?;
        let _document = self.hold([&id]);
        self.write_blob(&id, config_bytes)?;
        let image = ImageRecord {
            id,
            names: names.tags,
            digests: names.digests,
            layers: hold.chains().to_vec(),
            size_bytes,
            pinned: false,
            config,
        };
        let image = self.add(image, &hold)?;
        Ok(Imported {
            id: image.id.clone(),
            names: image.names.iter().cloned().collect(),
        })
    }
}

/// The names to give an image.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub tags: BTreeSet<String>,
    pub digests: BTreeSet<String>,
}

/// Follows an entry down to the manifest for this machine.
fn choose(archive: &Archive, entry: &Descriptor) -> Result<(Digest, Vec<u8>), Error> {
    let mut digest = entry.digest.clone();
    for _ in 0..INDEX_DEPTH {
        let bytes = archive.read_blob(&digest)?;
        let manifest: Manifest = parse("a manifest", &bytes)?;
        if manifest.config.is_some() {
            return Ok((digest, bytes));
        }
        digest = choose_platform(&manifest.manifests)?.digest.clone();
    }
    Err(Error::Archive("its indexes nest too deeply".into()))
}

/// The first manifest for this machine; one without a platform is taken to be for any.
pub(super) fn choose_platform(manifests: &[Descriptor]) -> Result<&Descriptor, Error> {
    let ours = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(Platform::is_ours);
    manifests.iter().find(ours).ok_or_else(|| {
        let found: Vec<String> = manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(text)
            .collect();
        Error::Platform {
            wanted: text(&Platform::ours()),
            found: found.join(", "),
        }
    })
}

fn text(platform: &Platform) -> String {
    format!("{}/{}", platform.os, platform.architecture)
}

pub(super) fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json {
        what: what.into(),
        source,
    })
}
