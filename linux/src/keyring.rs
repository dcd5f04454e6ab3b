//! The session keyring (keyrings(7)).

use crate::error::{Context, Result, check};
use crate::mount::c_string;

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
const KEYCTL_SETPERM: libc::c_int = 5;
/// What the kernel gives a new one, and the search by its user, without which none is found by its name.
const SEARCHABLE: libc::c_ulong = 0x3f1b_0000;

/// Joins this process to the session keyring `name`, new or existing, so that it doesn't share its parent's. A process that
/// joins it later by the name, as the same user, gets the same.
///
/// # Errors
/// ENOSYS in a kernel without keys, EDQUOT over the user's limit.
pub fn join_session(name: &str) -> Result<()> {
    let name = c_string(name)?;
    // SAFETY: the pointer is to a C string that lives through the call.
    let joined = check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    })
    .context("keyctl", || "join session keyring")?;
    // SAFETY: keyctl takes integers here. One of somebody else's, which was found, has the right already.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, joined, SEARCHABLE) };
    Ok(())
}
