//! Statements that translate addresses.

use super::Family;
use super::expr::{Expr, LookupResult, Register};
use super::field::{Field, format_fields};
use super::rule::{FIRST, Rule, load_all};
use std::fmt::Write as _;
use std::net::IpAddr;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const FULLY_RANDOM: u32 = 0x10;

impl Rule {
    /// `dnat to <key> map @map`: the map's values are an address and a port. nft accepts the rule only after a match
    /// of the transport protocol ([`Rule::is_one_of`]); the kernel doesn't ask for one.
    pub fn dnat_from(self, family: Family, key: &[Field], map: &str) -> Rule {
        let (word, protocol, words) = nat_family(family);
        let mut exprs = Vec::new();
        load_all(&mut exprs, key, FIRST);
        exprs.push(Expr::Lookup {
            set: map.to_owned(),
            from: FIRST,
            result: LookupResult::Value(FIRST),
        });
        let (address, port) = (Some(FIRST), Some(Register(words)));
        exprs.push(Expr::Nat {
            source: false,
            family: protocol,
            address,
            port,
            flags: 0,
        });
        self.step(
            &format!("dnat {word} to {} map @{map}", format_fields(key)),
            exprs,
        )
    }

    /// `dnat to address[:port]`.
    pub fn dnat_to(self, address: IpAddr, port: Option<u16>) -> Rule {
        self.nat_to(false, address, port)
    }

    /// `snat to ip saddr`: the source stays, and no later chain of the hook translates it.
    pub fn keep_source(self, family: Family) -> Rule {
        let (word, protocol, _) = nat_family(family);
        let field = Field::saddr(family);
        let translate = Expr::Nat {
            source: true,
            family: protocol,
            address: Some(FIRST),
            port: None,
            flags: 0,
        };
        self.step(
            &format!("snat {word} to {field}"),
            [field.load(FIRST), translate],
        )
    }

    /// `snat to address[:port]`.
    pub fn snat_to(self, address: IpAddr, port: Option<u16>) -> Rule {
        self.nat_to(true, address, port)
    }

    fn nat_to(self, source: bool, address: IpAddr, port: Option<u16>) -> Rule {
        let value = super::address_bytes(address);
        let (_, family, _) = nat_family(Family::of(address));
        let mut text = format!("{} to ", if source { "snat" } else { "dnat" });
        let _ = match (address, port) {
            (IpAddr::V6(address), Some(port)) => write!(text, "[{address}]:{port}"),
            (IpAddr::V4(address), Some(port)) => write!(text, "{address}:{port}"),
            (address, None) => write!(text, "{address}"),
        };
        let port_register = Register(value.len() as u32 / 4);
        let mut exprs = vec![Expr::Immediate { to: FIRST, value }];
        if let Some(port) = port {
            exprs.push(Expr::Immediate {
                to: port_register,
                value: port.to_be_bytes().to_vec(),
            });
        }
        let port = port.map(|_| port_register);
        exprs.push(Expr::Nat {
            source,
            family,
            address: Some(FIRST),
            port,
            flags: 0,
        });
        self.step(&text, exprs)
    }

    /// `masquerade`: the source becomes the address of the interface that the packet leaves by.
    pub fn masquerade(self) -> Rule {
        self.step(
            "masquerade",
            [Expr::Masquerade {
                flags: 0,
                port: None,
            }],
        )
    }

    /// `masquerade fully-random`: the port is drawn, so that two hosts' choices seldom meet.
    pub fn masquerade_fully_random(self) -> Rule {
        self.step(
            "masquerade fully-random",
            [Expr::Masquerade {
                flags: FULLY_RANDOM,
                port: None,
            }],
        )
    }

    /// `redirect to :port`: to this host.
    pub fn redirect_to(self, port: u16) -> Rule {
        self.step(
            &format!("redirect to :{port}"),
            [
                Expr::Immediate {
                    to: FIRST,
                    value: port.to_be_bytes().to_vec(),
                },
                Expr::Redirect { port: Some(FIRST) },
            ],
        )
    }
}

/// The word, the protocol number and an address's registers.
fn nat_family(family: Family) -> (&'static str, u32, u32) {
    if family == Family::Ip6 {
        ("ip6", 10, 4)
    } else {
        ("ip", 2, 1)
    }
}
