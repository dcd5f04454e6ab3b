//! Connection tracking by netlink: the entries of one protocol, and deleting single ones.

use crate::error::Result;
use crate::nftables::wire::{Attributes, Message, SUBSYSTEM_CONNTRACK, Writer};
use crate::nftables::{Collect, Family, Socket};
use std::net::{IpAddr, SocketAddr};

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// A tracked connection of a protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// `IPPROTO_TCP`, `IPPROTO_UDP`, `IPPROTO_SCTP`.
    pub protocol: u8,
    /// As the first packet was sent. Its destination is a Service's address where that was translated.
    pub original: Tuple,
    /// As answers come. Its source is who really answers: a Service's endpoint.
    pub reply: Tuple,
    zone: u16,
    id: u32,
}

const GET: u16 = 1;
const DELETE: u16 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ZONE: u16 = 18;
const ID: u16 = 12;
const FILTER: u16 = 25;

fn kind(message: u16) -> u16 {
    u16::from(SUBSYSTEM_CONNTRACK) << 8 | message
}

impl Socket {
    /// The connections of this network namespace, of one family ([`Family::Ip`] or [`Family::Ip6`]) and one protocol
    /// with ports, for which `wanted` holds.
    ///
    /// # Errors
    /// The dump's; EINVAL or ENOENT where the kernel has no conntrack netlink.
    pub fn connections(
        &mut self,
        family: Family,
        protocol: u8,
        mut wanted: impl FnMut(&Entry) -> bool,
    ) -> Result<Vec<Entry>> {
        let mut collect = Collect(Vec::new(), |message: &Message<'_>| {
            // Kernels that don't know the filter send all.
            parse_entry(message.attributes())
                .filter(|entry| entry.protocol == protocol && wanted(entry))
        });
        let write = |out: &mut Writer| write_filter(out, protocol);
        self.dump("connections", kind(GET), family as u8, &write, &mut collect)?;
        Ok(collect.0)
    }

    /// Deletes a connection's entry, so that its next packet is looked at anew; one that is gone is no error.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn delete_connection(&mut self, entry: &Entry) -> Result<()> {
        let family = if entry.original.source.is_ipv4() {
            Family::Ip
        } else {
            Family::Ip6
        };
        let object = entry.original.destination.to_string();
        let result = self.request(
            "delete connection to",
            &object,
            kind(DELETE),
            family as u8,
            |out| {
                write_tuple(out, &entry.original, entry.protocol);
                if entry.zone != 0 {
                    out.bytes(ZONE, &entry.zone.to_be_bytes());
                }
                out.u32(ID, entry.id);
            },
        );
        match result {
            Err(error) if error.is(libc::ENOENT) => Ok(()),
            result => result,
        }
    }
}

/// Asks the kernel for one protocol only (Linux 5.8 and later).
fn write_filter(out: &mut Writer, protocol: u8) {
    const PROTOCOL_NUMBER: u32 = 1 << 3;
    let tuple = out.nest(ORIGINAL);
    let transport = out.nest(2);
    out.bytes(1, &[protocol]);
    out.close(transport);
    out.close(tuple);
    let filter = out.nest(FILTER);
    out.bytes(1, &PROTOCOL_NUMBER.to_ne_bytes());
    out.bytes(2, &0u32.to_ne_bytes());
    out.close(filter);
}

fn write_tuple(out: &mut Writer, tuple: &Tuple, protocol: u8) {
    let nest = out.nest(ORIGINAL);
    let addresses = out.nest(1);
    for (index, address) in [tuple.source.ip(), tuple.destination.ip()]
        .into_iter()
        .enumerate()
    {
        match address {
            IpAddr::V4(address) => out.bytes(1 + index as u16, &address.octets()),
            IpAddr::V6(address) => out.bytes(3 + index as u16, &address.octets()),
        }
    }
    out.close(addresses);
    let transport = out.nest(2);
    out.bytes(1, &[protocol]);
    out.bytes(2, &tuple.source.port().to_be_bytes());
    out.bytes(3, &tuple.destination.port().to_be_bytes());
    out.close(transport);
    out.close(nest);
}

fn parse_entry(attributes: Attributes<'_>) -> Option<Entry> {
    let (original, protocol) = parse_tuple(Attributes(attributes.find(ORIGINAL)?))?;
    let (reply, _) = parse_tuple(Attributes(attributes.find(REPLY)?))?;
    let zone = attributes
        .find(ZONE)
        .and_then(|value| value.try_into().ok())
        .map_or(0, u16::from_be_bytes);
    Some(Entry {
        protocol,
        original,
        reply,
        zone,
        id: attributes.find_u32(ID)?,
    })
}

fn parse_tuple(attributes: Attributes<'_>) -> Option<(Tuple, u8)> {
    let addresses = Attributes(attributes.find(1)?);
    let v4 = |kind| {
        addresses
            .find(kind)
            .and_then(|value| <[u8; 4]>::try_from(value).ok())
            .map(IpAddr::from)
    };
    let v6 = |kind| {
        addresses
            .find(kind)
            .and_then(|value| <[u8; 16]>::try_from(value).ok())
            .map(IpAddr::from)
    };
    let transport = Attributes(attributes.find(2)?);
    let port = |kind| {
        transport
            .find(kind)
            .and_then(|value| value.try_into().ok())
            .map(u16::from_be_bytes)
    };
    let tuple = Tuple {
        source: SocketAddr::new(v4(1).or_else(|| v6(3))?, port(2)?),
        destination: SocketAddr::new(v4(2).or_else(|| v6(4))?, port(3)?),
    };
    Some((tuple, *transport.find(1)?.first()?))
}
