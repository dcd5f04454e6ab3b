//! The image store: documents by digest, one unpacked copy of each layer, names.
//!
//! Below the store's root, `blobs/sha256/` holds manifests and configurations by their digest, `layers/<n>` the
//! unpacked layers, ready to be stacked by overlayfs, and `ingest/` what is on its way in. What exists is what
//! the journal says; anything else in those folders is a leftover and goes at the next start. A layer's compressed
//! blob isn't kept; `recipes/<n>` is what is needed to write its archive again. Layers are known by their chain id, since what a folder's attributes are may depend on the
//! layers below.
//!
//! [`Store::import`] takes an OCI archive or a docker archive, [`Store::import_layout`] an OCI layout's folder;
//! [`Store::export`] writes one, and [`Store::verify`] proves what is there.

mod archive;
mod digest;
mod document;
mod error;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod import;
mod layer;
mod pull;
mod recipe;
mod reference;
#[cfg(test)]
mod stack_tests;
mod store;
#[cfg(test)]
mod tests;
mod unpack;
mod verify;

pub use digest::{Digest, InvalidDigest};
pub use document::{Execution, ImageConfig, Platform};
pub use error::Error;
pub use import::Imported;
pub use layer::Hold;
pub use pull::{Credentials, InvalidProxy, LayerProgress, Progress, Proxies, Puller};
pub use reference::{InvalidReference, Reference, Version};
pub use store::{FsUsage, ImageRecord, Store};
pub use unpack::Limits;
pub use verify::Verified;
