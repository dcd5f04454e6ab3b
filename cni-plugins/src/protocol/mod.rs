//! The CNI exec protocol: requests, results and errors, in every version (CNI 1.1 §2 and §5).

mod error;
mod request;
mod result;
mod version;

#[cfg(test)]
mod tests;

pub use error::{Error, all_of};
pub use request::{AttachmentKey, Command, NETNS_ENDS, Request};
pub use result::{Dns, Interface, IpConfig, NetResult, Route};
pub use version::{Version, version_report};
