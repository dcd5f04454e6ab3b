//! Layers on disk: unpacked once, held while someone uses them, removed when nobody does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::digest::{Digest, Hashing};
use super::document::ImageConfig;
use super::error::Error;
use super::recipe::{Recipe, Recording};
use super::store::{LAYER, Store};
use super::unpack;

/// Content goes from the thread that decompresses to the one that unpacks in pieces of this size, and so many wait.
const PIECE_BYTES: usize = 64 << 10;
const PIECES: usize = 16;

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
    /// One of its entries took the place of an earlier one, so that its archive can't be written again.
    #[serde(default)]
    pub replaces: bool,
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
    /// What the blob's digest has to be, if the image names it and nobody else checks it.
    pub blob: Option<Digest>,
    /// Opens the blob, compressed or not.
    pub open: Box<dyn Fn() -> Result<Box<dyn Read + Send>, Error> + Send>,
    /// Whether it is worth another try after a failure; if not, what is to be told.
    pub after_failure: Box<dyn Fn(Error) -> Result<(), Error> + Send>,
}

impl LayerSource {
    pub fn file(file: File, blob: Option<Digest>) -> Self {
        let open = move || {
            let again = file
                .try_clone()
                .and_then(|mut file| file.rewind().map(|()| file));
            Ok(Box::new(again.map_err(Error::io("open", "a layer"))?) as _)
        };
        Self {
            blob,
            open: Box::new(open),
            after_failure: Box::new(Err),
        }
    }
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
                None => loop {
                    match self.unpack_layer(chain, diff_id, &source, &below) {
                        Ok(directory) => break directory,
                        Err(failure) => (source.after_failure)(failure)?,
                    }
                },
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
        source: &LayerSource,
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
            replaces: unpacked.replaces,
        };
        // For this boot: a power cut may lose the files. `Store::settle` makes it last, once they are on disk.
        self.journal
            .put_for_this_boot(LAYER, chain.as_str(), &record)?;
        self.state().layers.insert(chain.clone(), record);
        Ok(number)
    }
}

/// Unpacks a layer on this thread, while another one decompresses and hashes it.
fn unpack_verified(
    diff_id: &Digest,
    source: &LayerSource,
    (into, recipe_path): (&Path, &Path),
    below: &[PathBuf],
    limits: unpack::Limits,
) -> Result<unpack::Unpacked, Error> {
    let blob = (source.open)()?;
    let recipe = Recipe::create(recipe_path).map_err(Error::io("make", recipe_path))?;
    let recipe = RefCell::new(recipe);
    let (pieces, received) = sync_channel(PIECES);
    let (unpacked, passed) = std::thread::scope(|scope| {
        let passing = scope.spawn(move || pass(blob, &pieces));
        let mut content = Recording {
            inner: Received::new(received),
            recipe: &recipe,
        };
        let unpacked = unpack::unpack(&mut content, into, below, limits, Some(&recipe));
        let unpacked = unpacked.and_then(|unpacked| {
            // What follows the archive's end is a part of the layer too.
            let rest = std::io::copy(&mut content, &mut std::io::sink());
            rest.map(|_| unpacked).map_err(unpack::Error::Read)
        });
        // Nobody takes more: the other thread ends.
        drop(content);
        (unpacked, passing.join())
    });
    let unpacked = unpacked.map_err(|source| Error::Layer {
        layer: diff_id.clone(),
        source,
    })?;
    let recipe = recipe.into_inner();
    recipe.finish().map_err(Error::io("write", recipe_path))?;
    let Ok(Some(passed)) = passed else {
        return Err(Error::Archive(format!(
            "layer {diff_id} was not read to its end"
        )));
    };
    if passed.content != *diff_id {
        return Err(Error::Mismatch {
            what: "an unpacked layer".into(),
            wanted: diff_id.clone(),
            found: passed.content,
        });
    }
    match &source.blob {
        Some(wanted) if *wanted != passed.blob => Err(Error::Mismatch {
            what: "a layer's blob".into(),
            wanted: wanted.clone(),
            found: passed.blob,
        }),
        _ => Ok(unpacked),
    }
}

/// The digests of what passed.
struct Passed {
    content: Digest,
    blob: Digest,
}

/// Decompresses and hashes a blob and hands its content on; `None` if nobody takes it, or it can't be read, which the
/// taker has been told.
fn pass(blob: impl Read + Send, pieces: &SyncSender<std::io::Result<Vec<u8>>>) -> Option<Passed> {
    let mut blob = Hashing::new(blob);
    let mut all = || {
        let mut content = Hashing::new(decompress(&mut blob)?);
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let n = (&mut content)
                .take(PIECE_BYTES as u64)
                .read_to_end(&mut piece)?;
            if n == 0 {
                return content.finish().map(|(digest, _)| Some(digest));
            }
            if pieces.send(Ok(piece)).is_err() {
                return Ok(None);
            }
        }
    };
    let content = all();
    let passed = content.and_then(|content| {
        content
            .map(|content| {
                let (blob, _) = blob.finish()?;
                Ok(Passed { content, blob })
            })
            .transpose()
    });
    match passed {
        Ok(passed) => passed,
        Err(error) => {
            // Nobody may be there to hear it.
            let _ = pieces.send(Err(error));
            None
        }
    }
}

/// What another thread hands over, as a reader.
struct Received {
    pieces: Receiver<std::io::Result<Vec<u8>>>,
    piece: std::io::Cursor<Vec<u8>>,
}

impl Received {
    fn new(pieces: Receiver<std::io::Result<Vec<u8>>>) -> Self {
        Self {
            pieces,
            piece: std::io::Cursor::default(),
        }
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let n = self.piece.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            match self.pieces.recv() {
                Ok(piece) => self.piece = std::io::Cursor::new(piece?),
                Err(_) => return Ok(0),
            }
        }
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
