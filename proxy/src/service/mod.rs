//! Services and EndpointSlices to what this node has to do for each Service: pure, and one Service at a time.
//!
//! ```text
//! objects -> Tracker (which Service changed?) -> resolve (ports, frontends, endpoints) -> ruleset
//! ```

pub mod endpoints;
pub mod object;
pub mod resolve;
pub mod tracker;

pub use resolve::{Affinity, Frontend, NodeFacts, Protocol, ResolvedService, ServicePort};
pub use tracker::{Change, Tracker};

use std::fmt;
use std::sync::Arc;

/// A Service by its namespace and name; written `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

impl ServiceName {
    /// The name of `namespace`'s Service `name`.
    pub fn new(namespace: &str, name: &str) -> ServiceName {
        ServiceName(format!("{namespace}/{name}").into())
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace, and the name in it.
    pub fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or(("", &self.0))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
