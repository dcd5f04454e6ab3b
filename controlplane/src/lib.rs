//! The control plane of one node or a small cluster: what kube-apiserver, kube-scheduler,
//! kube-controller-manager and etcd do, in one process.
//!
//! [`store`] keeps the objects, [`apiserver`] serves them as the Kubernetes API and is the only writer of the
//! store; [`scheduler`] and [`controllers`] are clients of that API and of nothing else. [`pki`] makes the
//! certificates and keys that a cluster needs, at its first start.

pub mod apiserver;
pub mod controllers;
pub mod pki;
pub mod scheduler;
pub mod store;
