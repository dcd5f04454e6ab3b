//! nf_tables by netlink: tables, chains, rules, sets and maps, changed in transactions and read back.
//!
//! A [`Batch`] collects changes and becomes one transaction. [`Rule`]s are built statement by statement in nft's words
//! and know their text, sets carry the `typeof` data that lets `nft list` print them.
//!
//! Whoever makes rules has a table of their own, and deletes it whole: the service proxy has `orlop`, others take
//! another name. A table is deleted and made again in one transaction by [`Batch::delete_table`] and then
//! [`Batch::add_table`].
//!
//! ```no_run
//! use linux::nftables::{Batch, Chain, ChainKind, Element, Family, Field, Hook, Rule, Set, Socket, Table};
//! let table = Table::new(Family::Ip, "orlop-cni");
//! let mut batch = Batch::new();
//! batch.add_table(&table);
//! batch.add_chain(&table, &Chain::base("nat-postrouting", ChainKind::Nat, Hook::Postrouting, 100));
//! batch.add_set(&table, &Set::of("pods", &[Field::IpSaddr]));
//! batch.add_rule(&table, "nat-postrouting", &Rule::new().is_in(&[Field::IpSaddr], "pods").masquerade());
//! batch.add_element(&table, "pods", &Element::key(&[10, 244, 0, 2]));
//! batch.commit(&mut Socket::open()?)?;
//! # Ok::<(), linux::nftables::BatchError>(())
//! ```
//!
//! Adding a rule that refers to a map costs in proportion to the map's elements, and adding an element in proportion
//! to the rules that refer to its map: make rules before elements, and few of them.

mod batch;
mod dump;
mod expr;
mod field;
mod object;
mod rule;
mod socket;
mod translate;
pub(crate) mod wire;

pub use batch::{Batch, BatchError, Refusal};
pub use dump::{ChainDump, ElementDump, RuleDump, SetDump};
pub use expr::{Compare, SetOperation, Verdict};
pub use field::{
    ADDRESS_TYPE_LOCAL, Field, ct_state, ct_status, format_fields, format_values, size_of,
};
pub use object::{BaseChain, Chain, ChainKind, Element, ElementValue, Hook, MapValue, Set};
pub use rule::Rule;
pub(crate) use socket::Collect;
pub use socket::Socket;

use std::fmt;
use std::net::IpAddr;

/// A table's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// Both IP versions in one table.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// Frames that a bridge of this host passes on.
    Bridge = 7,
    /// IPv6.
    Ip6 = 10,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ip,
            IpAddr::V6(_) => Family::Ip6,
        }
    }

    fn from_number(number: u8) -> Option<Family> {
        [Family::Inet, Family::Ip, Family::Bridge, Family::Ip6]
            .into_iter()
            .find(|family| *family as u8 == number)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Bridge => "bridge",
            Family::Ip6 => "ip6",
        })
    }
}

/// An address as keys and values hold it: in network order.
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A table by its family and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    /// Whose packets its chains see.
    pub family: Family,
    /// Its name, unique in the family.
    pub name: String,
}

impl Table {
    /// A table's name; it is created by [`Batch::add_table`].
    pub fn new(family: Family, name: impl Into<String>) -> Table {
        Table {
            family,
            name: name.into(),
        }
    }
}

/// `enum nf_tables_msg_types`.
mod message {
    pub const NEW_TABLE: u16 = 0;
    pub const GET_TABLE: u16 = 1;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const DELETE_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const GET_RULE: u16 = 7;
    pub const DELETE_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const GET_SET: u16 = 10;
    pub const DELETE_SET: u16 = 11;
    pub const NEW_ELEMENT: u16 = 12;
    pub const GET_ELEMENT: u16 = 13;
    pub const DELETE_ELEMENT: u16 = 14;
}
