//! Addresses of interfaces.

use std::net::IpAddr;

use ipnet::IpNet;

use super::conversation::Netlink;
use super::message::{Message, attributes, family, ip, text, u32_at};
use super::{Error, Result};

/// `IFA_FLAGS`, the flags in 32 bits.
const IFA_FLAGS: u16 = 8;

/// An address that an interface has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address with its prefix length.
    pub net: IpNet,
    /// The other end's address, on a point-to-point link.
    pub peer: Option<IpAddr>,
    /// `IFA_F_*`
    pub flags: u32,
    /// `RT_SCOPE_*`
    pub scope: u8,
    /// The label of an IPv4 address, usually the interface's name.
    pub label: String,
}

impl Address {
    /// Whether duplicate address detection has still to pass before it is usable.
    pub fn is_tentative(&self) -> bool {
        self.flags & libc::IFA_F_TENTATIVE != 0
    }

    /// Whether it is an address of the link only.
    pub fn is_link_local(&self) -> bool {
        self.scope == libc::RT_SCOPE_LINK
    }
}

impl Netlink {
    /// Gives an interface an address. An IPv6 address is usable at once: it is not probed for duplicates. Does
    /// nothing if the interface has it.
    ///
    /// # Errors
    /// ENODEV, EINVAL for an address that can't be an interface's, EACCES where IPv6 is disabled on the interface.
    pub fn add_address(&mut self, index: u32, net: IpNet) -> Result<()> {
        let mut message = request(
            libc::RTM_NEWADDR,
            libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            index,
            net,
        );
        match net {
            IpNet::V4(net) if net.prefix_len() < 31 => {
                message.ip(libc::IFA_BROADCAST, net.broadcast().into());
            }
            IpNet::V4(_) => {}
            IpNet::V6(_) => message.u32(IFA_FLAGS, libc::IFA_F_NODAD),
        }
        self.execute(message)
            .map_err(|refusal| refusal.on("add address", on(net, index)))
    }

    /// Takes an address from an interface. Does nothing if it is not there.
    ///
    /// # Errors
    /// EPERM.
    pub fn delete_address(&mut self, index: u32, net: IpNet) -> Result<()> {
        match self.execute(request(libc::RTM_DELADDR, libc::NLM_F_ACK, index, net)) {
            Err(refusal) if !matches!(refusal.errno, libc::EADDRNOTAVAIL | libc::ENODEV) => {
                Err(refusal.on("delete address", on(net, index)))
            }
            _ => Ok(()),
        }
    }

    /// The addresses of one interface, IPv4 first.
    ///
    /// # Errors
    /// ENODEV.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Address>> {
        let mut all = self.list_addresses(index)?;
        all.sort_by_key(|address| address.net.addr().is_ipv6());
        Ok(all)
    }

    /// The addresses of all interfaces.
    ///
    /// # Errors
    /// ENOBUFS and its like.
    pub fn all_addresses(&mut self) -> Result<Vec<Address>> {
        self.list_addresses(0)
    }

    fn list_addresses(&mut self, index: u32) -> Result<Vec<Address>> {
        let ask = || {
            let mut header = [0; 8];
            header[4..].copy_from_slice(&index.to_ne_bytes());
            Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &header)
        };
        let wanted =
            |payload: &[u8]| read(payload).filter(|address| index == 0 || address.index == index);
        self.dump(ask, wanted)
            .map_err(|refusal| refusal.on("list addresses", format!("of interface {index}")))
    }
}

/// `struct ifaddrmsg`, then the address.
fn request(kind: u16, flags: i32, index: u32, net: IpNet) -> Message {
    let mut header = [family(net.addr()), net.prefix_len(), 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(kind, flags, &header);
    message.ip(libc::IFA_LOCAL, net.addr());
    message.ip(libc::IFA_ADDRESS, net.addr());
    message
}

fn read(payload: &[u8]) -> Option<Address> {
    let prefix = *payload.get(1)?;
    let mut local = None;
    let mut address = None;
    let mut flags = u32::from(*payload.get(2)?);
    let mut label = String::new();
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_ADDRESS => address = ip(value),
            libc::IFA_LABEL => label = text(value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other end's; else it is the same, or alone.
    let own = local.or(address)?;
    Some(Address {
        index: u32_at(payload, 4)?,
        net: IpNet::new(own, prefix).ok()?,
        peer: address.filter(|peer| *peer != own),
        flags,
        scope: *payload.get(3)?,
        label,
    })
}

fn on(net: IpNet, index: u32) -> String {
    format!("{net} on interface {index}")
}

impl Error {
    /// Whether the error says that the thing doesn't exist.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno,
            libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::ENXIO
        )
    }
}
