//! What the server knows: sandboxes and containers, each as a record that never changes and a status that does, in
//! the journal and in memory; the operations that are running; and the log of what happened.

mod container;
mod events;
mod operations;
mod sandbox;
mod store;

pub use container::{Container, ContainerRecord, ContainerStatus, ImageMount, Launched};
pub use events::Events;
pub use operations::Operations;
pub use sandbox::{Network, Phase, Sandbox, SandboxRecord, SandboxStatus};
pub use store::State;

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970, UTC, as CRI writes times.
pub fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A new id: 64 hex digits, as every CRI client expects.
pub fn new_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}
