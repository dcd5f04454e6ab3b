//! What can go wrong with images.

use std::io;
use std::path::PathBuf;

use super::digest::{Digest, InvalidDigest};
use super::reference::InvalidReference;

/// An image operation that failed. Each names what it was about, and the edge turns it into a gRPC status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// No image has that name or id.
    #[error("image {0:?} is not in the store")]
    NotFound(String),
    /// A name begins more than one image's id.
    #[error("image id {0:?} is ambiguous: it begins several ids")]
    Ambiguous(String),
    #[error("{operation} {path}: {source}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The archive isn't an image, or lacks a part of one.
    #[error("import image: {0}")]
    Archive(String),
    #[error("read {what}: {source}")]
    Json {
        what: String,
        source: serde_json::Error,
    },
    /// The content isn't what its digest promised.
    #[error("{what} has the digest {found}, not {wanted}")]
    Mismatch {
        what: String,
        wanted: Digest,
        found: Digest,
    },
    /// No manifest in the index is for this machine.
    #[error("image has no manifest for {wanted} (it has {found})")]
    Platform { wanted: String, found: String },
    #[error("layer {layer}: {source}")]
    Layer {
        layer: Digest,
        source: super::unpack::Error,
    },
    /// A name by digest is the content's, not ours to give.
    #[error("image name {0:?}: an image is tagged with a name and a tag, not a digest")]
    Tag(String),
    /// A layer can't be written as the archive that it came as.
    #[error("export layer {layer}: {why}")]
    Export { layer: Digest, why: String },
    /// A registry refused, failed, or couldn't be reached.
    #[error("pull {image}: {why}")]
    Pull { image: String, why: String },
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}
