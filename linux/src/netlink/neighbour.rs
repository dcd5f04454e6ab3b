//! Neighbours (ARP and NDP), and the forwarding entries of bridges and VXLAN devices.

use std::net::IpAddr;

use super::conversation::Netlink;
use super::message::{Message, attributes, family, ip, u32_at};
use super::{MacAddress, Result};

/// Who has an address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface.
    pub index: u32,
    /// The neighbour's address.
    pub ip: IpAddr,
    /// Its hardware address, if known.
    pub mac: Option<MacAddress>,
    /// `NUD_*`
    pub state: u16,
}

impl Netlink {
    /// Sets a permanent neighbour, in the place of what was known about that address.
    ///
    /// # Errors
    /// ENODEV, ENETDOWN.
    pub fn replace_neighbour(
        &mut self,
        index: u32,
        neighbour: IpAddr,
        mac: MacAddress,
    ) -> Result<()> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut message = request(libc::RTM_NEWNEIGH, flags, family(neighbour), index, 0);
        message.ip(libc::NDA_DST, neighbour);
        message.bytes(libc::NDA_LLADDR, &mac.0);
        self.execute(message)
            .map_err(|refusal| refusal.on("set neighbour", on(neighbour, index)))
    }

    /// Forgets a neighbour. Does nothing if it is not known.
    ///
    /// # Errors
    /// EPERM.
    pub fn delete_neighbour(&mut self, index: u32, neighbour: IpAddr) -> Result<()> {
        let mut message = request(
            libc::RTM_DELNEIGH,
            libc::NLM_F_ACK,
            family(neighbour),
            index,
            0,
        );
        message.ip(libc::NDA_DST, neighbour);
        match self.execute(message) {
            Err(refusal) if !matches!(refusal.errno, libc::ENOENT | libc::ENODEV) => {
                Err(refusal.on("delete neighbour", on(neighbour, index)))
            }
            _ => Ok(()),
        }
    }

    /// What is known about the neighbours on one interface.
    ///
    /// # Errors
    /// ENOBUFS and its like.
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<Neighbour>> {
        let ask = || Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &[0; 12]);
        let wanted = |payload: &[u8]| read(payload).filter(|neighbour| neighbour.index == index);
        self.dump(ask, wanted)
            .map_err(|refusal| refusal.on("list neighbours", format!("of interface {index}")))
    }

    /// Sets a forwarding entry of a bridge's or VXLAN device's port: frames to `mac` go out by interface `index`,
    /// of a VXLAN device to the host `remote`.
    ///
    /// # Errors
    /// ENODEV, EOPNOTSUPP if the interface forwards nothing.
    pub fn replace_forwarding(
        &mut self,
        index: u32,
        mac: MacAddress,
        remote: Option<IpAddr>,
    ) -> Result<()> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let message = forwarding(libc::RTM_NEWNEIGH, flags, index, mac, remote);
        self.execute(message).map_err(|refusal| {
            refusal.on(
                "set forwarding entry",
                format!("{mac} on interface {index}"),
            )
        })
    }

    /// Drops a forwarding entry. Does nothing if there is none.
    ///
    /// # Errors
    /// EPERM.
    pub fn delete_forwarding(
        &mut self,
        index: u32,
        mac: MacAddress,
        remote: Option<IpAddr>,
    ) -> Result<()> {
        match self.execute(forwarding(
            libc::RTM_DELNEIGH,
            libc::NLM_F_ACK,
            index,
            mac,
            remote,
        )) {
            Err(refusal) if !matches!(refusal.errno, libc::ENOENT | libc::ENODEV) => Err(refusal
                .on(
                    "delete forwarding entry",
                    format!("{mac} on interface {index}"),
                )),
            _ => Ok(()),
        }
    }
}

fn forwarding(
    kind: u16,
    flags: i32,
    index: u32,
    mac: MacAddress,
    remote: Option<IpAddr>,
) -> Message {
    let mut message = request(kind, flags, libc::AF_BRIDGE as u8, index, libc::NTF_SELF);
    message.bytes(libc::NDA_LLADDR, &mac.0);
    if let Some(remote) = remote {
        message.ip(libc::NDA_DST, remote);
    }
    message
}

/// `struct ndmsg` of a permanent entry.
fn request(kind: u16, flags: i32, family: u8, index: u32, entry_flags: u8) -> Message {
    let mut fixed = [0; 12];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    fixed[10] = entry_flags;
    Message::new(kind, flags, &fixed)
}

fn read(payload: &[u8]) -> Option<Neighbour> {
    let mut neighbour = None;
    let mut mac = None;
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_DST => neighbour = ip(value),
            libc::NDA_LLADDR => mac = value.first_chunk().map(|octets| MacAddress(*octets)),
            _ => {}
        }
    }
    let state = super::message::u16_at(payload, 8)?;
    Some(Neighbour {
        index: u32_at(payload, 4)?,
        ip: neighbour?,
        mac,
        state,
    })
}

fn on(ip: IpAddr, index: u32) -> String {
    format!("{ip} on interface {index}")
}
