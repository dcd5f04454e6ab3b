//! The kernel behind safe types.
//!
//! The only crate of the workspace with `unsafe`: each block states the invariant that makes it sound. A module is a
//! subject of the kernel's (mounts, cgroups, netlink), its functions are one system call or the few that belong
//! together, and its error names the system call, the object and the errno. Nothing here knows about containers,
//! pods or Kubernetes.

mod entry;
mod error;

pub mod capability;
pub mod cgroup;
pub mod clock;
pub mod conntrack;
pub mod credential;
pub mod features;
pub mod keyring;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod nftables;
pub mod packet;
pub mod path;
pub mod pidfd;
pub mod pidfd_info;
pub mod process;
pub mod procfs;
pub mod rlimit;
pub mod scheduling;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod terminal;

pub use error::{Error, Result, describe_errno};
