//! The CRI server: RuntimeService, ImageService, streaming, images, CNI chains, and the keeper that holds the
//! containers.

pub mod cni;
mod config;
pub mod image;
pub mod keeper;
mod metrics;
mod runtime;
mod sandbox;
pub mod scribe;
mod server;
mod service;
mod spec;
mod state;
pub mod streaming;
mod watch;

pub use config::Config;
pub use server::{Error, run};
