//! The Container Runtime Interface v1 (Kubernetes 1.36): messages, client and server stubs, generated from
//! `proto/runtime.proto`.

/// Package `runtime.v1`.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// Package `orlop.images.v1`: bringing images in from files; see `proto/images.proto`.
#[allow(clippy::all, missing_docs)]
pub mod images {
    tonic::include_proto!("orlop.images.v1");
}

/// The largest message that either side accepts, as upstream clients set it.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
