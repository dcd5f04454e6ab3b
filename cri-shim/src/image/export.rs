//! Images to files: one archive that is an OCI layout and a docker archive at once, as `docker save` writes it.
//! Layers are written uncompressed, the bytes that their diff ids name, so that ids and layers stay what they are;
//! the manifest is a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Arc;

use serde_json::json;

use super::archive::blob_name;
use super::digest::Digest;
use super::error::Error;
use super::recipe::{self, Hashed};
use super::reference::{Reference, Version};
use super::store::{ImageRecord, Store};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

impl Store {
    /// Writes images, by any of their names, as an archive that [`Store::import`] reads, and Docker, containerd,
    /// podman and skopeo do. An image that is asked for by its id or digest is written with all its names, else
    /// with the one that it was asked for by.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Export`] for a layer that can't be written again as it came; [`Error::Io`].
    pub fn export(&self, names: &[String], out: impl Write) -> Result<(), Error> {
        let images = names
            .iter()
            .map(|name| self.get(name))
            .collect::<Result<Vec<_>, _>>()?;
        let _hold = self.hold(images.iter().flat_map(|image| &image.layers));
        let mut archive = tar::Builder::new(out);
        let mut written = BTreeSet::new();
        let mut index = Vec::new();
        let mut docker: BTreeMap<Digest, (Arc<ImageRecord>, BTreeSet<String>)> = BTreeMap::new();
        for (asked, image) in names.iter().zip(images) {
            let names = names_of(asked, &image);
            let (digest, size) = self.export_image(&image, &mut archive, &mut written)?;
            let descriptor = json!({"mediaType": MANIFEST, "digest": digest, "size": size,
                "platform": {"os": "linux", "architecture": image.config.architecture}});
            if names.is_empty() {
                index.push(descriptor.clone());
            }
            for name in &names {
                let tag = name.rsplit_once(':').map(|(_, tag)| tag);
                let mut named = descriptor.clone();
                named["annotations"] = json!({"io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": tag});
                index.push(named);
            }
            let all = docker
                .entry(image.id.clone())
                .or_insert((image, BTreeSet::new()));
            all.1.extend(names);
        }
        let index = json!({"schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": index});
        let docker: Vec<_> = docker
            .values()
            .map(|(image, names)| {
                let layers = image.config.rootfs.diff_ids.iter().map(blob_name);
                json!({"Config": blob_name(&image.id), "RepoTags": names,
                    "Layers": layers.collect::<Vec<_>>()})
            })
            .collect();
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        for (name, document) in [
            ("oci-layout", layout),
            ("index.json", index),
            ("manifest.json", json!(docker)),
        ] {
            append_bytes(&mut archive, name, document.to_string().as_bytes())?;
        }
        archive
            .into_inner()
            .and_then(|mut out| out.flush())
            .map_err(Error::io("write", "the archive"))
    }

    /// Writes an image's blobs, but those that are in the archive already; the digest and size of its manifest.
    fn export_image(
        &self,
        image: &ImageRecord,
        archive: &mut tar::Builder<impl Write>,
        written: &mut BTreeSet<Digest>,
    ) -> Result<(Digest, usize), Error> {
        let config = self.read_blob(&image.id)?;
        let mut layers = Vec::new();
        for (chain, diff_id) in image.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let failed = |why: String| Error::Export {
                layer: diff_id.clone(),
                why,
            };
            let directory = self
                .layer_directory(chain)
                .ok_or_else(|| Error::NotFound(format!("layer {chain}")))?;
            let recipe = self.recipe_path(directory);
            let size = recipe::size(&recipe).map_err(|error| {
                failed(if error.kind() == io::ErrorKind::NotFound {
                    "it was unpacked by a version that couldn't export; remove and pull the image"
                        .into()
                } else {
                    error.to_string()
                })
            })?;
            layers.push(json!({"mediaType": LAYER, "digest": diff_id, "size": size}));
            if !written.insert(diff_id.clone()) {
                continue;
            }
            append_header(archive, &blob_name(diff_id), size)?;
            let mut out = Hashed::new(archive.get_mut());
            recipe::follow(&recipe, &self.layer_path(directory), &mut out)
                .map_err(|error| failed(error.to_string()))?;
            if out.digest() != *diff_id {
                return Err(failed(
                    "its files are not what its archive held: a name is in it twice, or they were changed".into(),
                ));
            }
            pad(archive, size)?;
        }
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": image.id, "size": config.len()},
            "layers": layers})
        .to_string();
        let digest = Digest::of(manifest.as_bytes());
        for (digest, bytes) in [
            (&image.id, config.as_slice()),
            (&digest, manifest.as_bytes()),
        ] {
            if written.insert(digest.clone()) {
                append_bytes(archive, &blob_name(digest), bytes)?;
            }
        }
        Ok((digest, manifest.len()))
    }
}

/// The tags to write an image with.
fn names_of(asked: &str, image: &ImageRecord) -> BTreeSet<String> {
    match Reference::parse(asked) {
        Ok(name)
            if matches!(name.version, Version::Tag(_))
                && image.names.contains(&name.to_string()) =>
        {
            BTreeSet::from([name.to_string()])
        }
        _ => image.names.clone(),
    }
}

fn append_header(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
) -> Result<(), Error> {
    let mut write = || {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        archive.get_mut().write_all(header.as_bytes())
    };
    write().map_err(Error::io("write", "the archive"))
}

fn append_bytes(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    bytes: &[u8],
) -> Result<(), Error> {
    append_header(archive, name, bytes.len() as u64)?;
    archive
        .get_mut()
        .write_all(bytes)
        .map_err(Error::io("write", "the archive"))?;
    pad(archive, bytes.len() as u64)
}

/// Fills the last block of an entry.
fn pad(archive: &mut tar::Builder<impl Write>, size: u64) -> Result<(), Error> {
    let rest = (512 - size % 512) % 512;
    io::copy(&mut io::repeat(0).take(rest), archive.get_mut())
        .map(drop)
        .map_err(Error::io("write", "the archive"))
}
