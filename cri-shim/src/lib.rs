//! The CRI server: RuntimeService, ImageService, streaming, images, CNI chains, and the keeper that holds the
//! containers.

pub mod cni;
pub mod image;
pub mod keeper;
pub mod scribe;
pub mod streaming;
mod watch;
