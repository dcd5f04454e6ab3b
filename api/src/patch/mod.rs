//! Patches. JSON patch (RFC 6902) and merge patch (RFC 7386) are the json-patch crate's; strategic merge patch, which
//! knows the types' merge keys, is here; server-side apply is in [`crate::apply`].

mod strategic;
#[cfg(test)]
mod tests;

pub use strategic::{PatchError, strategic};
