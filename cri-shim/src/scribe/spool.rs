//! What has left a container's pipe and is not yet in its log: a small sparse file on the keeper's tmpfs.
//!
//! The pipe must be drained to its bottom each time: the kernel wakes nobody for a write that blocks in a pipe that was
//! not empty, so a line without its end can't wait there. `splice` moves bytes from the pipe into the file in one call,
//! and the file's length, which the same call raises, counts them. How many are done is written at the file's start.

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Where the bytes begin; before that is the count of those that are done.
const START: u64 = 4096;

/// The most that waits at a time: an entry, and what comes in one go.
pub(super) const MAX_PENDING: usize = 80 * 1024;

/// A stream's spool.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    /// Bytes that have come in since the container's start.
    end: u64,
    /// Of these, those that are done with.
    done: u64,
    /// A copy of those between.
    pub pending: Vec<u8>,
}

impl Spool {
    /// Takes up a spool where it is.
    ///
    /// # Errors
    /// The read's.
    pub(super) fn open(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len().saturating_sub(START);
        let mut done = [0; 8];
        let count = file.read_at(&mut done, 0)?;
        let done = if count == done.len() {
            u64::from_le_bytes(done)
        } else {
            0
        };
        let mut spool = Spool {
            file,
            end,
            done,
            pending: Vec::new(),
        };
        if end > done {
            spool.fetch(done)?;
        }
        Ok(spool)
    }

    /// How many bytes are done with.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// Takes what the pipe has, as far as there is room. `None` if it is empty, `Some(0)` at its end.
    ///
    /// # Errors
    /// ENOSPC if the tmpfs is full: then nothing has been taken that isn't in the spool.
    pub(super) fn fill_from(&mut self, pipe: impl AsFd) -> io::Result<Option<usize>> {
        let room = MAX_PENDING - self.pending.len().min(MAX_PENDING);
        let mut offset = START + self.end;
        loop {
            match rustix::pipe::splice(
                &pipe,
                None,
                &self.file,
                Some(&mut offset),
                room,
                SpliceFlags::NONBLOCK,
            ) {
                Ok(count) => {
                    let from = self.end;
                    self.end += count as u64;
                    self.fetch(from)?;
                    return Ok(Some(count));
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes bytes that were read elsewhere (from a terminal).
    ///
    /// # Errors
    /// ENOSPC if the tmpfs is full.
    pub(super) fn push(&mut self, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, START + self.end)?;
        self.end += data.len() as u64;
        self.pending.extend_from_slice(data);
        Ok(())
    }

    fn fetch(&mut self, from: u64) -> io::Result<()> {
        let old = self.pending.len();
        self.pending
            .resize(old + usize::try_from(self.end - from).unwrap_or(0), 0);
        self.file
            .read_exact_at(&mut self.pending[old..], START + from)
    }

    /// The first `count` pending bytes are done with.
    ///
    /// # Errors
    /// ENOSPC, before anything else is in the file.
    pub(super) fn finish(&mut self, count: usize) -> io::Result<()> {
        self.file
            .write_all_at(&(self.done + count as u64).to_le_bytes(), 0)?;
        self.done += count as u64;
        self.pending.drain(..count);
        if self.pending.is_empty() {
            self.pending = Vec::new();
            self.free();
        }
        Ok(())
    }

    /// Gives the memory of finished bytes back.
    fn free(&self) {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Only the pages since the last time are there; freeing a hole costs nothing.
        let from = (START + self.done)
            .saturating_sub(2 * MAX_PENDING as u64)
            .max(START);
        // On a file system that can't, the file just grows.
        let _ = fallocate(&self.file, flags, from, START + self.done - from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    fn spool_file() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("spool");
        (dir, path)
    }

    fn open(path: &std::path::Path) -> Spool {
        Spool::open(
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn what_left_the_pipe_is_found_by_a_successor() {
        let (_dir, path) = spool_file();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"done.pending").unwrap();
        {
            let mut spool = open(&path);
            assert_eq!(spool.fill_from(&reader).unwrap(), Some(12));
            assert_eq!(spool.fill_from(&reader).unwrap(), None);
            spool.finish(5).unwrap();
        }
        let mut spool = open(&path);
        assert_eq!(
            (spool.pending.as_slice(), spool.done()),
            (&b"pending"[..], 5)
        );
        drop(writer);
        assert_eq!(spool.fill_from(&reader).unwrap(), Some(0));
    }

    #[test]
    fn finished_bytes_take_no_memory() {
        let (_dir, path) = spool_file();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut spool = open(&path);
        for _ in 0..100 {
            writer.write_all(&[b'x'; 50_000]).unwrap();
            while spool.fill_from(&reader).unwrap().is_some() {}
            assert_eq!(spool.pending.len(), 50_000);
            spool.finish(50_000).unwrap();
        }
        assert_eq!(spool.pending.capacity(), 0);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 20_000);
    }

    #[test]
    fn a_full_spool_leaves_the_rest_in_the_pipe() {
        let (_dir, path) = spool_file();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut spool = open(&path);
        for _ in 0..2 {
            writer.write_all(&[b'x'; 60_000]).unwrap();
            while spool
                .fill_from(&reader)
                .unwrap()
                .is_some_and(|count| count > 0)
            {}
        }
        assert_eq!(spool.pending.len(), MAX_PENDING);
        spool.finish(MAX_PENDING).unwrap();
        while spool.fill_from(&reader).unwrap().is_some() {}
        assert_eq!(spool.pending.len(), 120_000 - MAX_PENDING);
    }
}
