//! Unpacks one layer's tar stream into a directory that overlayfs can stack (image-spec layer.md).
//!
//! An archive is hostile until proven otherwise. A name is split by us, `..` is refused, and its folder is opened
//! with `openat2(RESOLVE_IN_ROOT)` under the layer's own directory; every effect is then made relative to that
//! descriptor, on a last component that is never followed. Whiteouts become overlayfs' own marks. A folder that
//! an entry needs but the layer doesn't mention gets the attributes that it has in the layers below, since in a
//! stack the upper folder's attributes win. Names lead through symlinks of lower layers, and hard links to files of
//! them, as they would on the mounted stack.

mod below;
mod entry;
mod sparse;
#[cfg(test)]
mod tests;
mod tree;

use std::cell::RefCell;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use entry::Node;
use sparse::Expanded;
use tree::Tree;

use super::recipe::Recipe;

/// What a layer amounted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// The bytes of its regular files.
    pub size_bytes: u64,
    /// The entries of its archive.
    pub entries: u64,
    /// Whether one of them took the place of an earlier one.
    pub replaces: bool,
}

/// Bounds on what one layer may unpack to.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The bytes of all regular files.
    pub size_bytes: u64,
    /// The number of entries.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            size_bytes: 64 << 30,
            entries: 10_000_000,
        }
    }
}

/// Why a layer couldn't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read its archive: {0}")]
    Read(io::Error),
    #[error("entry {entry:?}: {why}")]
    Refused { entry: String, why: &'static str },
    #[error("entry {entry:?}: {operation}: {source}")]
    Io {
        entry: String,
        operation: &'static str,
        source: io::Error,
    },
    #[error("it unpacks to more than {0}")]
    TooLarge(String),
}

/// Unpacks the archive that `reader` yields into the empty directory `layer`. `below` are the directories of the
/// layers under it, the nearest first. Reads `reader` up to the archive's end mark.
/// `recipe`, if `reader` records one, is told where files' contents are.
///
/// # Errors
/// [`Error`]; the directory is then in an unknown state, and is to be deleted by the caller.
pub fn unpack(
    reader: impl Read,
    layer: &Path,
    below: &[PathBuf],
    limits: Limits,
    recipe: Option<&RefCell<Recipe>>,
) -> Result<Unpacked, Error> {
    let mut tree = Tree::open(layer, below)?;
    let mut archive = tar::Archive::new(reader);
    let mut done = Unpacked {
        size_bytes: 0,
        entries: 0,
        replaces: false,
    };
    for entry in archive.entries().map_err(Error::Read)? {
        let mut entry = entry.map_err(Error::Read)?;
        let Some(wanted) = entry::parse(&mut entry)? else {
            continue;
        };
        done.entries += 1;
        if done.entries > limits.entries {
            return Err(Error::TooLarge(format!("{} entries", limits.entries)));
        }
        let sparse =
            wanted.map.is_some() || entry.header().entry_type() == tar::EntryType::GNUSparse;
        if matches!(wanted.node, Node::File) {
            // The declared size bounds what the reader yields, sparse files' holes included.
            let size = wanted.map.as_ref().map_or(entry.size(), |map| map.size);
            done.size_bytes = done.size_bytes.saturating_add(size);
            if done.size_bytes > limits.size_bytes {
                return Err(Error::TooLarge(format!("{} bytes", limits.size_bytes)));
            }
        }
        let content = recipe.filter(|_| matches!(wanted.node, Node::File));
        if let Some(recipe) = content {
            recipe.borrow_mut().begin_content(sparse);
        }
        let real = match &wanted.map {
            Some(map) => tree.apply(&wanted, sparse, &mut Expanded::new(&mut entry, map))?,
            None => tree.apply(&wanted, sparse, &mut entry)?,
        };
        if let Some(recipe) = content {
            let told = recipe.borrow_mut().end_content(&real.join(&b'/'));
            told.map_err(Error::Read)?;
        }
    }
    done.replaces = tree.finish()?;
    Ok(done)
}

/// The names that an entry's path is made of, none of which leads anywhere but down.
fn components(entry: &str, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let refused = |why| Error::Refused {
        entry: entry.to_owned(),
        why,
    };
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(refused("its name leads upwards")),
            name if name.contains(&0) => return Err(refused("its name holds a zero byte")),
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}
