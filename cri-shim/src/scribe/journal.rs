//! What makes the log exactly once: the scribe may be killed between any two instructions.
//!
//! Output is looked at in its pipe (`tee`), formatted and appended to the log file, and only then removed from the pipe.
//! Before the append, the intent is written to a memory file that the keeper holds too: which file, from which length
//! on, how many bytes, for how many bytes of the pipe. Removal is `splice` into another such memory file, whose position
//! is thereby the count of what has been removed, kept by the kernel in the same call. From file length and position a
//! successor knows which of append and removal have happened.

use super::log_file::FileId;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// Removed bytes are freed when this many are in the spool.
const SPOOL_LIMIT: u64 = 1 << 20;

/// One batch: an append to a log file, and the removal of what it says from a pipe.
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
    /// Bytes to remove from the pipe.
    pub raw: u64,
    /// The spool's position before the removal.
    pub spool: u64,
}

/// The two memory files.
#[derive(Debug)]
pub(super) struct Journal {
    spool: OwnedFd,
    head: OwnedFd,
    freed_at: u64,
}

impl Journal {
    pub(super) fn new(spool: OwnedFd, head: OwnedFd) -> Self {
        Journal {
            spool,
            head,
            freed_at: 0,
        }
    }

    /// The spool's position.
    pub(super) fn position(&self) -> u64 {
        // A memory file's position can always be told.
        rustix::fs::seek(&self.spool, SeekFrom::Current(0)).unwrap_or(0)
    }

    /// Records what is about to be done.
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn intend(&self, intent: &Intent) -> Result<(), Errno> {
        let body = serde_json::to_vec(intent).unwrap_or_default();
        // Length first: a shorter intent overwrites a longer one. It stays within one page, so it is written at once.
        let mut data = u32::try_from(body.len())
            .unwrap_or(0)
            .to_le_bytes()
            .to_vec();
        data.extend(body);
        rustix::io::pwrite(&self.head, &data, 0).map(drop)
    }

    /// The last intent, of this scribe or the one before.
    pub(super) fn last(&self) -> Option<Intent> {
        let mut data = [0; 4096];
        let count = rustix::io::pread(&self.head, &mut data, 0).ok()?;
        let length = u32::from_le_bytes(data[..count].get(..4)?.try_into().ok()?);
        serde_json::from_slice(data[..count].get(4..4 + length as usize)?).ok()
    }

    /// Removes `count` bytes from the pipe.
    ///
    /// # Errors
    /// ENOMEM; EAGAIN if the pipe holds less.
    pub(super) fn remove(&mut self, pipe: impl AsFd, mut count: u64) -> Result<(), Errno> {
        while count > 0 {
            let wanted = usize::try_from(count).unwrap_or(usize::MAX);
            match rustix::pipe::splice(
                &pipe,
                None,
                &self.spool,
                None,
                wanted,
                SpliceFlags::NONBLOCK,
            ) {
                Ok(0) => return Err(Errno::AGAIN),
                Ok(moved) => count -= moved as u64,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        if self.position() - self.freed_at > SPOOL_LIMIT {
            rustix::fs::ftruncate(&self.spool, 0)?; // the position stays
            self.freed_at = self.position();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        let file = || rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        Journal::new(file(), file())
    }

    #[test]
    fn removal_is_counted_by_the_kernel() {
        let mut journal = journal();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        for _ in 0..100 {
            rustix::io::write(&writer, &[b'x'; 50_000]).unwrap();
            let before = journal.position();
            journal.remove(&reader, 49_990).unwrap();
            assert_eq!(journal.position() - before, 49_990);
            journal.remove(&reader, 10).unwrap();
        }
        assert_eq!(journal.remove(&reader, 1), Err(Errno::AGAIN));
    }

    #[test]
    fn a_short_intent_replaces_a_long_one() {
        let journal = journal();
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
            raw: 5,
            spool: 6,
        };
        journal.intend(&intent(&"x".repeat(200))).unwrap();
        journal.intend(&intent("y")).unwrap();
        assert_eq!(journal.last(), Some(intent("y")));
    }
}
