//! What the keeper refuses, and what can go wrong on the way to it.

use oci_runtime::LaunchError;
use serde::{Deserialize, Serialize};

/// A request to the keeper failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeeperError {
    /// The container's (or exec's) process could not be started; nothing of it is left.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The keeper holds no container or exec of this id.
    #[error("{id}: not held by the keeper")]
    NotFound {
        /// The container's or exec's id.
        id: String,
    },
    /// The request needs a process that runs, and this one has ended; or the other way round.
    #[error("{id}: {reason}")]
    WrongState {
        /// The container's or exec's id.
        id: String,
        /// What stands in the way.
        reason: String,
    },
    /// The keeper understood the request and failed to carry it out.
    #[error("keeper: {message}")]
    Failed {
        /// Operation, object and cause.
        message: String,
    },
    /// The connection ended before the answer came; whether the request was carried out is unknown. The client
    /// reconnects by itself: ask again (every request is idempotent), or look with `list`.
    #[error("keeper: connection lost before the answer")]
    Disconnected,
    /// The keeper's program could not be started.
    #[error("start keeper {program}: {cause}")]
    Spawn {
        /// The program.
        program: String,
        /// Why not.
        cause: String,
    },
    /// A system call of the client's failed.
    #[error(transparent)]
    Kernel(#[from] linux::Error),
}

/// As [`KeeperError`], on the wire: what the keeper itself can answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    Launch(LaunchError),
    NotFound { id: String },
    WrongState { id: String, reason: String },
    Failed { message: String },
}

impl Refusal {
    pub(crate) fn not_found(id: &str) -> Self {
        Refusal::NotFound { id: id.to_owned() }
    }

    pub(crate) fn state(id: &str, reason: &str) -> Self {
        Refusal::WrongState {
            id: id.to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Refusal::Failed {
            message: message.into(),
        }
    }
}

impl From<linux::Error> for Refusal {
    fn from(error: linux::Error) -> Self {
        Refusal::failed(error.to_string())
    }
}

impl From<LaunchError> for Refusal {
    fn from(error: LaunchError) -> Self {
        Refusal::Launch(error)
    }
}

impl From<Refusal> for KeeperError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Launch(error) => KeeperError::Launch(error),
            Refusal::NotFound { id } => KeeperError::NotFound { id },
            Refusal::WrongState { id, reason } => KeeperError::WrongState { id, reason },
            Refusal::Failed { message } => KeeperError::Failed { message },
        }
    }
}
