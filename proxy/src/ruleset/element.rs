//! Elements of the table's sets and maps, typed, and as the kernel's bytes.

use crate::service::{Frontend, Protocol};
use ipnet::IpNet;
use linux::nftables::{Family, Field, Set};
use std::net::{IpAddr, SocketAddr};

/// A list of endpoints, as packets carry it in their priority while they are in the table:
///
/// ```text
/// 31..28 size class + 1: a draw is from 0 to 2^class - 1
/// 27     clients stay with their endpoint
/// 26     always set: nft can't read back a number whose upper half is zero
/// 25..0  which list
/// ```
///
/// Slots are looked up without the class: an endpoint keeps its element when the class changes, and a packet that has
/// read the old class still finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListId(pub u32);

/// Bits of a [`ListId`] that hold the class.
pub const CLASS_MASK: u32 = 0xf000_0000;
/// The bit of a [`ListId`] that says that clients stay.
pub const AFFINITY_BIT: u32 = 0x0800_0000;
const LIST_BIT: u32 = 0x0400_0000;
/// Bits of a [`ListId`] that tell lists apart.
pub const NUMBER_MASK: u32 = 0x03ff_ffff;
/// The largest class: 8,192 slots.
pub const LARGEST_CLASS: u32 = 13;
/// The class bits of an endpoint's handle, which no list has.
const HANDLE_BITS: u32 = 0xf000_0000;

impl ListId {
    /// A list's id while it is in a class.
    pub fn new(number: u32, class: u32, affinity: bool) -> ListId {
        let affinity = if affinity { AFFINITY_BIT } else { 0 };
        ListId((class + 1) << 28 | affinity | LIST_BIT | number & NUMBER_MASK)
    }

    /// The list's number, which it keeps when its class changes.
    pub fn number(self) -> u32 {
        self.0 & NUMBER_MASK
    }

    /// The id without the class.
    pub fn without_class(self) -> ListId {
        ListId(self.0 & !CLASS_MASK)
    }

    /// The class; `None` for an id without one.
    pub fn class(self) -> Option<u32> {
        (self.0 >> 28).checked_sub(1)
    }
}

/// An endpoint of a list with affinity, by a number of its own: it stays the same when slots are dealt anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u32);

impl Handle {
    /// The handle with that number, of which 28 bits count.
    pub fn new(number: u32) -> Handle {
        Handle(HANDLE_BITS | number & !HANDLE_BITS)
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0 & !HANDLE_BITS
    }
}

/// The table's sets and maps that hold Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetName {
    ClusterAddresses,
    ClusterIps,
    ExternalIps,
    LocalExternalIps,
    NodePorts,
    LocalNodePorts,
    LocalLists,
    NoEndpointServices,
    NoEndpointNodePorts,
    RestrictedServices,
    SourceRanges,
    Endpoints,
    AffinitySlots,
    AffinityEndpoints,
    /// The lists whose clients stay for so many seconds.
    AffinityLists(u32),
    Hairpin,
}

impl SetName {
    /// All but the affinity lists, in the order in which they are declared and printed.
    pub const ALL: [SetName; 15] = [
        SetName::ClusterAddresses,
        SetName::ClusterIps,
        SetName::ExternalIps,
        SetName::LocalExternalIps,
        SetName::NodePorts,
        SetName::LocalNodePorts,
        SetName::LocalLists,
        SetName::NoEndpointServices,
        SetName::NoEndpointNodePorts,
        SetName::RestrictedServices,
        SetName::SourceRanges,
        SetName::Endpoints,
        SetName::AffinitySlots,
        SetName::AffinityEndpoints,
        SetName::Hairpin,
    ];

    /// The set's name in the kernel.
    pub fn name(self) -> std::borrow::Cow<'static, str> {
        match self {
            SetName::ClusterAddresses => "cluster-addresses",
            SetName::ClusterIps => "cluster-ips",
            SetName::ExternalIps => "external-ips",
            SetName::LocalExternalIps => "local-external-ips",
            SetName::NodePorts => "node-ports",
            SetName::LocalNodePorts => "local-node-ports",
            SetName::LocalLists => "local-lists",
            SetName::NoEndpointServices => "no-endpoint-services",
            SetName::NoEndpointNodePorts => "no-endpoint-node-ports",
            SetName::RestrictedServices => "restricted-services",
            SetName::SourceRanges => "source-ranges",
            SetName::Endpoints => "endpoints",
            SetName::AffinitySlots => "affinity-slots",
            SetName::AffinityEndpoints => "affinity-endpoints",
            SetName::AffinityLists(seconds) => return format!("affinity-{seconds}").into(),
            SetName::Hairpin => "hairpin",
        }
        .into()
    }

    /// How the set is declared.
    pub fn declaration(self, family: Family) -> Set {
        let frontend = [Field::daddr(family), Field::L4Proto, Field::ThDport];
        let node_port = [Field::L4Proto, Field::ThDport];
        let list = [Field::Priority];
        let slot = [Field::Priority, Field::random(2)];
        let endpoint = [Field::daddr(family), Field::ThDport];
        let name = self.name();
        match self {
            // Every Service's address: packets to other ports are refused.
            SetName::ClusterAddresses => Set::of(name, &[Field::daddr(family)]),
            // Where a Service answers -> its list. The second ones: external traffic stays on the node.
            SetName::ClusterIps | SetName::ExternalIps | SetName::LocalExternalIps => {
                Set::map(name, &frontend, &list)
            }
            SetName::NodePorts | SetName::LocalNodePorts => Set::map(name, &node_port, &list),
            // A list of all endpoints -> the list of those on this node.
            SetName::LocalLists => Set::map(name, &list, &list),
            SetName::NoEndpointServices | SetName::RestrictedServices => Set::of(name, &frontend),
            SetName::NoEndpointNodePorts => Set::of(name, &node_port),
            // Who may use a restricted frontend.
            SetName::SourceRanges => Set::of(
                name,
                &[Field::saddr(family), frontend[0], frontend[1], frontend[2]],
            )
            .of_intervals(),
            SetName::Endpoints => Set::map(name, &slot, &endpoint),
            // With affinity there is a step between: slot -> handle -> endpoint.
            SetName::AffinitySlots => Set::map(name, &slot, &list),
            SetName::AffinityEndpoints => Set::map(name, &list, &endpoint),
            SetName::AffinityLists(_) => Set::of(name, &list),
            // Endpoints on this node, which may reach themselves through a Service.
            SetName::Hairpin => Set::of(name, &[Field::saddr(family), Field::daddr(family)]),
        }
    }
}

/// An element's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// An address.
    Address(IpAddr),
    /// Where a Service answers.
    Frontend(Frontend),
    /// The same on the node's own addresses.
    NodePort(Protocol, u16),
    /// A list.
    List(ListId),
    /// A list's slot; the list is without its class.
    Slot(ListId, u32),
    /// An endpoint of a list with affinity.
    Handle(Handle),
    /// An address that sends to itself.
    Hairpin(IpAddr),
    /// Who may use a frontend.
    Source(IpNet, Frontend),
}

/// What an element leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// Nothing: the set is no map.
    None,
    /// A list.
    List(ListId),
    /// An endpoint of a list with affinity.
    Handle(Handle),
    /// An endpoint.
    Endpoint(SocketAddr),
}

/// An element and the set that it is in. A set has at most one entry a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// The set.
    pub set: SetName,
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Value,
}

/// Bytes of a key or a value, on the stack: at most a source and a frontend of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    bytes: [u8; 40],
    length: u8,
}

impl Bytes {
    fn new() -> Bytes {
        Bytes {
            bytes: [0; 40],
            length: 0,
        }
    }

    /// Adds a field, padded to four bytes.
    fn push(mut self, field: &[u8]) -> Bytes {
        let at = usize::from(self.length);
        self.bytes[at..at + field.len()].copy_from_slice(field);
        self.length += field.len().next_multiple_of(4) as u8;
        self
    }

    fn address(self, address: IpAddr) -> Bytes {
        match address {
            IpAddr::V4(address) => self.push(&address.octets()),
            IpAddr::V6(address) => self.push(&address.octets()),
        }
    }

    fn port(self, protocol: Protocol, port: u16) -> Bytes {
        self.push(&[protocol as u8]).push(&port.to_be_bytes())
    }

    fn frontend(self, frontend: &Frontend) -> Bytes {
        self.address(frontend.address)
            .port(frontend.protocol, frontend.port)
    }

    fn number(self, number: u32) -> Bytes {
        self.push(&number.to_ne_bytes())
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl Key {
    /// As the kernel has it; of a range, the first key.
    pub fn bytes(&self) -> Bytes {
        match self {
            Key::Address(address) => Bytes::new().address(*address),
            Key::Frontend(frontend) => Bytes::new().frontend(frontend),
            Key::NodePort(protocol, port) => Bytes::new().port(*protocol, *port),
            Key::List(list) => Bytes::new().number(list.0),
            Key::Slot(list, slot) => Bytes::new().number(list.0).number(*slot),
            Key::Handle(handle) => Bytes::new().number(handle.0),
            Key::Hairpin(address) => Bytes::new().address(*address).address(*address),
            Key::Source(range, frontend) => {
                Bytes::new().address(range.network()).frontend(frontend)
            }
        }
    }

    /// Of a range, the last key.
    pub fn end_bytes(&self) -> Option<Bytes> {
        match self {
            Key::Source(range, frontend) => {
                Some(Bytes::new().address(range.broadcast()).frontend(frontend))
            }
            _ => None,
        }
    }
}

impl Value {
    /// As the kernel has it; empty for a set that is no map.
    pub fn bytes(&self) -> Bytes {
        match self {
            Value::None => Bytes::new(),
            Value::List(list) => Bytes::new().number(list.0),
            Value::Handle(handle) => Bytes::new().number(handle.0),
            Value::Endpoint(address) => Bytes::new()
                .address(address.ip())
                .push(&address.port().to_be_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_size_that_the_declaration_states() {
        let addresses = [
            ("10.0.0.1", "10.0.0.0/8", Family::Ip),
            ("fd00::1", "fd00::/8", Family::Ip6),
        ];
        for (address, range, family) in addresses {
            let address: IpAddr = address.parse().expect("address");
            let frontend = Frontend {
                address,
                protocol: Protocol::Udp,
                port: 53,
            };
            let list = ListId::new(5, 2, false);
            let keys = [
                (SetName::ClusterAddresses, Key::Address(address)),
                (SetName::ClusterIps, Key::Frontend(frontend)),
                (SetName::NodePorts, Key::NodePort(Protocol::Tcp, 30_000)),
                (SetName::LocalLists, Key::List(list)),
                (SetName::Endpoints, Key::Slot(list, 3)),
                (SetName::AffinityEndpoints, Key::Handle(Handle::new(9))),
                (SetName::Hairpin, Key::Hairpin(address)),
                (
                    SetName::SourceRanges,
                    Key::Source(range.parse().expect("range"), frontend),
                ),
            ];
            for (set, key) in keys {
                assert_eq!(
                    key.bytes().as_slice().len(),
                    set.declaration(family).key_size(),
                    "{set:?}"
                );
            }
        }
    }

    #[test]
    fn a_list_never_looks_like_a_handle() {
        let list = ListId::new(NUMBER_MASK, LARGEST_CLASS, true);
        assert_ne!(list.0 & CLASS_MASK, Handle::new(0).0 & CLASS_MASK);
        assert_eq!(list.number(), NUMBER_MASK);
    }
}
