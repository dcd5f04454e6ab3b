//! One container's log file.

use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Which file it is, whatever it is called by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    fn of(metadata: &std::fs::Metadata) -> Self {
        FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// An open log file, written at its end.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    pub id: FileId,
    /// Its length, as only we write it.
    pub length: u64,
}

impl LogFile {
    /// Opens or creates `path` (mode 0640), with its parent directories.
    ///
    /// # Errors
    /// The `mkdir`'s or the `open`'s.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let open = || {
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o640)
                .open(path)
        };
        let file = match (open(), path.parent()) {
            (Err(cause), Some(parent)) if cause.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(parent)?;
                open()?
            }
            (result, _) => result?,
        };
        let metadata = file.metadata()?;
        Ok(LogFile {
            id: FileId::of(&metadata),
            length: metadata.len(),
            file,
        })
    }

    /// Opens the file `id` again, which was at `path` and may have been renamed within its directory since.
    pub(super) fn find(path: &Path, id: FileId) -> Option<Self> {
        let candidates = std::iter::once(path.to_owned()).chain(siblings(path));
        for candidate in candidates {
            let Ok(file) = OpenOptions::new().append(true).open(candidate) else {
                continue;
            };
            let Ok(metadata) = file.metadata() else {
                continue;
            };
            if FileId::of(&metadata) == id {
                return Some(LogFile {
                    id,
                    length: metadata.len(),
                    file,
                });
            }
        }
        None
    }

    /// Appends all of `data` or nothing.
    ///
    /// # Errors
    /// The write's; the file has its old length then.
    pub(super) fn append(&mut self, data: &[u8]) -> io::Result<()> {
        match self.file.write_all(data) {
            Ok(()) => {
                self.length += data.len() as u64;
                Ok(())
            }
            Err(cause) => {
                self.cut(self.length)?;
                Err(cause)
            }
        }
    }

    /// Cuts it to `length`.
    ///
    /// # Errors
    /// The `ftruncate`'s.
    pub(super) fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.length = length;
        Ok(())
    }
}

/// Makes the file at `path` as the scribe would, if there is none.
///
/// # Errors
/// The `mkdir`'s or the `open`'s.
pub fn make_log(path: &Path) -> io::Result<()> {
    LogFile::open(path).map(drop)
}

fn siblings(path: &Path) -> Vec<PathBuf> {
    let Some(entries) = path
        .parent()
        .and_then(|parent| std::fs::read_dir(parent).ok())
    else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn open_makes_parents_and_a_file_that_others_can_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/container/0.log");
        let mut log = LogFile::open(&path).unwrap();
        log.append(b"one\n").unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o007,
            0
        );
        assert_eq!(LogFile::open(&path).unwrap().length, 4);
    }

    #[test]
    fn a_renamed_file_is_found_by_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = LogFile::open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.20261122")).unwrap();
        LogFile::open(&path).unwrap();
        assert!(LogFile::find(&path, log.id).is_some());
        assert!(LogFile::find(&path, FileId { inode: 0, ..log.id }).is_none());
    }
}
