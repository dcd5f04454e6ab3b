//! Layers on disk: unpacked once, held while someone uses them, removed when nobody does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::digest::{Digest, Hashing};
use super::document::ImageConfig;
use super::error::Error;
use super::recipe::{Recipe, Recording};
use super::store::{LAYER, Store};
use super::unpack;

/// An unpacked layer, as journalled under its chain id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// The folder's name below `layers/`.
    pub directory: u64,
    /// The uncompressed archive's digest.
    pub diff_id: Digest,
    /// The bytes of its files.
    pub size_bytes: u64,
    /// The number of its entries.
    pub entries: u64,
}

/// How many hold each chain id, and each document that is on its way in.
pub(super) type Holders = Arc<Mutex<HashMap<Digest, usize>>>;

/// Keeps layers from being removed, for as long as it lives: a container holds its image's.
#[derive(Debug)]
pub struct Hold {
    chains: Vec<Digest>,
    holders: Holders,
}

impl Hold {
    pub(super) fn new(holders: &Holders) -> Self {
        Self {
            chains: Vec::new(),
            holders: holders.clone(),
        }
    }

    pub(super) fn add(&mut self, chain: &Digest) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        *holders.entry(chain.clone()).or_default() += 1;
        self.chains.push(chain.clone());
    }

    /// Lets the layers go.
    pub fn release(&mut self) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        for chain in self.chains.drain(..) {
            if let Some(count) = holders.get_mut(&chain) {
                *count -= 1;
                if *count == 0 {
                    holders.remove(&chain);
                }
            }
        }
    }

    /// The layers' chain ids, lowest first.
    pub fn chains(&self) -> &[Digest] {
        &self.chains
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

/// Chain ids of an image's layers, lowest first (image-spec config.md, "Layer ChainID").
pub(super) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let chain = match chains.last() {
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            None => diff_id.clone(),
        };
        chains.push(chain);
    }
    chains
}

/// Where a layer's archive comes from.
pub(super) struct LayerSource {
    /// What the blob's digest has to be, if the image names it.
    pub blob: Option<Digest>,
    /// Opens the blob, compressed or not.
    pub open: Box<dyn FnOnce() -> Result<Box<dyn Read + Send>, Error> + Send>,
}

impl Store {
    /// Unpacks what the store doesn't have yet of an image's layers. Two images that come in at once and share a
    /// layer unpack it once: the second waits for the first.
    ///
    /// # Errors
    /// The first layer that fails; the layers before it stay until the next collection.
    pub(super) fn ensure_layers(
        &self,
        config: &ImageConfig,
        sources: Vec<LayerSource>,
    ) -> Result<Hold, Error> {
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != sources.len() {
            let why = format!(
                "its configuration names {} layers and its manifest {}",
                diff_ids.len(),
                sources.len()
            );
            return Err(Error::Archive(why));
        }
        let mut hold = Hold::new(&self.holders);
        let mut below: Vec<PathBuf> = Vec::new();
        for ((chain, diff_id), source) in chain_ids(diff_ids).iter().zip(diff_ids).zip(sources) {
            // Held before it is looked for, so that it can't be collected in between.
            hold.add(chain);
            let turn = self.turn(chain);
            let guard = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let directory = match self.layer_directory(chain) {
                Some(directory) => directory,
                None => self.unpack_layer(chain, diff_id, source, &below)?,
            };
            drop(guard);
            below.insert(0, self.layer_path(directory));
        }
        Ok(hold)
    }

    fn unpack_layer(
        &self,
        chain: &Digest,
        diff_id: &Digest,
        source: LayerSource,
        below: &[PathBuf],
    ) -> Result<u64, Error> {
        let number = self.next_number();
        let partial = self.layers_path().join(format!("partial-{number}"));
        std::fs::create_dir(&partial).map_err(Error::io("make", &partial))?;
        let recipe = self.recipe_path(number);
        let unpacked = unpack_verified(diff_id, source, (&partial, &recipe), below, self.limits)
            .inspect_err(|_| {
                // Best effort: the next start removes what stays.
                let _ = std::fs::remove_dir_all(&partial);
                let _ = std::fs::remove_file(&recipe);
            })?;
        let path = self.layer_path(number);
        std::fs::rename(&partial, &path).map_err(Error::io("rename", &partial))?;
        let record = LayerRecord {
            directory: number,
            diff_id: diff_id.clone(),
            size_bytes: unpacked.size_bytes,
            entries: unpacked.entries,
        };
        // For this boot: a power cut may lose the files. `Store::settle` makes it last, once they are on disk.
        self.journal
            .put_for_this_boot(LAYER, chain.as_str(), &record)?;
        self.state().layers.insert(chain.clone(), record);
        Ok(number)
    }
}

fn unpack_verified(
    diff_id: &Digest,
    source: LayerSource,
    (into, recipe_path): (&Path, &Path),
    below: &[PathBuf],
    limits: unpack::Limits,
) -> Result<unpack::Unpacked, Error> {
    let read = |source| Error::Layer {
        layer: diff_id.clone(),
        source: unpack::Error::Read(source),
    };
    let mut blob = Hashing::new((source.open)()?);
    let recipe = Recipe::create(recipe_path).map_err(Error::io("make", recipe_path))?;
    let recipe = RefCell::new(recipe);
    let mut content = Hashing::new(Recording {
        inner: decompress(&mut blob).map_err(read)?,
        recipe: &recipe,
    });
    let unpacked =
        unpack::unpack(&mut content, into, below, limits, Some(&recipe)).map_err(|source| {
            Error::Layer {
                layer: diff_id.clone(),
                source,
            }
        })?;
    let (found, _) = content.finish().map_err(read)?;
    let recipe = recipe.into_inner();
    recipe.finish().map_err(Error::io("write", recipe_path))?;
    if found != *diff_id {
        return Err(Error::Mismatch {
            what: "an unpacked layer".into(),
            wanted: diff_id.clone(),
            found,
        });
    }
    let (found, _) = blob.finish().map_err(read)?;
    match source.blob {
        Some(wanted) if wanted != found => Err(Error::Mismatch {
            what: "a layer's blob".into(),
            wanted,
            found,
        }),
        _ => Ok(unpacked),
    }
}

/// Undoes whatever compression the first bytes show; media types are not to be trusted for it.
pub(super) fn decompress<'a>(
    reader: impl Read + Send + 'a,
) -> std::io::Result<Box<dyn Read + Send + 'a>> {
    let mut reader = BufReader::with_capacity(128 * 1024, reader);
    Ok(match reader.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(reader)?),
        _ => Box::new(reader),
    })
}
