//! Blobs on their way: one download of each at a time, whoever wants it, resumed where it broke off, and read while it
//! arrives.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use super::registry::Registry;
use crate::image::digest::Digest;
use crate::image::document::Descriptor;
use crate::image::error::Error;

/// How many blobs come down side by side, of all pulls together.
const AT_ONCE: usize = 6;
/// How often a download that broke off goes on, and how long after at first.
const RESUMES: u32 = 5;
const BACKOFF: Duration = Duration::from_millis(200);
/// How long a server may send nothing in the middle of a blob.
const SILENCE: Duration = Duration::from_secs(30);

/// As much is written at once.
const PIECE_BYTES: usize = 512 << 10;

/// How far a download is.
#[derive(Debug, Default)]
struct State {
    /// The bytes in the file.
    written: u64,
    /// How often it has begun anew: then what was read before may not be what comes now.
    begun_anew: u32,
    outcome: Option<Result<(), Arc<Error>>>,
}

/// The downloads that are wanted, by repository and digest.
#[derive(Debug)]
pub struct Downloads {
    wanted: Mutex<HashMap<String, Weak<Download>>>,
    turns: Arc<Semaphore>,
}

impl Default for Downloads {
    fn default() -> Self {
        Self {
            wanted: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

/// One blob's download. Nothing of it is left when the last who wants it lets go.
pub struct Download {
    registry: Registry,
    blob: Descriptor,
    path: PathBuf,
    received: Arc<AtomicU64>,
    turns: Arc<Semaphore>,
    state: watch::Sender<State>,
    task: Mutex<Option<AbortHandle>>,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Download({})", self.blob.digest)
    }
}

impl Downloads {
    /// The download of a blob; one that somebody wants already, if there is one. `path` is where a new one goes.
    pub fn of(&self, registry: &Registry, blob: &Descriptor, path: PathBuf) -> Arc<Download> {
        let key = format!("{} {}", registry.repository(), blob.digest);
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.retain(|_, download| download.strong_count() > 0);
        if let Some(download) = wanted.get(&key).and_then(Weak::upgrade) {
            return download;
        }
        let download = Arc::new(Download {
            registry: registry.clone(),
            blob: blob.clone(),
            path,
            received: Arc::default(),
            turns: self.turns.clone(),
            state: watch::Sender::new(State::default()),
            task: Mutex::new(None),
        });
        wanted.insert(key, Arc::downgrade(&download));
        download
    }
}

impl Download {
    /// Begins it, once.
    pub fn begin(self: &Arc<Self>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_none() {
            let (registry, blob, path) =
                (self.registry.clone(), self.blob.clone(), self.path.clone());
            let (turns, state) = (self.turns.clone(), self.state.clone());
            let received = self.received.clone();
            // It holds none of `self`: letting go of the last reference ends it.
            let running = tokio::spawn(async move {
                let result = match turns.acquire().await {
                    Ok(_turn) => {
                        let transfer = Transfer::new(&registry, &blob, path, &received, &state);
                        transfer.run().await
                    }
                    Err(_) => Err(registry.failed("the server is ending")),
                };
                state.send_modify(|state| state.outcome = Some(result.map_err(Arc::new)));
            });
            *task = Some(running.abort_handle());
        }
    }

    /// How many bytes have come so far.
    pub fn received(&self) -> Arc<AtomicU64> {
        self.received.clone()
    }

    /// Begins it if need be, and reads the blob as it arrives, on a thread that may wait. The end comes only when all
    /// of it has been checked.
    pub fn read(self: &Arc<Self>, runtime: &Handle) -> Reader {
        self.begin();
        let state = self.state.subscribe();
        let begun_anew = state.borrow().begun_anew;
        Reader {
            download: self.clone(),
            runtime: runtime.clone(),
            state,
            begun_anew,
            file: None,
            at: 0,
        }
    }

    /// Begins it if need be, and reads a small blob whole.
    ///
    /// # Errors
    /// As [`Download::ended`], and those of reading the file.
    pub async fn bytes(self: &Arc<Self>) -> Result<Vec<u8>, Error> {
        self.begin();
        self.ended().await?;
        let read = tokio::fs::read(&self.path).await;
        read.map_err(Error::io("read", &self.path))
    }

    /// Waits for the end; how often it began anew.
    ///
    /// # Errors
    /// Why it couldn't be fetched.
    pub async fn ended(&self) -> Result<u32, Error> {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| state.outcome.is_some()).await;
        let ended = ended.map_err(|error| self.failed(&error))?;
        match &ended.outcome {
            Some(Err(error)) => Err(self.failed(error)),
            _ => Ok(ended.begun_anew),
        }
    }

    fn failed(&self, why: &dyn std::fmt::Display) -> Error {
        self.registry
            .failed(format!("fetch {}: {why}", self.blob.digest))
    }
}

/// A blob that is read while it arrives.
pub struct Reader {
    download: Arc<Download>,
    runtime: Handle,
    state: watch::Receiver<State>,
    begun_anew: u32,
    file: Option<File>,
    at: u64,
}

impl Reader {
    /// How often the download had begun anew when this began to read.
    pub fn begun_anew(&self) -> u32 {
        self.begun_anew
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let (written, whole) = {
                let state = self.state.borrow_and_update();
                if let Some(Err(error)) = &state.outcome {
                    return Err(io::Error::other(self.download.failed(error)));
                }
                if state.begun_anew != self.begun_anew {
                    return Err(io::Error::other("its download began anew"));
                }
                (state.written, state.outcome.is_some())
            };
            let there = written.saturating_sub(self.at);
            if there > 0 {
                let file = match &self.file {
                    Some(file) => file,
                    None => self.file.insert(File::open(&self.download.path)?),
                };
                let room = buffer
                    .len()
                    .min(usize::try_from(there).unwrap_or(usize::MAX));
                let n = file.read_at(buffer.get_mut(..room).unwrap_or_default(), self.at)?;
                self.at += n as u64;
                return Ok(n);
            }
            if whole {
                return Ok(0);
            }
            let changed = self.runtime.block_on(self.state.changed());
            changed.map_err(io::Error::other)?;
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(task) = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task.abort();
        }
        // Best effort: the next start removes what stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The work of one download.
struct Transfer<'a> {
    registry: &'a Registry,
    blob: &'a Descriptor,
    path: PathBuf,
    hasher: Sha256,
    count: u64,
    /// The count, for who watches.
    received: &'a AtomicU64,
    state: &'a watch::Sender<State>,
}

/// Why a transfer stopped.
enum Stop {
    /// It may go on where it was.
    Broken(Error),
    /// What came isn't what was asked for: this host isn't asked again.
    Wrong(Error),
}

impl<'a> Transfer<'a> {
    fn new(
        registry: &'a Registry,
        blob: &'a Descriptor,
        path: PathBuf,
        received: &'a AtomicU64,
        state: &'a watch::Sender<State>,
    ) -> Self {
        Self {
            registry,
            blob,
            path,
            hasher: Sha256::new(),
            count: 0,
            received,
            state,
        }
    }

    async fn run(mut self) -> Result<(), Error> {
        let (mut skip, mut resumes, mut wait) = (0, 0, BACKOFF);
        loop {
            let before = self.count;
            match self.transfer(skip).await {
                Ok(()) => return Ok(()),
                Err(Stop::Wrong(_)) if skip + 1 < self.registry.hosts() => {
                    skip += 1;
                    self.restart();
                }
                Err(Stop::Broken(_)) if resumes < RESUMES || self.count > before => {
                    // As long as something comes, it goes on.
                    resumes = if self.count > before { 0 } else { resumes + 1 };
                    tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.5))).await;
                    wait = if self.count > before {
                        BACKOFF
                    } else {
                        wait * 2
                    };
                }
                Err(Stop::Wrong(error) | Stop::Broken(error)) => return Err(error),
            }
        }
    }

    fn restart(&mut self) {
        if self.count > 0 {
            self.state.send_modify(|state| {
                state.written = 0;
                state.begun_anew += 1;
            });
        }
        self.hasher = Sha256::new();
        self.count = 0;
    }

    async fn transfer(&mut self, skip: usize) -> Result<(), Stop> {
        // Hosts have been asked several times here already: what they refuse, they refuse.
        let answer = self
            .registry
            .blob(&self.blob.digest, self.count, skip)
            .await
            .map_err(Stop::Wrong)?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            // It begins at the beginning, asked to or not.
            self.restart();
        }
        let mut file = Some(self.open().map_err(|error| self.unwritten(error))?);
        let mut body = answer.into_body();
        let mut piece = Vec::new();
        loop {
            let ended = match tokio::time::timeout(SILENCE, body.frame()).await {
                Ok(None) => None,
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        piece.extend_from_slice(&data);
                    }
                    if piece.len() < PIECE_BYTES {
                        continue;
                    }
                    self.write(&mut file, &mut piece).await?;
                    continue;
                }
                Ok(Some(Err(error))) => Some(error.to_string()),
                Err(_) => Some("the server sends nothing".into()),
            };
            self.write(&mut file, &mut piece).await?;
            if let Some(why) = ended {
                return Err(self.broken(&why));
            }
            break;
        }
        if self.count < self.blob.size {
            let why = format!("it ended after {} of {} bytes", self.count, self.blob.size);
            return Err(self.broken(&why));
        }
        let found = Digest::from_hasher(self.hasher.clone());
        if found != self.blob.digest {
            let wanted = self.blob.digest.clone();
            return Err(Stop::Wrong(Error::Mismatch {
                what: "a blob".into(),
                wanted,
                found,
            }));
        }
        Ok(())
    }

    /// The file, at the byte that comes next.
    fn open(&self) -> io::Result<File> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)?;
        file.set_len(self.count)?;
        file.seek(SeekFrom::End(0))?;
        Ok(file)
    }

    /// Writes and hashes what has come, off the async threads, and tells the readers.
    async fn write(&mut self, file: &mut Option<File>, piece: &mut Vec<u8>) -> Result<(), Stop> {
        let count = self.count + piece.len() as u64;
        if count > self.blob.size {
            let why = format!(
                "blob {} is larger than the {} bytes that its manifest says",
                self.blob.digest, self.blob.size
            );
            return Err(Stop::Wrong(self.registry.failed(why)));
        }
        let Some(mut open) = file.take().filter(|_| !piece.is_empty()) else {
            return Ok(());
        };
        let (mut hasher, bytes) = (std::mem::take(&mut self.hasher), std::mem::take(piece));
        let written = tokio::task::spawn_blocking(move || {
            hasher.update(&bytes);
            open.write_all(&bytes).map(|()| (open, hasher, bytes))
        });
        let written = written.await.map_err(io::Error::other).flatten();
        let (open, hasher, mut bytes) = written.map_err(|error| self.unwritten(error))?;
        bytes.clear();
        (*file, self.hasher, *piece) = (Some(open), hasher, bytes);
        self.count = count;
        self.received.store(count, Ordering::Relaxed);
        self.state.send_modify(|state| state.written = count);
        Ok(())
    }

    fn unwritten(&self, error: io::Error) -> Stop {
        Stop::Wrong(Error::io("write", &self.path)(error))
    }

    fn broken(&self, why: &str) -> Stop {
        let blob = &self.blob.digest;
        Stop::Broken(self.registry.failed(format!("fetch {blob}: {why}")))
    }
}
