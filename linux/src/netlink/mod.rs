//! Links, addresses, routes, neighbours, rules and queueing disciplines, by rtnetlink (`man 7 rtnetlink`).
//!
//! A [`Netlink`] is one conversation with the kernel: synchronous, without a runtime, one message at a time, each
//! answered before the next. It stays in the network namespace in which it was opened, whichever thread uses it
//! later; [`in_namespace`] opens one elsewhere. An error names the operation and its object, and carries the
//! kernel's own words where it gives any (extended acknowledgement).

mod address;
mod bridge_vlan;
mod conversation;
mod error;
mod link;
mod message;
mod namespace;
mod neighbour;
mod new_link;
mod route;
mod rule;
mod tap;
mod traffic;

#[cfg(test)]
mod tests;

pub use address::Address;
pub use bridge_vlan::BridgeVlan;
pub use conversation::Netlink;
pub use error::Error;
pub use link::{
    BridgePort, Link, LinkChange, LinkKind, LinkStatistics, MacAddress, NewLink, VethPeer,
};
pub use namespace::{in_namespace, read_sysctl, write_sysctl};
pub use neighbour::Neighbour;
pub use route::{Destination, Route, RouteScope};
pub use rule::SourceRule;
pub use tap::{NewTap, add_tap};
pub use traffic::TokenBucket;

/// This module's result.
pub type Result<T> = std::result::Result<T, Error>;
