//! Tap interfaces: Ethernet whose other end is a program, such as a virtual machine. Made by `/dev/net/tun`, as netlink
//! can't.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use super::Result;
use super::error::Error;

/// A tap interface to be made in the calling thread's network namespace. It stays until it is deleted.
#[derive(Debug, Clone, Copy)]
pub struct NewTap<'a> {
    /// At most 15 bytes, unused.
    pub name: &'a str,
    /// The user who may attach to it; only root if absent.
    pub owner: Option<u32>,
    /// The group that may attach to it.
    pub group: Option<u32>,
    /// Several programs' threads may each have a queue of it.
    pub multi_queue: bool,
}

/// Makes a tap interface.
///
/// # Errors
/// ENOENT or ENODEV in a kernel without tun, EBUSY if the name is taken, EINVAL for a name that is too long.
pub fn add_tap(tap: &NewTap<'_>) -> Result<()> {
    let failed = |cause: &std::io::Error| Error::io("add link", format!("tap {}", tap.name), cause);
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|cause| failed(&cause))?;
    let queues = if tap.multi_queue {
        libc::IFF_MULTI_QUEUE
    } else {
        libc::IFF_TUN_EXCL
    };
    let mut name = [0; libc::IFNAMSIZ];
    if tap.name.is_empty() || tap.name.len() >= name.len() {
        return Err(failed(&std::io::Error::from_raw_os_error(libc::EINVAL)));
    }
    name.iter_mut()
        .zip(tap.name.bytes())
        .for_each(|(to, byte)| *to = byte.cast_signed());
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    let request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags as libc::c_short,
        },
    };
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is, and which outlives the call.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    check(made).map_err(|cause| failed(&cause))?;
    let settings = [
        (libc::TUNSETOWNER, tap.owner),
        (libc::TUNSETGROUP, tap.group),
        // Last: until then the interface goes with this descriptor.
        (libc::TUNSETPERSIST, Some(1)),
    ];
    for (setting, value) in settings {
        let Some(value) = value else { continue };
        // SAFETY: these three take a number, and no memory of ours.
        let set = unsafe { libc::ioctl(tun.as_raw_fd(), setting, libc::c_ulong::from(value)) };
        check(set).map_err(|cause| failed(&cause))?;
    }
    Ok(())
}

fn check(value: libc::c_int) -> std::io::Result<()> {
    if value < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}
