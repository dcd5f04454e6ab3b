//! Whether the store still holds what its digests say.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::digest::Digest;
use super::error::Error;
use super::layer::LayerRecord;
use super::recipe;
use super::store::{ImageRecord, Store};

/// What a look at everything found.
#[derive(Debug, Default)]
pub struct Verified {
    pub images: usize,
    pub layers: usize,
    /// Layers that can't be proved: their archives hold a name twice, or they were unpacked by a version that kept
    /// too little of them.
    pub unproved: usize,
    /// By image, by name or id: what is wrong with it.
    pub faults: Vec<(String, String)>,
}

impl Store {
    /// Reads all documents and all files, and compares them with their digests. Files' names, modes and owners aren't
    /// looked at.
    pub fn verify(&self) -> Verified {
        let images = self.list();
        // Nothing may be collected meanwhile.
        let _hold = self.hold(images.iter().flat_map(|image| &image.layers));
        let mut verified = Verified {
            images: images.len(),
            ..Verified::default()
        };
        let mut layers: HashMap<Digest, Option<String>> = HashMap::new();
        for image in &images {
            let faults = &mut verified.faults;
            let mut fault = |why: String| faults.push((name_of(image), why));
            let named = image
                .digests
                .iter()
                .filter_map(|name| name.rsplit_once('@'));
            let manifests = named.filter_map(|(_, digest)| digest.parse::<Digest>().ok());
            for document in manifests.chain([image.id.clone()]) {
                if let Err(error) = self.verify_document(&document) {
                    fault(error.to_string());
                }
            }
            for chain in &image.layers {
                let Some(record) = self.layer(chain) else {
                    // Removed together with the image, just now.
                    continue;
                };
                let found = layers.entry(chain.clone()).or_insert_with(|| {
                    verified.layers += 1;
                    if record.replaces {
                        verified.unproved += 1;
                        return None;
                    }
                    match self.verify_layer(&record) {
                        Ok(proved) => {
                            verified.unproved += usize::from(!proved);
                            None
                        }
                        Err(why) => Some(format!("layer {}: {why}", record.diff_id)),
                    }
                });
                if let Some(why) = found {
                    fault(why.clone());
                }
            }
        }
        verified
    }

    fn verify_document(&self, digest: &Digest) -> Result<(), Error> {
        let found = Digest::of(&self.read_blob(digest)?);
        if found == *digest {
            Ok(())
        } else {
            Err(Error::Mismatch {
                what: "a document".into(),
                wanted: digest.clone(),
                found,
            })
        }
    }

    /// False for a layer that nothing is known of to prove it with.
    fn verify_layer(&self, layer: &LayerRecord) -> io::Result<bool> {
        let path = self.layer_path(layer.directory);
        if !path.is_dir() {
            return Err(io::Error::other(format!("{} is gone", path.display())));
        }
        let recipe = self.recipe_path(layer.directory);
        if !recipe.exists() {
            return Ok(false);
        }
        let found = recipe::digest(&recipe, &path)?;
        if found == layer.diff_id {
            Ok(true)
        } else {
            Err(io::Error::other(format!(
                "files in {} were changed",
                path.display()
            )))
        }
    }
}

fn name_of(image: &Arc<ImageRecord>) -> String {
    let name = image.names.first().or_else(|| image.digests.first());
    name.cloned().unwrap_or_else(|| image.id.to_string())
}
