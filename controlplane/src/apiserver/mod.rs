//! The Kubernetes API: what kube-apiserver does, over the [`store`](crate::store).

mod config;
mod server;

pub use config::Config;
pub use server::{Server, StartError};
