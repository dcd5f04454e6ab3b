//! The rules as data: what stands in the kernel's table, and what a change of a Service changes in it.
//!
//! The rules and chains ([`skeleton`]) don't depend on the Services. Each Service is a handful of elements in sets and
//! maps ([`element`]), whose values are data and never verdicts, so that an element costs the same however many there
//! are. See the README for the layout and what it was measured to cost.

pub mod element;
pub mod layout;
pub mod model;
mod programmed;
pub mod skeleton;
pub mod text;

pub use element::{Entry, Key, SetName, Value};
pub use model::{Difference, Model};
pub use skeleton::Skeleton;

/// The table's name, in the families `ip` and `ip6`.
pub const TABLE: &str = "orlop";
