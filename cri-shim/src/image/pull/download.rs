//! Blobs on their way: one download of each at a time, whoever wants it, resumed where it broke off.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;
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

type Outcome = Option<Result<(), Arc<Error>>>;

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
    outcome: watch::Sender<Outcome>,
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
            outcome: watch::Sender::new(None),
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
            let (turns, outcome) = (self.turns.clone(), self.outcome.clone());
            let received = self.received.clone();
            // It holds none of `self`: letting go of the last reference ends it.
            let running = tokio::spawn(async move {
                let result = match turns.acquire().await {
                    Ok(_turn) => Transfer::new(&registry, &blob, path, &received).run().await,
                    Err(_) => Err(registry.failed("the server is ending")),
                };
                outcome.send_replace(Some(result.map_err(Arc::new)));
            });
            *task = Some(running.abort_handle());
        }
    }

    /// How many bytes have come so far.
    pub fn received(&self) -> Arc<AtomicU64> {
        self.received.clone()
    }

    /// Begins it if need be, and returns the blob's file when it is whole and has been checked.
    ///
    /// # Errors
    /// Why it couldn't be fetched.
    pub async fn file(self: Arc<Self>) -> Result<File, Error> {
        self.begin();
        let mut outcome = self.outcome.subscribe();
        let failed = |why: &dyn std::fmt::Display| {
            self.registry
                .failed(format!("fetch {}: {why}", self.blob.digest))
        };
        let found = outcome
            .wait_for(Option::is_some)
            .await
            .map_err(|error| failed(&error))?;
        match found.as_ref() {
            Some(Ok(())) => File::open(&self.path).map_err(Error::io("open", &self.path)),
            Some(Err(error)) => Err(failed(error)),
            None => Err(failed(&"no outcome")),
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
    ) -> Self {
        Self {
            registry,
            blob,
            path,
            hasher: Sha256::new(),
            count: 0,
            received,
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
        let mut file = self
            .open()
            .map_err(|error| Stop::Wrong(Error::io("write", &self.path)(error)))?;
        let mut body = answer.into_body();
        loop {
            let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(self.broken(&mut file, error.to_string()).await);
                }
                Err(_) => {
                    return Err(self
                        .broken(&mut file, "the server sends nothing".into())
                        .await);
                }
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.count += data.len() as u64;
            if self.count > self.blob.size {
                let why = format!(
                    "blob {} is larger than the {} bytes that its manifest says",
                    self.blob.digest, self.blob.size
                );
                return Err(Stop::Wrong(self.registry.failed(why)));
            }
            self.received.store(self.count, Ordering::Relaxed);
            self.hasher.update(&data);
            let written = file.write_all(&data).await;
            written.map_err(|error| Stop::Wrong(Error::io("write", &self.path)(error)))?;
        }
        file.flush()
            .await
            .map_err(|error| Stop::Wrong(Error::io("write", &self.path)(error)))?;
        if self.count < self.blob.size {
            let why = format!("it ended after {} of {} bytes", self.count, self.blob.size);
            return Err(self.broken(&mut file, why).await);
        }
        let found = Digest::from_hasher(self.hasher.clone());
        if found != self.blob.digest {
            let wanted = self.blob.digest.clone();
            return Err(Stop::Wrong(Error::Mismatch {
                what: "a layer's blob".into(),
                wanted,
                found,
            }));
        }
        Ok(())
    }

    /// The file, at the byte that comes next.
    fn open(&self) -> io::Result<tokio::fs::File> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)?;
        file.set_len(self.count)?;
        file.seek(SeekFrom::End(0))?;
        Ok(tokio::fs::File::from_std(file))
    }

    async fn broken(&self, file: &mut tokio::fs::File, why: String) -> Stop {
        // What was written is counted; if it can't be, the digest will tell.
        let _ = file.flush().await;
        Stop::Broken(
            self.registry
                .failed(format!("fetch {}: {why}", self.blob.digest)),
        )
    }
}
