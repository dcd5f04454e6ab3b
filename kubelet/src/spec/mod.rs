//! From a pod's specification to CRI messages: pure functions of the pod, the node and the objects it refers to.

pub mod container;
pub mod dns;
pub mod env;
pub mod expand;
pub mod hosts;
pub mod sandbox;
pub mod security;
