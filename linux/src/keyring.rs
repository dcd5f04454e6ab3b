//! The session keyring (keyrings(7)).

use crate::error::{Context, Result, check};
use crate::mount::c_string;

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Joins this process to the session keyring `name`, new or existing, so that it doesn't share its parent's.
///
/// # Errors
/// ENOSYS in a kernel without keys, EDQUOT over the user's limit.
pub fn join_session(name: &str) -> Result<()> {
    let name = c_string(name)?;
    // SAFETY: the pointer is to a C string that lives through the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .context("keyctl", || "join session keyring")?;
    Ok(())
}
