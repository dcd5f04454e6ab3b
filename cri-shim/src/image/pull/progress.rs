//! How far a pull is, for whoever watches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::image::digest::Digest;
use crate::image::store::Store;

/// A pull's layers, once its manifest is known.
#[derive(Debug)]
pub struct Progress {
    layers: Mutex<Vec<Layer>>,
    since: Instant,
    manifest: OnceLock<Duration>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            layers: Mutex::default(),
            since: Instant::now(),
            manifest: OnceLock::new(),
        }
    }
}

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
        self.manifest.get_or_init(|| self.since.elapsed());
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    /// How long it took until the manifest was known, if it is.
    pub fn manifest_after(&self) -> Option<Duration> {
        self.manifest.get().copied()
    }

    /// The bytes that have come.
    pub fn received_bytes(&self) -> u64 {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let received = layers.iter().map(|layer| &layer.received_bytes);
        received.map(|bytes| bytes.load(Ordering::Relaxed)).sum()
    }

    /// The layers, lowest first; none before the manifest is known.
    pub fn layers(&self, store: &Store) -> Vec<LayerProgress> {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
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
