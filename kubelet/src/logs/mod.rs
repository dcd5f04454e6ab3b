//! Container logs in CRI format: reading, following, rotating.

pub mod entry;
mod follow;
mod read;
mod rotate;

pub use follow::{Follow, follow};
pub use read::{LogOptions, Position, ReadError, Reader};
pub use rotate::{rotate_logs, rotated};
