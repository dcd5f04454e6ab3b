//! Services and EndpointSlices to what this node has to do for each Service: pure, and one Service at a time.
//!
//! ```text
//! objects -> facts -> Tracker (which Service changed?) -> resolve (ports, frontends, endpoints) -> ruleset
//! ```

pub mod endpoints;
pub mod facts;
pub mod object;
pub mod resolve;
pub mod tracker;

pub use facts::{Affinity, NodeFacts, Protocol, ServiceFacts, SliceFacts};
pub use resolve::{Frontend, ResolvedService, ServicePort};
pub use tracker::{Change, Tracker};

use std::fmt;
use std::sync::Arc;

macro_rules! namespaced_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name of what `namespace` has under `name`.
            pub fn new(namespace: &str, name: &str) -> Self {
                $name(format!("{namespace}/{name}").into())
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

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

namespaced_name! {
    /// A Service by its namespace and name; written `namespace/name`.
    ServiceName
}

namespaced_name! {
    /// An EndpointSlice by its namespace and name; written `namespace/name`.
    SliceName
}
