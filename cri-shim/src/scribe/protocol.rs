//! What the keeper and the scribe say to each other.

use crate::keeper::IoSpec;
use serde::{Deserialize, Serialize};

/// From the keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToScribe {
    /// The first message. Descriptors: the file of the [journal](super::journal), the directory with a directory for
    /// each container, and the mount namespace in which log files are.
    Start,
    /// Read and log a container. Descriptors: those of `Streams::duplicates`.
    Take { id: String, io: IoSpec },
    /// Its process has ended: write what it printed, then say so.
    Drain { id: String },
    /// Forget it.
    Drop { id: String },
    /// Close its log file and open the path anew.
    Reopen { id: String, n: u64 },
    /// Descriptor: the scribe's end of an attached client's socket.
    Attach { id: String },
}

/// To the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromScribe {
    Drained {
        id: String,
    },
    Reopened {
        n: u64,
        error: Option<String>,
    },
    /// The one client whose end was to end the container's input has ended.
    StdinClosed {
        id: String,
    },
    Log {
        message: String,
    },
}
