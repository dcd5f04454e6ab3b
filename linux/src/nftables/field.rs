//! What a rule can look at, and what a set's keys and a map's values are made of.

use super::Family;
use super::expr::{Expr, FibResult, MetaKey, Register};
use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

/// A value that an expression loads: a part of the packet, of its metadata or of its connection. The same field states
/// the type of a set's key or of a map's value, as nft's `typeof` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// `ether saddr`, 6 bytes.
    EtherSaddr,
    /// `ip saddr`.
    IpSaddr,
    /// `ip daddr`.
    IpDaddr,
    /// `ip6 saddr`.
    Ip6Saddr,
    /// `ip6 daddr`.
    Ip6Daddr,
    /// `meta l4proto`, one byte.
    L4Proto,
    /// `icmpv6 type`, one byte; for packets of that protocol alone.
    Icmp6Type,
    /// `th sport`, network order.
    ThSport,
    /// `th dport`, network order.
    ThDport,
    /// `meta mark`, host order.
    Mark,
    /// `meta priority`, host order; nft writes it as two hexadecimal halves.
    Priority,
    /// `numgen random mod M offset O`, host order.
    Random {
        /// Draws from 0 to `modulus - 1`.
        modulus: u32,
        /// Added to what was drawn.
        offset: u32,
    },
    /// `iifname`, 16 bytes, NUL padded.
    IifName,
    /// `oifname`, 16 bytes, NUL padded.
    OifName,
    /// `ct state`: a mask, see [`ct_state`].
    CtState,
    /// `ct status`: a mask, see [`ct_status`].
    CtStatus,
    /// `ct mark`, host order.
    CtMark,
    /// `fib saddr type`, see [`ADDRESS_TYPE_LOCAL`].
    FibSaddrType,
    /// `fib daddr type`, see [`ADDRESS_TYPE_LOCAL`].
    FibDaddrType,
}

/// `fib … type local`.
pub const ADDRESS_TYPE_LOCAL: u32 = 2;

/// Bits of `ct state`.
pub mod ct_state {
    /// The packet belongs to no known connection.
    pub const INVALID: u32 = 1;
    /// The connection has been seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// A new connection that another one announced, or an ICMP error of a known one.
    pub const RELATED: u32 = 4;
    /// The connection's first packet.
    pub const NEW: u32 = 8;
}

/// Bits of `ct status`.
pub mod ct_status {
    /// The source is translated.
    pub const SNAT: u32 = 0x10;
    /// The destination is translated.
    pub const DNAT: u32 = 0x20;
}

impl Field {
    /// A family's source address.
    pub fn saddr(family: Family) -> Field {
        if family == Family::Ip6 {
            Field::Ip6Saddr
        } else {
            Field::IpSaddr
        }
    }

    /// A family's destination address.
    pub fn daddr(family: Family) -> Field {
        if family == Family::Ip6 {
            Field::Ip6Daddr
        } else {
            Field::IpDaddr
        }
    }

    /// A draw from 0 to `modulus - 1`.
    pub fn random(modulus: u32) -> Field {
        Field::Random { modulus, offset: 0 }
    }

    /// Bytes of a value, without padding.
    pub fn size(self) -> usize {
        match self {
            Field::Ip6Saddr | Field::Ip6Daddr | Field::IifName | Field::OifName => 16,
            Field::EtherSaddr => 6,
            Field::L4Proto | Field::Icmp6Type => 1,
            Field::ThSport | Field::ThDport => 2,
            _ => 4,
        }
    }

    /// nft's number for the data type.
    pub(super) fn data_type(self) -> u32 {
        match self {
            Field::IpSaddr | Field::IpDaddr => 7,
            Field::Ip6Saddr | Field::Ip6Daddr => 8,
            Field::EtherSaddr => 9,
            Field::L4Proto => 12,
            Field::Icmp6Type => 29,
            Field::ThSport | Field::ThDport => 13,
            Field::Mark | Field::CtMark => 19,
            Field::Priority => 23,
            Field::Random { .. } => 4,
            Field::IifName | Field::OifName => 41,
            Field::CtState => 26,
            Field::CtStatus => 28,
            Field::FibSaddrType | Field::FibDaddrType => 39,
        }
    }

    /// nft's number for the byte order: 1 host, 2 network.
    pub(super) fn byte_order(self) -> u32 {
        match self {
            Field::IpSaddr | Field::IpDaddr | Field::Ip6Saddr | Field::Ip6Daddr => 2,
            Field::ThSport | Field::ThDport | Field::EtherSaddr => 2,
            _ => 1,
        }
    }

    /// What nft stores beside a set so that it can print the field: the expression's kind and its parameters, as
    /// (type, value) pairs. `None` where a set of this field is declared by type.
    pub(super) fn typeof_expression(self) -> Option<(u32, Vec<(u8, u32)>)> {
        const PAYLOAD: u32 = 7;
        const META: u32 = 9;
        const NUMGEN: u32 = 0x17;
        match self {
            Field::EtherSaddr => Some((PAYLOAD, vec![(0, 17), (1, 2)])),
            Field::IpSaddr => Some((PAYLOAD, vec![(0, 12), (1, 11)])),
            Field::IpDaddr => Some((PAYLOAD, vec![(0, 12), (1, 12)])),
            Field::Ip6Saddr => Some((PAYLOAD, vec![(0, 13), (1, 8)])),
            Field::Ip6Daddr => Some((PAYLOAD, vec![(0, 13), (1, 9)])),
            Field::ThSport => Some((PAYLOAD, vec![(0, 11), (1, 1)])),
            Field::ThDport => Some((PAYLOAD, vec![(0, 11), (1, 2)])),
            Field::L4Proto => Some((META, vec![(0, MetaKey::L4Proto as u32)])),
            Field::Mark => Some((META, vec![(0, MetaKey::Mark as u32)])),
            Field::Priority => Some((META, vec![(0, MetaKey::Priority as u32)])),
            Field::IifName => Some((META, vec![(0, MetaKey::IifName as u32)])),
            Field::OifName => Some((META, vec![(0, MetaKey::OifName as u32)])),
            Field::Random { modulus, offset } => {
                Some((NUMGEN, vec![(0, 1), (1, modulus), (2, offset)]))
            }
            _ => None,
        }
    }

    /// The expression that loads the field.
    pub(super) fn load(self, to: Register) -> Expr {
        let network = |offset, length| Expr::Payload {
            base: super::expr::NETWORK_HEADER,
            offset,
            length,
            to,
        };
        let transport = |offset| Expr::Payload {
            base: super::expr::TRANSPORT_HEADER,
            offset,
            length: 2,
            to,
        };
        match self {
            Field::EtherSaddr => Expr::Payload {
                base: super::expr::LINK_HEADER,
                offset: 6,
                length: 6,
                to,
            },
            Field::IpSaddr => network(12, 4),
            Field::IpDaddr => network(16, 4),
            Field::Ip6Saddr => network(8, 16),
            Field::Ip6Daddr => network(24, 16),
            Field::Icmp6Type => Expr::Payload {
                base: super::expr::TRANSPORT_HEADER,
                offset: 0,
                length: 1,
                to,
            },
            Field::ThSport => transport(0),
            Field::ThDport => transport(2),
            Field::L4Proto => Expr::Meta {
                key: MetaKey::L4Proto,
                to,
            },
            Field::Mark => Expr::Meta {
                key: MetaKey::Mark,
                to,
            },
            Field::Priority => Expr::Meta {
                key: MetaKey::Priority,
                to,
            },
            Field::IifName => Expr::Meta {
                key: MetaKey::IifName,
                to,
            },
            Field::OifName => Expr::Meta {
                key: MetaKey::OifName,
                to,
            },
            Field::Random { modulus, offset } => Expr::Random {
                modulus,
                offset,
                to,
            },
            Field::CtState => Expr::Ct { key: 0, to },
            Field::CtStatus => Expr::Ct { key: 2, to },
            Field::CtMark => Expr::Ct { key: 3, to },
            Field::FibSaddrType => Expr::Fib {
                source: true,
                result: FibResult::AddressType,
                to,
            },
            Field::FibDaddrType => Expr::Fib {
                source: false,
                result: FibResult::AddressType,
                to,
            },
        }
    }

    /// A value as nft prints it. Bytes that are no value of this field are printed in hexadecimal.
    pub fn format_value(self, value: &[u8]) -> String {
        let host = || <[u8; 4]>::try_from(value).map(u32::from_ne_bytes).ok();
        let text = match self {
            Field::IpSaddr | Field::IpDaddr => <[u8; 4]>::try_from(value)
                .map(|v| Ipv4Addr::from(v).to_string())
                .ok(),
            Field::Ip6Saddr | Field::Ip6Daddr => <[u8; 16]>::try_from(value)
                .map(|v| Ipv6Addr::from(v).to_string())
                .ok(),
            Field::EtherSaddr => <[u8; 6]>::try_from(value)
                .map(|v| v.map(|byte| format!("{byte:02x}")).join(":"))
                .ok(),
            Field::L4Proto => value.first().map(|protocol| format_protocol(*protocol)),
            Field::Icmp6Type => value.first().map(u8::to_string),
            Field::ThSport | Field::ThDport => <[u8; 2]>::try_from(value)
                .map(|v| u16::from_be_bytes(v).to_string())
                .ok(),
            Field::Mark | Field::CtMark => host().map(|v| format!("0x{v:08x}")),
            Field::Priority => host().map(format_priority),
            Field::IifName | Field::OifName => Some(format!("\"{}\"", format_name(value))),
            Field::Random { .. } => host().map(|v| v.to_string()),
            Field::CtState => {
                host().map(|v| format_mask(v, &["invalid", "established", "related", "new"]))
            }
            Field::CtStatus => host().map(|v| {
                if v == ct_status::DNAT {
                    "dnat".into()
                } else {
                    format!("0x{v:x}")
                }
            }),
            Field::FibSaddrType | Field::FibDaddrType => host().map(|v| {
                if v == ADDRESS_TYPE_LOCAL {
                    "local".into()
                } else {
                    v.to_string()
                }
            }),
        };
        text.unwrap_or_else(|| {
            value.iter().fold(String::from("0x"), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        })
    }
}

fn format_protocol(protocol: u8) -> String {
    match i32::from(protocol) {
        libc::IPPROTO_TCP => "tcp".into(),
        libc::IPPROTO_UDP => "udp".into(),
        libc::IPPROTO_SCTP => "sctp".into(),
        libc::IPPROTO_ICMP => "icmp".into(),
        libc::IPPROTO_ICMPV6 => "ipv6-icmp".into(),
        other => other.to_string(),
    }
}

/// A traffic class handle: `none`, or both halves in hexadecimal.
fn format_priority(value: u32) -> String {
    match (value >> 16, value & 0xffff) {
        (0, 0) => "none".into(),
        (0xffff, 0xffff) => "root".into(),
        (0, minor) => format!(":{minor:x}"),
        (major, 0) => format!("{major:x}:0"),
        (major, minor) => format!("{major:x}:{minor:x}"),
    }
}

fn format_name(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn format_mask(value: u32, names: &[&str]) -> String {
    let set: Vec<&str> = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| value & (1 << bit) != 0)
        .map(|(_, name)| *name)
        .collect();
    set.join(",")
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::EtherSaddr => "ether saddr",
            Field::IpSaddr => "ip saddr",
            Field::IpDaddr => "ip daddr",
            Field::Ip6Saddr => "ip6 saddr",
            Field::Ip6Daddr => "ip6 daddr",
            Field::L4Proto => "meta l4proto",
            Field::Icmp6Type => "icmpv6 type",
            Field::ThSport => "th sport",
            Field::ThDport => "th dport",
            Field::Mark => "meta mark",
            Field::Priority => "meta priority",
            Field::IifName => "iifname",
            Field::OifName => "oifname",
            Field::CtState => "ct state",
            Field::CtStatus => "ct status",
            Field::CtMark => "ct mark",
            Field::FibSaddrType => "fib saddr type",
            Field::FibDaddrType => "fib daddr type",
            Field::Random { modulus, offset: 0 } => {
                return write!(f, "numgen random mod {modulus}");
            }
            Field::Random { modulus, offset } => {
                return write!(f, "numgen random mod {modulus} offset {offset}");
            }
        })
    }
}

/// A concatenation as nft prints it: `ip daddr . meta l4proto . th dport`.
pub fn format_fields(fields: &[Field]) -> String {
    fields
        .iter()
        .map(Field::to_string)
        .collect::<Vec<_>>()
        .join(" . ")
}

/// The values of a concatenation as nft prints them; each value takes a multiple of four bytes.
pub fn format_values(fields: &[Field], bytes: &[u8]) -> String {
    let mut rest = bytes;
    let mut parts = Vec::with_capacity(fields.len());
    for field in fields {
        let padded = rest.len().min(field.size().next_multiple_of(4));
        parts.push(field.format_value(&rest[..field.size().min(rest.len())]));
        rest = &rest[padded..];
    }
    parts.join(" . ")
}

/// Bytes of a concatenation: alone a field has its own size, in a concatenation each is padded to four bytes.
pub fn size_of(fields: &[Field]) -> usize {
    match fields {
        [one] => one.size(),
        many => many
            .iter()
            .map(|field| field.size().next_multiple_of(4))
            .sum(),
    }
}
