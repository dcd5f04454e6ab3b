//! The operations, one a file, and the gRPC services that they are the methods of.

mod cdi;
mod create_container;
mod devices;
mod error;
mod exec;
mod exits;
mod image_files;
mod images;
mod list;
mod metrics;
mod recover;
mod remove_container;
mod remove_pod_sandbox;
mod rpc;
mod run_pod_sandbox;
mod start_container;
mod stats;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod update_resources;
mod update_runtime_config;

pub use error::Error;
pub use image_files::ImageFiles;
pub use rpc::Service;
