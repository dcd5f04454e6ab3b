//! A whole kubelet between a real API server and a runtime that only says that it runs containers.

#[path = "node/cluster.rs"]
mod cluster;
#[path = "node/fake_cri.rs"]
mod fake_cri;
#[path = "node/lifecycle.rs"]
mod lifecycle;
#[path = "node/logs.rs"]
mod logs;
#[path = "node/restart.rs"]
mod restart;
