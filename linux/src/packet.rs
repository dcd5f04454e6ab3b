//! Packets sent and received below the IP layer, for an interface that has no address yet (packet(7)).

use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};

/// `ETH_P_IP`
pub const IPV4: u16 = 0x0800;

/// One protocol's packets on one interface, without their link headers. It stays in the network namespace that it was
/// opened in.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    address: libc::sockaddr_ll,
}

impl PacketSocket {
    /// Opens a socket for the packets of `ethertype` on the interface `index`.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV without the interface, ENETDOWN if it is down.
    pub fn open(index: u32, ethertype: u16) -> Result<Self> {
        let protocol = ethertype.to_be();
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0 receives nothing until the socket is bound to its interface.
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(Error::last("open packet socket", ""));
        }
        // SAFETY: the descriptor was just opened and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        address.sll_halen = 6;
        address.sll_addr[..6].fill(0xff);
        let socket = Self { fd, address };
        // SAFETY: the address is a whole sockaddr_ll that outlives the call.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const socket.address).cast(),
                ADDRESS_BYTES,
            )
        };
        if bound < 0 {
            return Err(Error::last(
                "bind packet socket",
                format!("interface {index}"),
            ));
        }
        Ok(socket)
    }

    /// Sends a packet to all stations of the link.
    ///
    /// # Errors
    /// ENETDOWN, EMSGSIZE for one longer than the interface's MTU, ENXIO if the interface is gone.
    pub fn broadcast(&self, packet: &[u8]) -> Result<()> {
        // SAFETY: the packet and the address are valid for the lengths that are given, and outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                libc::MSG_NOSIGNAL,
                (&raw const self.address).cast(),
                ADDRESS_BYTES,
            )
        };
        if sent < 0 {
            return Err(Error::last("broadcast packet", ""));
        }
        Ok(())
    }

    /// Waits for a packet until `deadline`; its length in `buffer`, which cuts what is longer. `None` if none came.
    ///
    /// # Errors
    /// ENETDOWN if the interface went down, ENXIO if it is gone.
    pub fn receive(&self, buffer: &mut [u8], deadline: Instant) -> Result<Option<usize>> {
        loop {
            match rustix::net::recv(&self.fd, &mut *buffer, rustix::net::RecvFlags::empty()) {
                Ok((length, _)) => return Ok(Some(length)),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Error::new("receive packet", "", errno.raw_os_error())),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up, so that a wait of less than a millisecond is not a busy loop.
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut wait = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut wait, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::new("wait for packet", "", errno as i32)),
            }
        }
    }
}

const ADDRESS_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
