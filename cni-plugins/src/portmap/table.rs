//! The mappings in the kernel: maps and a few rules that look into them, in the table of the CNI plugins.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use linux::nftables::{
    ADDRESS_TYPE_LOCAL, Batch, BatchError, Chain, ChainKind, Compare, Element, ElementDump, Family,
    Field, Hook, Rule, Set, Socket, Table, address_bytes, ct_status,
};

use super::config::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP, Mapping};
use crate::masquerade::{self, TABLE};
use crate::owned::{self, Owner, name_key};
use crate::protocol::Error;

/// Any of the host's addresses: protocol and port -> container's address and port.
const PORTS: &str = "host-ports";
/// One of the host's addresses: address, protocol and port -> the same.
const ADDRESS_PORTS: &str = "host-address-ports";
/// Source and destination of what has to look as if it came from the host: the container to itself, and loopback.
const HAIRPIN: &str = "hairpin";
/// Bridge (twice), container's address, protocol and port: what turns around on the bridge has to look as if it came
/// from the host too, or the answer goes past it. Only for a host whose bridges don't show packets to the IP layer.
const TURNS: &str = "bridge-turns";
pub(super) const SETS: [&str; 4] = [PORTS, ADDRESS_PORTS, HAIRPIN, TURNS];

/// `NF_IP_PRI_RAW`, `NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`
const RAW: i32 = -300;
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

/// One mapping in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forward {
    host_ip: Option<IpAddr>,
    host_port: u16,
    protocol: u8,
    container: SocketAddr,
}

impl Forward {
    /// `None` if the mapping is for the other family.
    pub fn new(mapping: &Mapping, container: IpAddr) -> Option<Self> {
        let v6 = mapping.host_ip.map(|ip| ip.is_ipv6()).or(mapping.only_v6);
        v6.is_none_or(|v6| v6 == container.is_ipv6())
            .then_some(Self {
                host_ip: mapping.host_ip,
                host_port: mapping.host_port,
                protocol: mapping.protocol,
                container: SocketAddr::new(container, mapping.container_port),
            })
    }

    pub fn family(&self) -> Family {
        if self.container.is_ipv6() {
            Family::Ip6
        } else {
            Family::Ip
        }
    }

    /// The map that it belongs into, with its key and value there.
    fn element(&self) -> (&'static str, Vec<u8>, Vec<u8>) {
        let mut key = Vec::new();
        let map = match self.host_ip {
            Some(ip) => {
                key.extend(address_bytes(ip));
                ADDRESS_PORTS
            }
            None => PORTS,
        };
        key.extend([self.protocol, 0, 0, 0]);
        key.extend(padded_port(self.host_port));
        let mut value = address_bytes(self.container.ip());
        value.extend(padded_port(self.container.port()));
        (map, key, value)
    }

    fn turn(&self, bridge: &str) -> Vec<u8> {
        let name = name_key(bridge);
        let mut key = [name, name].concat();
        key.extend(address_bytes(self.container.ip()));
        key.extend([self.protocol, 0, 0, 0]);
        key.extend(padded_port(self.container.port()));
        key
    }

    fn hairpins(&self) -> Vec<Vec<u8>> {
        let own = address_bytes(self.container.ip());
        let mut pairs = vec![[own.clone(), own.clone()].concat()];
        if self.container.is_ipv4() {
            pairs.push([address_bytes(Ipv4Addr::LOCALHOST.into()), own].concat());
        }
        pairs
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            IPPROTO_TCP => "tcp",
            IPPROTO_UDP => "udp",
            _ => "sctp",
        };
        match self.host_ip {
            Some(ip) => write!(f, "host port {} of {ip}", self.host_port)?,
            None => write!(f, "host port {}", self.host_port)?,
        }
        write!(f, "/{protocol} to {}", self.container)
    }
}

/// Whose packets have to look as if they came from the host.
pub(super) struct Sources {
    /// The host's loopback address and the container itself.
    pub hairpin: bool,
    /// The bridge whose other containers have to.
    pub turning_bridge: Option<String>,
}

/// Adds mappings, all or none.
///
/// # Errors
/// Code 999 naming the port if it is mapped already.
pub(super) fn insert(
    socket: &mut Socket,
    family: Family,
    owner: &Owner,
    forwards: &[Forward],
    sources: &Sources,
) -> Result<(), Error> {
    let table = Table::new(family, TABLE);
    let mut batch = Batch::new();
    let chains = socket.chains(&table).map_err(failed)?;
    if !chains.iter().any(|chain| chain.name == RULES) {
        add_rules(&mut batch, &table);
    }
    for (number, forward) in forwards.iter().enumerate() {
        batch.tag(number as u32);
        let (map, key, value) = forward.element();
        let element = Element {
            comment: owner.comment(),
            ..Element::pair(&key, &value)
        };
        batch.add_element(&table, map, &element);
        let mut add = |set, key: &[u8]| {
            let comment = owner.comment();
            batch.add_element(
                &table,
                set,
                &Element {
                    comment,
                    ..Element::key(key)
                },
            );
        };
        if sources.hairpin {
            forward
                .hairpins()
                .iter()
                .for_each(|pair| add(HAIRPIN, pair));
        }
        if let Some(bridge) = &sources.turning_bridge {
            add(TURNS, &forward.turn(bridge));
        }
    }
    batch.commit(socket).map_err(|cause| match &cause {
        BatchError::Refused(refusals) => {
            let refused = refusals
                .iter()
                .find_map(|r| forwards.get(r.tag? as usize).map(|f| (f, r.errno)));
            match refused {
                Some((forward, EEXIST)) => {
                    Error::failed(format!("add {forward}: host port is already in use"))
                }
                Some((forward, _)) => Error::failed(format!("add {forward}: {cause}")),
                None => failed(cause),
            }
        }
        BatchError::Socket(_) => failed(cause),
    })
}

const EEXIST: i32 = nix::errno::Errno::EEXIST as i32;

/// The chain whose presence says that all of it is there.
const RULES: &str = "host-ports-forward";

/// The maps and the rules; emptied and filled in one transaction, so that two at once come out as one.
fn add_rules(batch: &mut Batch, table: &Table) {
    let family = table.family;
    let (saddr, daddr) = (Field::saddr(family), Field::daddr(family));
    let by_port = [Field::L4Proto, Field::ThDport];
    let by_address = [daddr, Field::L4Proto, Field::ThDport];
    let target = [daddr, Field::ThDport];
    batch.add_table(table);
    batch.add_set(table, &Set::map(PORTS, &by_port, &target));
    batch.add_set(table, &Set::map(ADDRESS_PORTS, &by_address, &target));
    batch.add_set(table, &Set::of(HAIRPIN, &[saddr, daddr]));
    let turn = [
        Field::IifName,
        Field::OifName,
        daddr,
        Field::L4Proto,
        Field::ThDport,
    ];
    batch.add_set(table, &Set::of(TURNS, &turn));

    let protocols: [&[u8]; 3] = [&[IPPROTO_TCP], &[IPPROTO_UDP], &[IPPROTO_SCTP]];
    let known = || Rule::new().is_one_of(Field::L4Proto, &protocols);
    let forward = [
        known().dnat_from(family, &by_address, ADDRESS_PORTS),
        known().dnat_from(family, &by_port, PORTS),
    ];
    chain(batch, table, &Chain::regular(RULES), &forward);

    let local = Rule::new()
        .matches(Field::FibDaddrType, &ADDRESS_TYPE_LOCAL.to_ne_bytes())
        .jump(RULES);
    let nat = |name: &str, hook, priority| Chain::base(name, ChainKind::Nat, hook, priority);
    let prerouting = nat("host-ports-prerouting", Hook::Prerouting, DESTINATION_NAT);
    chain(batch, table, &prerouting, std::slice::from_ref(&local));
    chain(
        batch,
        table,
        &nat("host-ports-output", Hook::Output, DESTINATION_NAT),
        &[local],
    );
    let masqueraded = [
        Rule::new().is_in(&[saddr, daddr], HAIRPIN).masquerade(),
        known()
            .has_any(Field::CtStatus, ct_status::DNAT)
            .is_in(&turn, TURNS)
            .masquerade(),
    ];
    chain(
        batch,
        table,
        &nat("host-ports-postrouting", Hook::Postrouting, SOURCE_NAT),
        &masqueraded,
    );
    if family == Family::Ip {
        let martian = Rule::new()
            .interface(Field::IifName, Compare::NotEqual, "lo")
            .in_network(daddr, Compare::Equal, Ipv4Addr::new(127, 0, 0, 0).into(), 8)
            .drop();
        let name = "host-ports-martians";
        chain(
            batch,
            table,
            &Chain::base(name, ChainKind::Filter, Hook::Prerouting, RAW),
            &[martian],
        );
    }
}

fn chain(batch: &mut Batch, table: &Table, chain: &Chain, rules: &[Rule]) {
    batch.add_chain(table, chain);
    batch.flush_chain(table, &chain.name);
    rules
        .iter()
        .for_each(|rule| batch.add_rule(table, &chain.name, rule));
}

/// Whether the mapping is there, and `owner`'s.
///
/// # Errors
/// The kernel's.
pub(super) fn contains(
    socket: &mut Socket,
    owner: &Owner,
    forward: &Forward,
) -> Result<bool, Error> {
    let (map, key, value) = forward.element();
    let table = Table::new(forward.family(), TABLE);
    let is_it = |element: &ElementDump| {
        element.key == key
            && element.value == value
            && element.comment.as_deref() == owner.comment()
    };
    Ok(owned::elements(socket, &table, map)
        .map_err(failed)?
        .iter()
        .any(is_it))
}

/// Deletes the table if nothing in it is of use to anybody.
///
/// # Errors
/// The kernel's.
pub(super) fn remove_if_unused(socket: &mut Socket, family: Family) -> Result<(), Error> {
    let table = Table::new(family, TABLE);
    let there = socket.tables().map_err(failed)?.contains(&table);
    if !there
        || socket
            .chains(&table)
            .map_err(failed)?
            .iter()
            .any(|chain| masquerade::is_ours(&chain.name))
    {
        return Ok(());
    }
    for set in SETS {
        if !owned::elements(socket, &table, set)
            .map_err(failed)?
            .is_empty()
        {
            return Ok(());
        }
    }
    let mut batch = Batch::new();
    batch.delete_table(&table);
    batch.commit(socket).map_err(failed)
}

/// UDP has no end of a connection: flows to the host's port that began before the mapping would go on to the host.
///
/// # Errors
/// The kernel's.
pub(super) fn forget_old_flows(socket: &mut Socket, forwards: &[Forward]) -> Result<(), Error> {
    for forward in forwards
        .iter()
        .filter(|forward| forward.protocol == IPPROTO_UDP)
    {
        let stale = |destination: SocketAddr| {
            destination.port() == forward.host_port
                && forward.host_ip.is_none_or(|ip| ip == destination.ip())
        };
        let old = socket.connections(forward.family(), IPPROTO_UDP, |entry| {
            stale(entry.original.destination)
        });
        for entry in old.map_err(failed)? {
            socket.delete_connection(&entry).map_err(failed)?;
        }
    }
    Ok(())
}

fn padded_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

pub(super) fn failed(cause: impl fmt::Display) -> Error {
    Error::failed(format!("map host ports: {cause}"))
}
