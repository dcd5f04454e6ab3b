//! Keeps a container from overwriting this program (CVE-2019-5736).
//!
//! A container can make its own program `/proc/self/exe`, which is then this one, and later write to the file through
//! the process's `/proc/<pid>/exe`. So a command that enters a container runs from a read-only mount of the file,
//! which nobody else sees and no name leads to.

use linux::mount::{self, Attributes, attr};
use linux::process;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// Starts this program over from a read-only mount; comes back if it runs from one already, or may make none (then
/// the caller is an unprivileged user, whose containers may write no more than that user may anyway).
pub(super) fn restart_sealed() -> linux::Result<()> {
    let exe = Path::new("/proc/self/exe");
    let on_readonly_mount = rustix::fs::statvfs(exe)
        .is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    if on_readonly_mount {
        return Ok(());
    }
    let program = match mount::bind(exe, false) {
        Err(error) if error.is(libc::EPERM) => return Ok(()),
        other => other?,
    };
    let readonly = Attributes {
        set: attr::RDONLY,
        ..Attributes::default()
    };
    mount::set_attributes(&program, false, &readonly)?;
    let strings = |texts: Vec<OsString>| {
        texts
            .into_iter()
            .map(|text| mount::c_string(text.into_vec()))
            .collect::<linux::Result<Vec<CString>>>()
    };
    let args = strings(std::env::args_os().collect())?;
    let env = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    Err(process::execve_fd(
        &program,
        &args,
        &strings(env.collect())?,
    ))
}
