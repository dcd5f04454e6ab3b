//! What is in the store, who is looking for it, and what may go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use journal::Journal;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::document::ImageConfig;
use super::error::Error;
use super::layer::{Hold, Holders, LayerRecord};
use super::reference::{Reference, Version};
use super::unpack::Limits;

pub(super) const IMAGE: &str = "image";
pub(super) const LAYER: &str = "layer";

/// An image, as journalled under its id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The configuration's digest: what CRI calls the image's id.
    pub id: Digest,
    /// Its names, with tags, normalised.
    pub names: BTreeSet<String>,
    /// Its names, by digest: `repository@digest`.
    pub digests: BTreeSet<String>,
    /// Its layers' chain ids, lowest first.
    pub layers: Vec<Digest>,
    /// The bytes of its configuration and its layers, as distributed.
    pub size_bytes: u64,
    /// Not to be removed by the kubelet's garbage collection.
    #[serde(default)]
    pub pinned: bool,
    /// Its configuration.
    pub config: ImageConfig,
}

/// What the store takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FsUsage {
    pub used_bytes: u64,
    pub inodes: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub images: BTreeMap<Digest, Arc<ImageRecord>>,
    pub layers: HashMap<Digest, LayerRecord>,
    /// One lock for each layer that is being unpacked.
    turns: HashMap<Digest, Arc<Mutex<()>>>,
    /// Whether records were written that a power cut would void.
    unsettled: bool,
}

/// The image store. Its operations block: call them off the async threads.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    pub(super) journal: Arc<Journal>,
    pub(super) limits: Limits,
    pub(super) holders: Holders,
    state: Mutex<State>,
    next: AtomicU64,
}

impl Store {
    /// Opens the store below `root`, making its folders, and removes what a crash left half done.
    ///
    /// # Errors
    /// [`Error::Io`] when the folders can't be made or read, [`Error::Journal`] when the records can't be read.
    pub fn open(
        root: impl Into<PathBuf>,
        journal: Arc<Journal>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let root = root.into();
        for folder in ["blobs/sha256", "layers/empty", "recipes", "ingest"] {
            let path = root.join(folder);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(Error::io("make", &path))?;
        }
        let mut state = State {
            unsettled: true,
            ..State::default()
        };
        for (chain, record) in journal.list::<LayerRecord>(LAYER)? {
            state.layers.insert(chain.parse()?, record);
        }
        for (_, image) in journal.list::<ImageRecord>(IMAGE)? {
            // A layer whose record was void after a power cut takes its images along.
            if image
                .layers
                .iter()
                .all(|chain| state.layers.contains_key(chain))
            {
                state.images.insert(image.id.clone(), Arc::new(image));
            } else {
                journal.delete(IMAGE, image.id.as_str())?;
            }
        }
        let next = state
            .layers
            .values()
            .map(|layer| layer.directory + 1)
            .max()
            .unwrap_or(1);
        let store = Self {
            root,
            journal,
            limits,
            holders: Holders::default(),
            state: Mutex::new(state),
            next: AtomicU64::new(next),
        };
        store.sweep()?;
        Ok(store)
    }

    /// Removes every file that no record knows.
    fn sweep(&self) -> Result<(), Error> {
        let (layers, blobs): (BTreeSet<String>, BTreeSet<String>) = {
            let state = self.state();
            let layers = state
                .layers
                .values()
                .map(|layer| layer.directory.to_string());
            (
                layers.chain(["empty".to_owned()]).collect(),
                state.images.keys().map(|id| id.hex().to_owned()).collect(),
            )
        };
        let manifests = self.manifest_blobs();
        remove_all_but(&self.layers_path(), |name| layers.contains(name))?;
        remove_all_but(&self.root.join("recipes"), |name| layers.contains(name))?;
        remove_all_but(&self.root.join("ingest"), |_| false)?;
        remove_all_but(&self.root.join("blobs/sha256"), |name| {
            blobs.contains(name) || manifests.contains(name)
        })
    }

    /// The hex digests in the images' names by digest: their manifests' and indexes'.
    fn manifest_blobs(&self) -> BTreeSet<String> {
        let state = self.state();
        let digests = state.images.values().flat_map(|image| &image.digests);
        digests
            .filter_map(|name| name.rsplit_once(':').map(|(_, hex)| hex.to_owned()))
            .collect()
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.state().images.values().cloned().collect()
    }

    /// Finds an image by its id, the beginning of its id, a name with a tag or a name with a digest.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Ambiguous`] for the beginning of several ids.
    pub fn get(&self, name: &str) -> Result<Arc<ImageRecord>, Error> {
        let state = self.state();
        let not_found = || Error::NotFound(name.to_owned());
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if let Ok(id) = format!("sha256:{hex}").parse::<Digest>() {
            return state.images.get(&id).cloned().ok_or_else(not_found);
        }
        if let Ok(reference) = Reference::parse(name) {
            let normal = reference.to_string();
            let known = |image: &&Arc<ImageRecord>| match reference.version {
                Version::Tag(_) => image.names.contains(&normal),
                Version::Digest(_) => image.digests.contains(&normal),
            };
            if let Some(image) = state.images.values().find(known) {
                return Ok(image.clone());
            }
        }
        if hex.len() < 4 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_found());
        }
        let mut beginning = state
            .images
            .values()
            .filter(|image| image.id.hex().starts_with(hex));
        match (beginning.next(), beginning.next()) {
            (Some(image), None) => Ok(image.clone()),
            (Some(_), Some(_)) => Err(Error::Ambiguous(name.to_owned())),
            _ => Err(not_found()),
        }
    }

    /// Holds layers by their chain ids, for a container, or documents that are to be written.
    pub fn hold<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Hold {
        let mut hold = Hold::new(&self.holders);
        for digest in digests {
            hold.add(digest);
        }
        hold
    }

    /// The folders to stack, topmost first, as overlayfs wants them, of layers by their chain ids. An image of no
    /// layers has one empty folder. The layers must be held.
    ///
    /// # Errors
    /// [`Error::NotFound`] when a layer is gone.
    pub fn directories(&self, chains: &[Digest]) -> Result<Vec<PathBuf>, Error> {
        if chains.is_empty() {
            return Ok(vec![self.layers_path().join("empty")]);
        }
        let find = |chain: &Digest| {
            self.layer_directory(chain)
                .map(|number| self.layer_path(number))
        };
        let missing = |chain: &Digest| Error::NotFound(format!("layer {chain}"));
        chains
            .iter()
            .rev()
            .map(|chain| find(chain).ok_or_else(|| missing(chain)))
            .collect()
    }

    /// Removes an image with all its names, and at once every layer that nobody else uses. A container that runs
    /// on it goes on; its layers go when it is removed and [`Store::collect`] runs.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Journal`], or [`Error::Io`] when files can't be removed.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let image = self.get(name)?;
        self.journal.delete(IMAGE, image.id.as_str())?;
        self.state().images.remove(&image.id);
        self.collect()
    }

    /// Removes the layers and documents that no image, container or running import uses.
    ///
    /// # Errors
    /// [`Error::Journal`], or the first [`Error::Io`]; the others are removed all the same.
    pub fn collect(&self) -> Result<(), Error> {
        let garbage: Vec<(Digest, LayerRecord)> = {
            let mut state = self.state();
            let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
            let used: BTreeSet<&Digest> = state
                .images
                .values()
                .flat_map(|image| &image.layers)
                .collect();
            let garbage: Vec<(Digest, LayerRecord)> = state
                .layers
                .iter()
                .filter(|(chain, _)| !used.contains(chain) && !holders.contains_key(*chain))
                .map(|(chain, layer)| (chain.clone(), layer.clone()))
                .collect();
            self.journal.transaction(|records| {
                garbage
                    .iter()
                    .try_for_each(|(chain, _)| records.delete(LAYER, chain.as_str()).map(drop))
            })?;
            for (chain, _) in &garbage {
                state.layers.remove(chain);
            }
            garbage
        };
        let mut outcome = Ok(());
        for (_, layer) in garbage {
            let path = self.layer_path(layer.directory);
            if let Err(source) = std::fs::remove_dir_all(&path) {
                outcome = outcome.and(Err(Error::io("remove", path)(source)));
            }
            let path = self.recipe_path(layer.directory);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    outcome = outcome.and(Err(Error::io("remove", path)(source)));
                }
                _ => {}
            }
        }
        outcome.and(self.collect_blobs())
    }

    /// Removes the documents that no image names and nobody holds.
    fn collect_blobs(&self) -> Result<(), Error> {
        let manifests = self.manifest_blobs();
        let state = self.state();
        // Until the end: a document is held before it is written.
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keep: BTreeSet<&str> = state.images.keys().map(Digest::hex).collect();
        keep.extend(holders.keys().map(Digest::hex));
        remove_all_but(&self.root.join("blobs/sha256"), |name| {
            keep.contains(name) || manifests.contains(name)
        })
    }

    /// Records an image whose layers are unpacked, and gives it its names. A name that another image had moves.
    pub(super) fn add(
        &self,
        mut image: ImageRecord,
        _layers: &Hold,
    ) -> Result<Arc<ImageRecord>, Error> {
        let mut state = self.state();
        if let Some(known) = state.images.get(&image.id) {
            image.names.extend(known.names.iter().cloned());
            image.digests.extend(known.digests.iter().cloned());
            image.pinned |= known.pinned;
        }
        let moved: Vec<ImageRecord> = state
            .images
            .values()
            .filter(|other| other.id != image.id && !other.names.is_disjoint(&image.names))
            .map(|other| {
                let names = other.names.difference(&image.names).cloned().collect();
                ImageRecord {
                    names,
                    ..(**other).clone()
                }
            })
            .collect();
        self.journal.transaction(|records| {
            moved
                .iter()
                .chain([&image])
                .try_for_each(|one| records.put_for_this_boot(IMAGE, one.id.as_str(), one))
        })?;
        for other in moved {
            state.images.insert(other.id.clone(), Arc::new(other));
        }
        let image = Arc::new(image);
        state.images.insert(image.id.clone(), image.clone());
        state.unsettled = true;
        Ok(image)
    }

    /// Makes what came in outlast a power cut: the files first, then the records that name them. Slow on a busy
    /// disk, so it is run in the background.
    ///
    /// # Errors
    /// [`Error::Io`] when the file system can't be synced, [`Error::Journal`].
    pub fn settle(&self) -> Result<(), Error> {
        let (images, layers): (Vec<_>, Vec<_>) = {
            let mut state = self.state();
            if !std::mem::take(&mut state.unsettled) {
                return Ok(());
            }
            (
                state.images.keys().cloned().collect(),
                state.layers.keys().cloned().collect(),
            )
        };
        let folder = std::fs::File::open(&self.root).map_err(Error::io("open", &self.root))?;
        rustix::fs::syncfs(&folder)
            .map_err(|source| Error::io("sync", &self.root)(source.into()))?;
        let state = self.state();
        self.journal.transaction(|records| {
            for (id, image) in images
                .iter()
                .filter_map(|id| Some((id, state.images.get(id)?)))
            {
                records.put(IMAGE, id.as_str(), &**image)?;
            }
            for (chain, layer) in layers
                .iter()
                .filter_map(|chain| Some((chain, state.layers.get(chain)?)))
            {
                records.put(LAYER, chain.as_str(), layer)?;
            }
            Ok(())
        })
    }

    /// Writes a document under its digest; whole or not at all. It must be held until an image's record names it.
    pub(super) fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.root.join("blobs/sha256").join(digest.hex());
        let partial = self
            .root
            .join("ingest")
            .join(format!("blob-{}", self.next_number()));
        let mut file = std::fs::File::create_new(&partial).map_err(Error::io("make", &partial))?;
        file.write_all(bytes)
            .map_err(Error::io("write", &partial))?;
        std::fs::rename(&partial, &path).map_err(Error::io("rename", &partial))
    }

    /// A document by its digest.
    pub(super) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.root.join("blobs/sha256").join(digest.hex());
        std::fs::read(&path).map_err(Error::io("read", path))
    }

    /// Gives an image one more name, which another image loses if it had it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Reference`] for a name that isn't one with a tag, [`Error::Journal`].
    pub fn tag(&self, image: &str, name: &str) -> Result<Arc<ImageRecord>, Error> {
        let name = Reference::parse(name)?;
        if matches!(name.version, Version::Digest(_)) {
            return Err(Error::Tag(name.to_string()));
        }
        let hold = self.hold(&self.get(image)?.layers);
        // Looked for again, now that its layers can't go.
        let mut image = (*self.get(image)?).clone();
        image.names.insert(name.to_string());
        self.add(image, &hold)
    }

    /// Pins an image, or lets it go again.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Journal`].
    pub fn pin(&self, name: &str, pinned: bool) -> Result<Arc<ImageRecord>, Error> {
        let id = self.get(name)?.id.clone();
        let mut state = self.state();
        let known = state.images.get(&id);
        let mut image = known
            .map(|image| (**image).clone())
            .ok_or_else(|| Error::NotFound(name.to_owned()))?;
        image.pinned = pinned;
        self.journal
            .put_for_this_boot(IMAGE, image.id.as_str(), &image)?;
        let image = Arc::new(image);
        state.images.insert(id, image.clone());
        state.unsettled = true;
        Ok(image)
    }

    /// What the layers and documents take, by the store's own account.
    pub fn usage(&self) -> FsUsage {
        let state = self.state();
        state
            .layers
            .values()
            .fold(FsUsage::default(), |sum, layer| FsUsage {
                used_bytes: sum.used_bytes + layer.size_bytes,
                inodes: sum.inodes + layer.entries,
            })
    }

    /// The store's root, for what asks which file system it is on.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn layers_path(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(super) fn layer_path(&self, number: u64) -> PathBuf {
        self.layers_path().join(number.to_string())
    }

    /// How a layer's archive is written again.
    pub(super) fn recipe_path(&self, number: u64) -> PathBuf {
        self.root.join("recipes").join(number.to_string())
    }

    pub(super) fn ingest_path(&self) -> PathBuf {
        self.root
            .join("ingest")
            .join(self.next_number().to_string())
    }

    pub(super) fn layer(&self, chain: &Digest) -> Option<LayerRecord> {
        self.state().layers.get(chain).cloned()
    }

    pub(super) fn layer_directory(&self, chain: &Digest) -> Option<u64> {
        self.state().layers.get(chain).map(|layer| layer.directory)
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The lock of whoever unpacks that layer. Locks that nobody waits for are dropped here.
    pub(super) fn turn(&self, chain: &Digest) -> Arc<Mutex<()>> {
        let mut state = self.state();
        state.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        state.turns.entry(chain.clone()).or_default().clone()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // No code panics half way through a change, so what a panic elsewhere left is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove_all_but(folder: &Path, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        if entry.file_name().to_str().is_some_and(&keep) {
            continue;
        }
        let path = entry.path();
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if directory {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(Error::io("remove", &path))?;
    }
    Ok(())
}
