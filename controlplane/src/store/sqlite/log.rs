//! The tables: one row for each write, kept until it is compacted.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::{Expects, OpenError, Write};
use crate::store::{Error, Event, ListOptions, Listing, Record, Result, Revision, keys_under};

const SCHEMA: i64 = 1;

const CREATE_TABLES: &str = "
    CREATE TABLE IF NOT EXISTS log (
        revision INTEGER PRIMARY KEY,
        key      TEXT NOT NULL,
        created  INTEGER NOT NULL,
        deleted  INTEGER NOT NULL,
        value    BLOB NOT NULL
    );
    CREATE UNIQUE INDEX IF NOT EXISTS log_key ON log (key, revision);
    CREATE TABLE IF NOT EXISTS compacted (revision INTEGER NOT NULL);
    INSERT INTO compacted SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM compacted);
";

// With MAX, SQLite takes the other columns from the row that has the maximum; HAVING then sees that row too.
const LIST: &str = "SELECT key, value, created, MAX(revision), deleted FROM log
    WHERE key >= ?1 AND key < ?2 AND revision <= ?3
    GROUP BY key HAVING deleted = 0 ORDER BY key LIMIT ?4";
const COUNT: &str = "SELECT COUNT(*) FROM (SELECT deleted, MAX(revision) FROM log
    WHERE key >= ?1 AND key < ?2 AND revision <= ?3
    GROUP BY key HAVING deleted = 0)";
const LATEST: &str = "SELECT key, value, created, revision, deleted FROM log WHERE key = ?1 ORDER BY revision DESC LIMIT 1";
// The pluses keep SQLite from going by the index of keys, which every key of the API would match.
const SINCE: &str = "SELECT key, value, created, revision, deleted FROM log
    WHERE revision > ?1 AND +key >= ?2 AND +key < ?3 ORDER BY revision";
// Only what was written since the last compaction can have made older rows superfluous.
const DROP_OVERWRITTEN: &str = "DELETE FROM log WHERE revision IN (
        SELECT older.revision FROM log AS newer JOIN log AS older
        ON older.key = newer.key AND older.revision < newer.revision
        WHERE newer.revision > ?1 AND newer.revision <= ?2)";
const DROP_DELETED: &str = "DELETE FROM log WHERE revision > ?1 AND revision <= ?2 AND deleted = 1";

pub(super) struct Log {
    connection: Connection,
    newest: Revision,
    oldest: Revision,
}

impl Log {
    pub(super) fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        // SQLite gives the file's mode to its journal too.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| OpenError::Create {
                path: path.into(),
                source,
            })?;
        Self::open_file(path).map_err(|source| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                OpenError::Busy { path: path.into() }
            }
            _ => OpenError::Sqlite {
                path: path.into(),
                source,
            },
        })?
    }

    #[allow(clippy::type_complexity)]
    fn open_file(path: &Path) -> rusqlite::Result<std::result::Result<Self, OpenError>> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::ZERO)?;
        // This one first: it holds only for a file that has no page yet.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        // Exclusive: a second server on the same file is refused, and no shared memory is needed.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Objects are cached by the API server, not here. In KiB.
        connection.pragma_update(None, "cache_size", -1024)?;
        connection.set_prepared_statement_cache_capacity(16);
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found != 0 && found != SCHEMA {
            return Ok(Err(OpenError::Schema {
                path: path.into(),
                found,
                expected: SCHEMA,
            }));
        }
        connection.execute_batch(&format!(
            "BEGIN; {CREATE_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;"
        ))?;
        let oldest =
            revision(connection.query_row("SELECT revision FROM compacted", [], |row| row.get(0))?);
        let last: Option<i64> =
            connection.query_row("SELECT MAX(revision) FROM log", [], |row| row.get(0))?;
        // The row with the highest revision may be a deletion that was compacted away.
        let newest = revision(last.unwrap_or(0)).max(oldest);
        Ok(Ok(Self {
            connection,
            newest,
            oldest,
        }))
    }

    pub(super) fn newest(&self) -> Revision {
        self.newest
    }

    pub(super) fn oldest(&self) -> Revision {
        self.oldest
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Record>> {
        let latest = latest(&self.connection, key)?;
        Ok(latest.filter(|event| !event.deleted).map(record))
    }

    pub(super) fn list(&self, prefix: &str, options: &ListOptions) -> Result<Listing> {
        let at = options.at.unwrap_or(self.newest);
        self.check_readable(at)?;
        let mut keys = keys_under(prefix);
        if let Some(after) = &options.after {
            // The first key that can come after another is that one and a zero byte.
            keys.start = keys.start.max(format!("{after}\0"));
        }
        let mut records = self
            .read(&keys, at, options.limit)
            .map_err(|e| engine("list", &e))?;
        let more = options.limit > 0 && records.len() > options.limit;
        let mut remaining = 0;
        if more {
            records.truncate(options.limit);
            if options.count {
                let after = records.last().map(|r| format!("{}\0", r.key));
                keys.start = after.unwrap_or(keys.start);
                remaining = self
                    .count(&keys, at)
                    .map_err(|e| engine("count keys", &e))?;
            }
        }
        Ok(Listing {
            records,
            revision: at,
            more,
            remaining,
        })
    }

    /// The keys of a range as of `at`: one more than `limit`, all when that is 0.
    fn read(
        &self,
        keys: &Range<String>,
        at: Revision,
        limit: usize,
    ) -> rusqlite::Result<Vec<Record>> {
        let limit = if limit == 0 {
            -1
        } else {
            i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1)
        };
        let mut statement = self.connection.prepare_cached(LIST)?;
        let at = at.0.cast_signed();
        let rows = statement.query_map(params![keys.start, keys.end, at, limit], event)?;
        rows.map(|row| row.map(record)).collect()
    }

    fn count(&self, keys: &Range<String>, at: Revision) -> rusqlite::Result<usize> {
        let mut statement = self.connection.prepare_cached(COUNT)?;
        let at = at.0.cast_signed();
        let count: i64 =
            statement.query_row(params![keys.start, keys.end, at], |row| row.get(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(super) fn since(&self, prefix: &str, after: Revision) -> Result<Vec<Event>> {
        self.check_readable(after)?;
        let keys = keys_under(prefix);
        let read = || -> rusqlite::Result<Vec<Event>> {
            let mut statement = self.connection.prepare_cached(SINCE)?;
            let rows = statement.query_map(params![after.0 as i64, keys.start, keys.end], event)?;
            rows.collect()
        };
        read().map_err(|e| engine("read history", &e))
    }

    pub(super) fn compact(&mut self, to: Revision) -> Result<()> {
        if to <= self.oldest {
            return Ok(());
        }
        self.check_readable(to)?;
        let mut run = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction()?;
            let span = [self.oldest.0.cast_signed(), to.0.cast_signed()];
            transaction.execute(DROP_OVERWRITTEN, span)?;
            transaction.execute(DROP_DELETED, span)?;
            transaction.execute("UPDATE compacted SET revision = ?1", [to.0 as i64])?;
            transaction.commit()?;
            // Each step of it frees one page.
            self.connection
                .pragma_query(None, "incremental_vacuum", |_| Ok(()))?;
            self.connection
                .execute_batch("PRAGMA wal_checkpoint(TRUNCATE);")
        };
        run().map_err(|e| engine("compact", &e))?;
        self.oldest = to;
        Ok(())
    }

    /// Runs `body` in one transaction that is synced at its end. On an error nothing of it holds.
    pub(super) fn transaction(&mut self, body: impl FnOnce(&mut Transaction<'_>)) -> Result<()> {
        let sql = self
            .connection
            .transaction()
            .map_err(|e| engine("begin", &e))?;
        let mut transaction = Transaction {
            sql,
            newest: self.newest,
        };
        body(&mut transaction);
        let newest = transaction.newest;
        if newest == self.newest {
            return Ok(()); // nothing was written; dropping it rolls back
        }
        transaction.sql.commit().map_err(|e| engine("commit", &e))?;
        self.newest = newest;
        Ok(())
    }

    fn check_readable(&self, at: Revision) -> Result<()> {
        if at < self.oldest {
            return Err(Error::Compacted {
                requested: at,
                oldest: self.oldest,
            });
        }
        if at > self.newest {
            return Err(Error::Future {
                requested: at,
                newest: self.newest,
            });
        }
        Ok(())
    }
}

/// Writes that will be committed together.
pub(super) struct Transaction<'a> {
    sql: rusqlite::Transaction<'a>,
    newest: Revision,
}

impl Transaction<'_> {
    /// Makes one write if what it expects holds.
    pub(super) fn apply(&mut self, write: &Write) -> Result<Event> {
        let found = latest(&self.sql, &write.key)?.filter(|event| !event.deleted);
        let revision = Revision(self.newest.0 + 1);
        let created = match (write.expects, &found) {
            (Expects::Absent, None) => revision,
            (Expects::Absent, Some(_)) => {
                return Err(Error::Exists {
                    key: write.key.clone(),
                });
            }
            (Expects::At(expected), Some(found)) if found.revision == expected => found.created,
            (Expects::At(expected), found) => {
                let found = found.as_ref().map(|f| f.revision);
                return Err(Error::Conflict {
                    key: write.key.clone(),
                    expected,
                    found,
                });
            }
        };
        self.sql
            .prepare_cached("INSERT INTO log (revision, key, created, deleted, value) VALUES (?1, ?2, ?3, ?4, ?5)")
            .and_then(|mut insert| {
                insert.execute(params![revision.0 as i64, write.key, created.0 as i64, write.deletes, &write.value[..]])
            })
            .map_err(|e| engine("write", &e))?;
        self.newest = revision;
        Ok(Event {
            key: write.key.as_str().into(),
            value: write.value.clone(),
            created,
            revision,
            deleted: write.deletes,
        })
    }
}

fn latest(connection: &Connection, key: &str) -> Result<Option<Event>> {
    connection
        .prepare_cached(LATEST)
        .and_then(|mut statement| statement.query_row([key], event).optional())
        .map_err(|e| engine("read", &e))
}

/// A row of the columns key, value, created, revision, deleted.
fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        key: row.get_ref(0)?.as_str()?.into(),
        value: Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?),
        created: revision(row.get(2)?),
        revision: revision(row.get(3)?),
        deleted: row.get(4)?,
    })
}

fn record(event: Event) -> Record {
    Record {
        key: event.key,
        value: event.value,
        created: event.created,
        modified: event.revision,
    }
}

fn revision(column: i64) -> Revision {
    Revision(column.cast_unsigned())
}

fn engine(operation: &'static str, error: &rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::Full,
        _ => Error::Engine {
            operation,
            cause: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: &str) -> Write {
        Write {
            key: key.into(),
            value: Bytes::from(vec![b'x'; 4096]),
            expects: Expects::Absent,
            deletes: false,
        }
    }

    fn commit(log: &mut Log, key: &str) -> Result<()> {
        let mut outcome = Ok(());
        log.transaction(|transaction| outcome = transaction.apply(&write(key)).map(drop))
            .and(outcome)
    }

    #[test]
    fn compaction_leaves_one_row_for_each_key_and_gives_pages_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let mut log = Log::open(&path).unwrap();
        commit(&mut log, "/a").unwrap();
        for revision in 1..200 {
            let update = Write {
                expects: Expects::At(Revision(revision)),
                ..write("/a")
            };
            log.transaction(|t| drop(t.apply(&update).unwrap()))
                .unwrap();
        }
        log.compact(log.newest()).unwrap();
        let rows: i64 = log
            .connection
            .query_row("SELECT COUNT(*) FROM log", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 1);
        assert!(std::fs::metadata(&path).unwrap().len() < 100_000);
    }

    #[test]
    fn a_full_disk_is_told_as_such_and_what_was_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(&folder.path().join("store.db")).unwrap();
        log.connection
            .pragma_update(None, "max_page_count", 40)
            .unwrap();
        let mut written = Vec::new();
        let failure = loop {
            let key = format!("/{}", written.len());
            match commit(&mut log, &key) {
                Ok(()) => written.push(key),
                Err(failure) => break failure,
            }
        };
        assert_eq!(failure, Error::Full);
        assert_eq!(log.newest(), Revision(written.len() as u64));
        for key in &written {
            assert!(log.get(key).unwrap().is_some());
        }
        log.connection
            .pragma_update(None, "max_page_count", 1000)
            .unwrap();
        commit(&mut log, "/more").unwrap();
    }
}
