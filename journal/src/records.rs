//! Reading and writing records, alone or inside a transaction.

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Journal};

/// The version of a record's envelope, kept beside each body.
const RECORD_VERSION: i64 = 1;

/// The records, as seen inside one transaction.
pub struct Records<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) journal: &'a Journal,
}

impl Records<'_> {
    /// Writes a record that stays true over a reboot, in place of one of the same kind and key.
    ///
    /// # Errors
    /// [`Error::Body`] when `body` can't be JSON, [`Error::Engine`] when the write fails.
    pub fn put(&self, kind: &str, key: &str, body: &impl Serialize) -> Result<(), Error> {
        self.write(kind, key, None, body)
    }

    /// Writes a record that is void after a reboot.
    ///
    /// # Errors
    /// As [`Records::put`].
    pub fn put_for_this_boot(
        &self,
        kind: &str,
        key: &str,
        body: &impl Serialize,
    ) -> Result<(), Error> {
        self.write(kind, key, Some(&self.journal.boot_id), body)
    }

    /// Reads a record; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Body`] when it isn't a `T`, [`Error::Engine`] when the read fails.
    pub fn get<T: DeserializeOwned>(&self, kind: &str, key: &str) -> Result<Option<T>, Error> {
        let body: Option<String> = self
            .connection
            .prepare_cached("SELECT body FROM records WHERE kind = ?1 AND key = ?2")
            .and_then(|mut statement| {
                statement
                    .query_row([kind, key], |row| row.get(0))
                    .optional()
            })
            .map_err(|source| self.failed("read", source))?;
        body.map(|body| parse(kind, key, &body)).transpose()
    }

    /// Reads all records of a kind, in the order of their keys.
    ///
    /// # Errors
    /// As [`Records::get`]; the first record that isn't a `T` is named.
    pub fn list<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<(String, T)>, Error> {
        let failed = |source| self.failed("list", source);
        let mut statement = self
            .connection
            .prepare_cached("SELECT key, body FROM records WHERE kind = ?1 ORDER BY key")
            .map_err(failed)?;
        let rows = statement
            .query_map([kind], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            })
            .map_err(failed)?;
        let mut found = Vec::new();
        for row in rows {
            let (key, body) = row.map_err(failed)?;
            let value = parse(kind, &key, &body)?;
            found.push((key, value));
        }
        Ok(found)
    }

    /// Deletes a record and tells whether it was there.
    ///
    /// # Errors
    /// [`Error::Engine`] when the write fails.
    pub fn delete(&self, kind: &str, key: &str) -> Result<bool, Error> {
        self.connection
            .prepare_cached("DELETE FROM records WHERE kind = ?1 AND key = ?2")
            .and_then(|mut statement| statement.execute([kind, key]))
            .map(|count| count > 0)
            .map_err(|source| self.failed("delete", source))
    }

    fn write(
        &self,
        kind: &str,
        key: &str,
        boot: Option<&str>,
        body: &impl Serialize,
    ) -> Result<(), Error> {
        let body = serde_json::to_string(body).map_err(|source| Error::Body {
            operation: "write",
            kind: kind.into(),
            key: key.into(),
            source,
        })?;
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2, ?3, ?4, ?5)")
            .and_then(|mut statement| {
                statement.execute(params![kind, key, RECORD_VERSION, boot, body])
            })
            .map(drop)
            .map_err(|source| self.failed("write", source))
    }

    fn failed(&self, operation: &'static str, source: rusqlite::Error) -> Error {
        Error::from_engine(operation, &self.journal.path, source)
    }
}

fn parse<T: DeserializeOwned>(kind: &str, key: &str, body: &str) -> Result<T, Error> {
    serde_json::from_str(body).map_err(|source| Error::Body {
        operation: "read",
        kind: kind.into(),
        key: key.into(),
        source,
    })
}

/// The same operations outside a transaction: each is durable when it returns.
impl Journal {
    /// See [`Records::put`].
    ///
    /// # Errors
    /// As [`Records::put`].
    pub fn put(&self, kind: &str, key: &str, body: &impl Serialize) -> Result<(), Error> {
        self.with(|records| records.put(kind, key, body))
    }

    /// See [`Records::put_for_this_boot`].
    ///
    /// # Errors
    /// As [`Records::put`].
    pub fn put_for_this_boot(
        &self,
        kind: &str,
        key: &str,
        body: &impl Serialize,
    ) -> Result<(), Error> {
        self.with(|records| records.put_for_this_boot(kind, key, body))
    }

    /// See [`Records::get`].
    ///
    /// # Errors
    /// As [`Records::get`].
    pub fn get<T: DeserializeOwned>(&self, kind: &str, key: &str) -> Result<Option<T>, Error> {
        self.with(|records| records.get(kind, key))
    }

    /// See [`Records::list`].
    ///
    /// # Errors
    /// As [`Records::list`].
    pub fn list<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<(String, T)>, Error> {
        self.with(|records| records.list(kind))
    }

    /// See [`Records::delete`].
    ///
    /// # Errors
    /// As [`Records::delete`].
    pub fn delete(&self, kind: &str, key: &str) -> Result<bool, Error> {
        self.with(|records| records.delete(kind, key))
    }
}
