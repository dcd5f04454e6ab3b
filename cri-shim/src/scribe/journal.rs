//! What makes the log exactly once: the scribe may be killed between any two instructions.
//!
//! Output goes from its pipe into a [spool](super::spool) file by one system call, is appended to the log file, and only
//! then counted as done in the spool. Before the append, the intent is written here: which file, from which length on,
//! how many bytes, and what the spool's count becomes. From the file's length a successor knows whether the append has
//! happened. There is one batch at a time, so there is one intent.

use super::log_file::FileId;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// One batch: an append to a log file, for a piece of a spool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Intent {
    pub id: String,
    /// Which of the container's streams.
    pub stream: usize,
    pub file: FileId,
    /// The file's length before the append.
    pub offset: u64,
    /// The append's length.
    pub length: u64,
    /// The spool's count before and after.
    pub done: (u64, u64),
}

/// The file with the intent, locked: two scribes never work at a time.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

impl Journal {
    /// Waits for a scribe that is still ending.
    ///
    /// # Errors
    /// `flock`'s.
    pub(super) fn lock(file: File) -> io::Result<Self> {
        file.lock()?;
        Ok(Journal { file })
    }

    /// Records what is about to be done.
    ///
    /// # Errors
    /// ENOSPC.
    pub(super) fn intend(&self, intent: &Intent) -> io::Result<()> {
        let body = serde_json::to_vec(intent)?;
        // Length first: a shorter intent overwrites a longer one. It stays within one page, so it is written at once.
        let mut data = u32::try_from(body.len())
            .unwrap_or(0)
            .to_le_bytes()
            .to_vec();
        data.extend(body);
        self.file.write_all_at(&data, 0)
    }

    /// The last intent, of this scribe or the one before.
    pub(super) fn last(&self) -> Option<Intent> {
        let mut data = [0; 4096];
        let count = self.file.read_at(&mut data, 0).ok()?;
        let length = u32::from_le_bytes(data[..count].get(..4)?.try_into().ok()?);
        serde_json::from_slice(data[..count].get(4..4 + length as usize)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_intent_replaces_a_long_one() {
        let journal = Journal::lock(tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(journal.last(), None);
        let intent = |id: &str| Intent {
            id: id.to_owned(),
            stream: 1,
            file: FileId {
                device: 1,
                inode: 2,
            },
            offset: 3,
            length: 4,
            done: (5, 6),
        };
        journal.intend(&intent(&"x".repeat(200))).unwrap();
        journal.intend(&intent("y")).unwrap();
        assert_eq!(journal.last(), Some(intent("y")));
    }
}
