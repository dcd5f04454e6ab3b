//! Intent before effect: the record store that a node's component keeps, one SQLite file each.
//!
//! A component writes what it is about to do before it does it, and what came of it afterwards. At its next
//! start it compares the records with the kernel and finishes or undoes what was half done. A record is
//! addressed by a kind and a key, and its body is JSON. The file is in WAL mode with `synchronous = NORMAL`:
//! `kill -9` loses nothing that was acknowledged, a power cut may lose the last moments.
//!
//! Facts that die with the kernel (a namespace, a process) are written by [`Records::put_for_this_boot`] and are
//! gone at the first open after a reboot. What has to be undone after a reboot (an IP lease) is written by
//! [`Records::put`].

mod records;
#[cfg(test)]
mod tests;

pub use records::Records;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

/// Marks the file as one of ours: "orlJ".
const APPLICATION_ID: i64 = 0x6f72_6c4a;
/// The layout of the table itself, apart from the records in it.
const LAYOUT: i64 = 1;
/// How long an open waits for a predecessor that is just ending.
const BUSY: Duration = Duration::from_millis(500);

/// What went wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file couldn't be made or opened.
    #[error("open journal {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    /// The boot id couldn't be read.
    #[error("read the boot id from {path}: {source}")]
    BootId { path: PathBuf, source: io::Error },
    /// Another process has the journal open.
    #[error(
        "open journal {path}: another process is using it; stop that one or choose another --root"
    )]
    InUse { path: PathBuf },
    /// The file is damaged, or isn't a journal.
    #[error(
        "journal {path} is damaged or not a journal ({detail}); move it away to start without its records"
    )]
    Corrupt { path: PathBuf, detail: String },
    /// The records were written by another version of the program.
    #[error(
        "journal {path} holds records of version {found}, this program reads version {wanted}; {advice}"
    )]
    Version {
        path: PathBuf,
        found: i64,
        wanted: i64,
        advice: &'static str,
    },
    /// A record's body couldn't be written as JSON, or read back as the type that was asked for.
    #[error("{operation} journal record {kind}/{key}: {source}")]
    Body {
        operation: &'static str,
        kind: String,
        key: String,
        source: serde_json::Error,
    },
    /// The engine refused an operation (disk full, I/O error).
    #[error("{operation} in journal {path}: {source}")]
    Engine {
        operation: &'static str,
        path: PathBuf,
        source: rusqlite::Error,
    },
}

/// A component's journal. Cheap to share behind an `Arc`; operations are serialised.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    boot_id: String,
    connection: Mutex<Connection>,
}

impl Journal {
    /// Opens the journal at `path`, making it (mode 0600) when it isn't there. `schema_version` is the version
    /// of the component's records, from 1 up.
    ///
    /// Records of an earlier boot that were tied to it are deleted here.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process holds it, [`Error::Corrupt`] when it can't be read,
    /// [`Error::Version`] when its records are of another version.
    pub fn open(path: impl AsRef<Path>, schema_version: u32) -> Result<Self, Error> {
        let boot_id_path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot_id = std::fs::read_to_string(boot_id_path).map_err(|source| Error::BootId {
            path: boot_id_path.into(),
            source,
        })?;
        Self::open_in_boot(path.as_ref(), schema_version, boot_id.trim())
    }

    fn open_in_boot(path: &Path, schema_version: u32, boot_id: &str) -> Result<Self, Error> {
        // SQLite gives the WAL the main file's mode, so that is settled before SQLite sees it.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|source| Error::Open {
                path: path.into(),
                source,
            })?;
        let at = |operation| move |source| Error::from_engine(operation, path, source);
        let mut connection = Connection::open(path).map_err(at("open"))?;
        connection.busy_timeout(BUSY).map_err(at("open"))?;
        // One process owns a journal. The exclusive lock says so, and spares WAL its shared-memory file.
        connection
            .pragma_update(None, "locking_mode", "EXCLUSIVE")
            .map_err(at("lock"))?;
        let id: i64 = connection
            .pragma_query_value(None, "application_id", |row| row.get(0))
            .map_err(at("open"))?;
        let layout: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(at("open"))?;
        match (id, layout) {
            (0, 0) | (APPLICATION_ID, LAYOUT) => {}
            (APPLICATION_ID, found) => {
                return Err(Error::version(path, found, LAYOUT));
            }
            _ => {
                let detail = format!("application id {id:#x}");
                return Err(Error::Corrupt {
                    path: path.into(),
                    detail,
                });
            }
        }
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(at("set up"))?;
        connection
            .pragma_update(None, "synchronous", "NORMAL")
            .map_err(at("set up"))?;
        let tx = connection.transaction().map_err(at("set up"))?;
        tx.execute_batch(
            "CREATE TABLE IF NOT EXISTS records (
                kind TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, boot TEXT, body TEXT NOT NULL,
                PRIMARY KEY (kind, key)) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS schema (version INTEGER NOT NULL);",
        )
        .map_err(at("set up"))?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)
            .map_err(at("set up"))?;
        tx.pragma_update(None, "user_version", LAYOUT)
            .map_err(at("set up"))?;
        let wanted = i64::from(schema_version);
        let found: Option<i64> = tx
            .query_row("SELECT max(version) FROM schema", [], |row| row.get(0))
            .map_err(at("set up"))?;
        match found {
            None => {
                tx.execute("INSERT INTO schema VALUES (?1)", [wanted])
                    .map_err(at("set up"))?;
            }
            Some(found) if found == wanted => {}
            Some(found) => return Err(Error::version(path, found, wanted)),
        }
        tx.execute(
            "DELETE FROM records WHERE boot IS NOT NULL AND boot <> ?1",
            [boot_id],
        )
        .map_err(at("forget an earlier boot"))?;
        tx.commit().map_err(at("set up"))?;
        Ok(Self {
            path: path.into(),
            boot_id: boot_id.into(),
            connection: Mutex::new(connection),
        })
    }

    /// Where the journal is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `body` as one transaction: all of its writes, or, when it returns an error, none.
    ///
    /// # Errors
    /// Whatever `body` returns, and [`Error::Engine`] when the commit fails.
    pub fn transaction<T, E: From<Error>>(
        &self,
        body: impl FnOnce(&Records<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.connection();
        let at = |source| Error::from_engine("commit", &self.path, source);
        let tx = connection.transaction().map_err(at)?;
        let value = body(&Records {
            connection: &tx,
            journal: self,
        })?;
        tx.commit().map_err(at)?;
        Ok(value)
    }

    /// One operation, committed when it returns.
    pub(crate) fn with<T>(
        &self,
        body: impl FnOnce(&Records<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let connection = self.connection();
        body(&Records {
            connection: &connection,
            journal: self,
        })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in a transaction's body rolls it back, so the connection is sound.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Error {
    fn version(path: &Path, found: i64, wanted: i64) -> Self {
        let advice = if found > wanted {
            "run the newer program"
        } else {
            "remove the node's pods with the older program, or move the file away"
        };
        Self::Version {
            path: path.into(),
            found,
            wanted,
            advice,
        }
    }

    fn from_engine(operation: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::InUse { path },
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Corrupt {
                path,
                detail: source.to_string(),
            },
            _ => Self::Engine {
                operation,
                path,
                source,
            },
        }
    }
}
