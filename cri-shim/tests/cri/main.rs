//! The CRI server as a process of its own, driven as a kubelet drives it: real containers, a real network, and the
//! question what is left when all is removed.
//!
//! As root. Each test has its own directory, its own network namespace as the pods' host, and its own cgroup.

#[path = "../shared/archive.rs"]
mod archive;
mod devices;
mod images;
mod lifecycle;
mod logs;
mod node;
mod recovery;
mod user_namespaces;
