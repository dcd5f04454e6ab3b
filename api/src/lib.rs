//! Kubernetes semantics without I/O: what a quantity, a selector, a name or a patch means.
//!
//! Everything here is a pure function of its arguments. The API server, the scheduler, the controllers and the
//! kubelet share it, so that a pod's request or a label selector means the same on both sides of the API.

pub mod apply;
pub mod field;
pub mod names;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod taints;
pub mod time;
