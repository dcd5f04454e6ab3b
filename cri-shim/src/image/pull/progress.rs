//! How far a pull is, for whoever watches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::image::digest::Digest;
use crate::image::store::Store;

/// A pull's layers, once its manifest is known.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Vec<Layer>>);

#[derive(Debug)]
pub(super) struct Layer {
    pub blob: Digest,
    pub chain: Digest,
    pub size_bytes: u64,
    pub received_bytes: Arc<AtomicU64>,
}

/// How far one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// The blob's digest, and its size as distributed.
    pub blob: Digest,
    pub size_bytes: u64,
    pub received_bytes: u64,
    /// It is in the store.
    pub unpacked: bool,
}

impl Progress {
    pub(super) fn begin(&self, layers: Vec<Layer>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    /// The layers, lowest first; none before the manifest is known.
    pub fn layers(&self, store: &Store) -> Vec<LayerProgress> {
        let layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        layers
            .iter()
            .map(|layer| LayerProgress {
                blob: layer.blob.clone(),
                size_bytes: layer.size_bytes,
                received_bytes: layer.received_bytes.load(Ordering::Relaxed),
                unpacked: store.layer_directory(&layer.chain).is_some(),
            })
            .collect()
    }
}
