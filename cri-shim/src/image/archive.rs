//! Where an import's files come from: an OCI layout's folder, or a tar archive that is spooled to disk first,
//! since the index that tells which blob is what may be its last entry.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::error::Error;
use super::layer::decompress;
use super::unpack::Limits;

/// Documents are small; more is an attack or a mistake.
const DOCUMENT_LIMIT_BYTES: u64 = 16 << 20;

/// The files of an import, by their name in the layout or archive.
pub enum Archive {
    Layout(PathBuf),
    Spool {
        folder: PathBuf,
        files: HashMap<String, u64>,
    },
}

impl Archive {
    /// Spools a tar archive, compressed or not, into `folder`, which is made. It may hold no more than a layer may.
    pub fn spool(reader: impl Read + Send, folder: PathBuf, limits: Limits) -> Result<Self, Error> {
        std::fs::create_dir(&folder).map_err(Error::io("make", &folder))?;
        let mut spool = Self::Spool {
            folder,
            files: HashMap::new(),
        };
        spool.fill(reader, limits)?;
        Ok(spool)
    }

    fn fill(&mut self, reader: impl Read + Send, limits: Limits) -> Result<(), Error> {
        let Self::Spool { folder, files } = self else {
            return Ok(());
        };
        let broken = |source: io::Error| Error::Archive(format!("read the archive: {source}"));
        let mut archive = tar::Archive::new(decompress(reader).map_err(broken)?);
        let too_large = |what: String| Error::Archive(format!("it holds more than {what}"));
        let mut links = Vec::new();
        let mut size_bytes = 0_u64;
        for (number, entry) in (0..).zip(archive.entries().map_err(broken)?) {
            let mut entry = entry.map_err(broken)?;
            if number >= limits.entries {
                return Err(too_large(format!("{} entries", limits.entries)));
            }
            let name = normal(&entry.path().map_err(broken)?);
            match entry.header().entry_type() {
                tar::EntryType::Regular
                | tar::EntryType::Continuous
                | tar::EntryType::GNUSparse => {
                    size_bytes = size_bytes.saturating_add(entry.size());
                    if size_bytes > limits.size_bytes {
                        return Err(too_large(format!("{} bytes", limits.size_bytes)));
                    }
                    let path = folder.join(number.to_string());
                    let mut file = File::create_new(&path).map_err(Error::io("make", &path))?;
                    io::copy(&mut entry, &mut file).map_err(Error::io("write", &path))?;
                    files.insert(name, number);
                }
                // Docker's archives name a layer that several images share once, and link to it.
                kind @ (tar::EntryType::Symlink | tar::EntryType::Link) => {
                    if let Some(target) = entry.link_name().map_err(broken)? {
                        let from_root = kind == tar::EntryType::Link;
                        let base = if from_root {
                            Path::new("")
                        } else {
                            Path::new(&name).parent().unwrap_or(Path::new(""))
                        };
                        links.push((name.clone(), normal(&base.join(target))));
                    }
                }
                _ => {}
            }
        }
        for (name, target) in links {
            if let Some(&number) = files.get(&target) {
                files.insert(name, number);
            }
        }
        Ok(())
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Layout(folder) => folder.join(name).is_file(),
            Self::Spool { files, .. } => files.contains_key(name),
        }
    }

    /// Opens a file. In a layout's folder `name` must be one that we made up, never one read from a document.
    pub fn open(&self, name: &str) -> Result<File, Error> {
        let path = match self {
            Self::Layout(folder) => folder.join(name),
            Self::Spool { folder, files } => {
                let number = files
                    .get(name)
                    .ok_or_else(|| Error::Archive(format!("it has no {name}")))?;
                folder.join(number.to_string())
            }
        };
        File::open(&path).map_err(Error::io("open", path))
    }

    /// Reads a document whole.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let read = self
            .open(name)?
            .take(DOCUMENT_LIMIT_BYTES + 1)
            .read_to_end(&mut bytes);
        read.map_err(Error::io("read", name))?;
        if bytes.len() as u64 > DOCUMENT_LIMIT_BYTES {
            return Err(Error::Archive(format!(
                "{name} is larger than {DOCUMENT_LIMIT_BYTES} bytes"
            )));
        }
        Ok(bytes)
    }

    /// Reads a document by its digest, and checks it.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let bytes = self.read(&blob_name(digest))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(Error::Mismatch {
                what: "a document".into(),
                wanted: digest.clone(),
                found,
            });
        }
        Ok(bytes)
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Self::Spool { folder, .. } = self {
            // Best effort: the next start removes what stays.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A blob's name in a layout.
pub fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A path as a key: no `.`, no doubled slashes, `..` resolved by the letter.
fn normal(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let text = path.to_string_lossy();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
