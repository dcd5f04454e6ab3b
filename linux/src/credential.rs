//! User and group ids, the host's name, and other state of a process that a program starts from.

use crate::error::{Context, Result};
use rustix::process::{Gid, Uid};

/// Sets real, effective and saved group id, then the supplementary groups, then the user ids.
///
/// `groups` is `None` where the user namespace denies setgroups, which leaves them as they are.
///
/// # Errors
/// EINVAL for an id without a mapping in this user namespace, EPERM.
pub fn become_user(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<()> {
    if let Some(groups) = groups {
        let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups)
            .context("setgroups", || format!("{groups:?}"))?;
    }
    let gid_value = Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid_value, gid_value, gid_value)
        .context("setresgid", || gid.to_string())?;
    let uid_value = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid_value, uid_value, uid_value)
        .context("setresuid", || uid.to_string())
}

/// Keeps the permitted capabilities over the next change of user ids away from 0 (until `execve`).
///
/// # Errors
/// The `prctl`'s.
pub fn keep_capabilities(keep: bool) -> Result<()> {
    rustix::thread::set_keep_capabilities(keep).context("prctl", || "PR_SET_KEEPCAPS")
}

/// Forbids this process and its descendants to gain privileges by `execve`.
///
/// # Errors
/// The `prctl`'s.
pub fn set_no_new_privs() -> Result<()> {
    rustix::thread::set_no_new_privs(true).context("prctl", || "PR_SET_NO_NEW_PRIVS")
}

/// Sets the mode bits that new files don't get.
pub fn set_umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
}

/// Starts a new session and process group, without a controlling terminal.
///
/// # Errors
/// EPERM for a process group's leader.
pub fn new_session() -> Result<()> {
    rustix::process::setsid().context("setsid", || "")?;
    Ok(())
}

/// Sets the uts namespace's host name.
///
/// # Errors
/// EINVAL if it is too long, EPERM.
pub fn set_host_name(name: &str) -> Result<()> {
    rustix::system::sethostname(name.as_bytes()).context("sethostname", || name)
}

/// Sets the uts namespace's NIS domain name.
///
/// # Errors
/// EINVAL if it is too long, EPERM.
pub fn set_domain_name(name: &str) -> Result<()> {
    rustix::system::setdomainname(name.as_bytes()).context("setdomainname", || name)
}
