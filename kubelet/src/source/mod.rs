//! Where pods come from: the API server, and a folder on this node. A static pod has a mirror in the API, so that
//! it can be seen there.

mod api;
mod files;
mod manifest;
mod mirror;

pub use api::follow_api;
pub use files::follow_files;
pub use mirror::Mirrors;
