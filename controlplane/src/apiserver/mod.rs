//! The Kubernetes API: what kube-apiserver does, over the [`store`](crate::store).
//!
//! A request comes in by [`listen`] or from a client in the same process, and goes the same way: [`route`] says what it
//! asks for, [`auth`] who asks and whether they may, [`rest`] does it to a resource of [`cache`], with what
//! [`admission`] adds, by the rules of its [`kind`]; what it becomes goes to the store, and comes back through the
//! cache to every watch.

mod admission;
mod api;
mod auth;
mod backend;
mod bootstrap;
mod cache;
mod config;
mod discovery;
mod expiry;
mod failure;
pub mod kind;
pub mod kinds;
mod kubelet;
mod listen;
mod managed;
mod negotiate;
mod node_restriction;
mod object;
pub mod openapi;
mod paths;
pub mod protobuf;
mod query;
mod relay;
mod reply;
mod rest;
mod reviews;
mod roles;
mod route;
mod server;
mod services;
mod table;
mod tls;

pub use config::Config;
pub use server::{Server, StartError};
