//! The kernel behind safe types.
//!
//! The only crate of the workspace with `unsafe`: each block states the invariant that makes it sound. A module is a
//! subject of the kernel's (mounts, cgroups, netlink), its functions are one system call or the few that belong
//! together, and its error names the system call, the object and the errno. Nothing here knows about containers,
//! pods or Kubernetes.

mod error;

pub mod conntrack;
pub mod cgroup;
pub mod namespace;
pub mod netlink;
pub mod nftables;
pub mod pidfd;
pub mod signal;
pub mod socket;

pub use error::{Error, Result, describe_errno};
