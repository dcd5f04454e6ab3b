//! Images from registries (OCI distribution-spec, "Pull"; Docker registry HTTP API v2).
//!
//! A pull has a client of its own, with its own credentials and tokens, which no other pull can see. The layers that
//! the store lacks come down side by side, each checked against its digest, and are unpacked in their order while the
//! others still arrive. A download that breaks off is resumed.

mod auth;
mod connect;
mod download;
mod hosts;
mod progress;
mod proxy;
mod registry;
mod resolve;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::digest::Digest;
use super::document::{Descriptor, ImageConfig, Manifest};
use super::error::Error;
use super::import::{Imported, Names, choose_platform, parse};
use super::layer::{LayerSource, chain_ids};
use super::reference::{Reference, Version};
use super::store::Store;
use download::{Download, Downloads};
use registry::{DOCUMENT_LIMIT_BYTES, Registry};

#[cfg(any(test, feature = "fuzzing"))]
pub(super) use auth::Challenge;
pub use auth::Credentials;
pub use progress::{LayerProgress, Progress};
pub use proxy::{InvalidProxy, Proxies};

/// Indexes may nest; deeper than this is a loop or a mistake.
const INDEX_DEPTH: usize = 4;

/// Pulls images into a store.
#[derive(Debug, Clone)]
pub struct Puller {
    store: Arc<Store>,
    /// Folders of hosts files, the first one that knows a registry wins.
    hosts: Vec<PathBuf>,
    proxies: Arc<Proxies>,
    downloads: Arc<Downloads>,
}

/// A manifest or an index as it came.
struct Fetched {
    digest: Digest,
    bytes: Vec<u8>,
    document: Manifest,
}

impl Puller {
    /// Pulls into `store`; `hosts` are folders in the form of containerd's `certs.d`.
    pub fn new(store: Arc<Store>, hosts: Vec<PathBuf>, proxies: Proxies) -> Self {
        Self {
            store,
            hosts,
            proxies: Arc::new(proxies),
            downloads: Arc::default(),
        }
    }

    /// Pulls an image and names it as it was asked for. `progress` tells how far it is.
    ///
    /// # Errors
    /// [`Error::Pull`] with what the last registry that was asked said; [`Error::Mismatch`] when content isn't what
    /// its digest says; else as an import.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Credentials,
        progress: &Progress,
    ) -> Result<Imported, Error> {
        let registry = Registry::open(reference, credentials, &self.hosts, &self.proxies)?;
        let top = fetch(&registry, &reference.version).await?;
        let mut names = Names::default();
        names.digests.insert(reference.with_digest(&top.digest));
        if matches!(reference.version, Version::Tag(_)) {
            names.tags.insert(reference.to_string());
        }
        let _manifest = self.store.hold([&top.digest]);
        self.store.write_blob(&top.digest, &top.bytes)?;
        let manifest = descend(&registry, top.document).await?;
        let described = manifest
            .config
            .ok_or_else(|| registry.failed("its manifest names no configuration"))?;
        let config_download = self
            .downloads
            .of(&registry, &described, self.store.ingest_path());
        let config_bytes = self.config(&registry, &config_download, &described).await?;
        let config: ImageConfig = parse("the image's configuration", &config_bytes)?;
        // Kept until the layers are recorded: until then another pull shares them.
        let downloads = self.downloads(&registry, &config, &manifest.layers);
        progress.begin(watched(&downloads, &config, &manifest.layers));
        let sources = sources(&downloads);
        let size_bytes =
            described.size + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        let store = self.store.clone();
        let installed = tokio::task::spawn_blocking(move || {
            store.install(&config_bytes, sources, names, size_bytes)
        })
        .await;
        drop((downloads, config_download));
        installed.map_err(|error| registry.failed(error.to_string()))?
    }

    /// The configuration: the store's if it has it.
    async fn config(
        &self,
        registry: &Registry,
        download: &Arc<Download>,
        described: &Descriptor,
    ) -> Result<Vec<u8>, Error> {
        let known = self.store.read_blob(&described.digest);
        if let Ok(bytes) = known
            && Digest::of(&bytes) == described.digest
        {
            return Ok(bytes);
        }
        if described.size > DOCUMENT_LIMIT_BYTES as u64 {
            let size = described.size;
            return Err(registry.failed(format!("its configuration has {size} bytes")));
        }
        download.bytes().await
    }

    /// Begins to fetch the layers that the store lacks.
    fn downloads(
        &self,
        registry: &Registry,
        config: &ImageConfig,
        layers: &[Descriptor],
    ) -> Vec<Arc<Download>> {
        let chains = chain_ids(&config.rootfs.diff_ids);
        let begin = |(index, layer): (usize, &Descriptor)| {
            let download = self.downloads.of(registry, layer, self.store.ingest_path());
            // Looked for only now: a pull that has just let go of the same download has left the layer.
            if chains
                .get(index)
                .is_none_or(|chain| self.store.layer_directory(chain).is_none())
            {
                download.begin();
            }
            download
        };
        layers.iter().enumerate().map(begin).collect()
    }
}

fn watched(
    downloads: &[Arc<Download>],
    config: &ImageConfig,
    layers: &[Descriptor],
) -> Vec<progress::Layer> {
    let chains = chain_ids(&config.rootfs.diff_ids);
    let layer =
        |((download, layer), chain): ((&Arc<Download>, &Descriptor), Digest)| progress::Layer {
            blob: layer.digest.clone(),
            chain,
            size_bytes: layer.size,
            received_bytes: download.received(),
        };
    downloads
        .iter()
        .zip(layers)
        .zip(chains)
        .map(layer)
        .collect()
}

/// Layers that are read on the thread that unpacks, while they arrive. One that was there and is gone again is fetched
/// after all.
fn sources(downloads: &[Arc<Download>]) -> Vec<LayerSource> {
    let source = |download: &Arc<Download>| {
        let runtime = tokio::runtime::Handle::current();
        let (download, of_failure) = (download.clone(), download.clone());
        let begun = Arc::new(AtomicU32::new(0));
        let begun_anew = begun.clone();
        let on = runtime.clone();
        LayerSource {
            // The download proves it.
            blob: None,
            open: Box::new(move || {
                let reader = download.read(&on);
                begun.store(reader.begun_anew(), Ordering::Relaxed);
                Ok(Box::new(reader))
            }),
            after_failure: Box::new(move |failure| {
                // Was it the layer, or what a host sent before another was asked?
                let now = runtime.block_on(of_failure.ended())?;
                if now == begun_anew.load(Ordering::Relaxed) {
                    return Err(failure);
                }
                Ok(())
            }),
        }
    };
    downloads.iter().map(source).collect()
}

async fn fetch(registry: &Registry, version: &Version) -> Result<Fetched, Error> {
    let wanted = match version {
        Version::Tag(tag) => tag.clone(),
        Version::Digest(digest) => digest.to_string(),
    };
    let bytes = registry.manifest(&wanted).await?;
    let digest = Digest::of(&bytes);
    if let Version::Digest(wanted) = version
        && *wanted != digest
    {
        return Err(Error::Mismatch {
            what: "a manifest".into(),
            wanted: wanted.clone(),
            found: digest,
        });
    }
    let document = parse("a manifest", &bytes)?;
    Ok(Fetched {
        digest,
        bytes,
        document,
    })
}

/// Follows an index down to the manifest for this machine.
async fn descend(registry: &Registry, mut document: Manifest) -> Result<Manifest, Error> {
    for _ in 0..INDEX_DEPTH {
        if document.config.is_some() {
            return Ok(document);
        }
        let chosen = choose_platform(&document.manifests)?.digest.clone();
        document = fetch(registry, &Version::Digest(chosen)).await?.document;
    }
    Err(registry.failed("its indexes nest too deeply"))
}
