//! A container sends from its own hardware address only.
//!
//! Two sets in a table of the bridge family: which ports are checked, and the address that each may send from. Adding or
//! removing a port changes no rule. The check comes before the bridge looks at a frame, so that nobody can even make it
//! learn another's address.

use linux::netlink::MacAddress;
use linux::nftables::{
    Batch, Chain, ChainKind, Element, Family, Field, Hook, Rule, Set, Socket, Table,
};

use crate::masquerade::TABLE;
use crate::owned::{self, Owner, name_key};
use crate::protocol::Error;

const PORTS: &str = "checked-ports";
const ADDRESSES: &str = "port-addresses";
const SETS: [&str; 2] = [PORTS, ADDRESSES];
const CHAIN: &str = "port-addresses-prerouting";
/// `NF_BR_PRI_NAT_DST_BRIDGED`, where upstream's check is too.
const FIRST: i32 = -300;

fn table() -> Table {
    Table::new(Family::Bridge, TABLE)
}

/// From now on only frames from `mac` come in by `port`.
///
/// # Errors
/// The kernel's; EOPNOTSUPP in one without nftables for bridges.
pub fn add(owner: &Owner, port: &str, mac: MacAddress) -> Result<(), Error> {
    let table = table();
    let mut socket = Socket::open().map_err(failed)?;
    let chains = socket.chains(&table).map_err(failed)?;
    let mut batch = Batch::new();
    if !chains.iter().any(|chain| chain.name == CHAIN) {
        add_rules(&mut batch, &table);
    }
    let comment = owner.comment();
    for (set, key) in [
        (PORTS, name_key(port).to_vec()),
        (ADDRESSES, key(port, mac)),
    ] {
        let element = Element {
            comment,
            ..Element::key(&key)
        };
        batch.add_element(&table, set, &element);
    }
    batch.commit(&mut socket).map_err(failed)
}

/// Emptied and filled in one transaction: two at once come out as one.
fn add_rules(batch: &mut Batch, table: &Table) {
    let port_and_address = [Field::IifName, Field::EtherSaddr];
    batch.add_table(table);
    batch.add_set(table, &Set::of(PORTS, &[Field::IifName]));
    batch.add_set(table, &Set::of(ADDRESSES, &port_and_address));
    let chain = Chain::base(CHAIN, ChainKind::Filter, Hook::Prerouting, FIRST);
    batch.add_chain(table, &chain);
    batch.flush_chain(table, CHAIN);
    let foreign = Rule::new()
        .is_in(&[Field::IifName], PORTS)
        .is_not_in(&port_and_address, ADDRESSES);
    batch.add_rule(table, CHAIN, &foreign.drop());
}

/// The port's name and the address, each filled to whole words.
fn key(port: &str, mac: MacAddress) -> Vec<u8> {
    let mut key = name_key(port).to_vec();
    key.extend(mac.0);
    key.extend([0, 0]);
    key
}

/// Ends the check of the ports whose owner is `unwanted`.
///
/// # Errors
/// The kernel's.
pub fn remove(unwanted: impl Fn(&Owner) -> bool) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(failed)?;
    owned::remove(&mut socket, &table(), &SETS, unwanted).map_err(failed)
}

/// Whether `port` may send from `mac` only.
///
/// # Errors
/// Code 999 if not; the kernel's.
pub fn check(port: &str, mac: MacAddress) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(failed)?;
    let key = key(port, mac);
    let mut found = owned::elements(&mut socket, &table(), ADDRESSES).map_err(failed)?;
    found.retain(|element| element.key.starts_with(&name_key(port)));
    match found.as_slice() {
        [only] if only.key == key => Ok(()),
        _ => Err(Error::failed(format!(
            "check {port}: not limited to frames from {mac}"
        ))),
    }
}

/// Deletes the table if no port is checked.
///
/// # Errors
/// The kernel's.
pub fn remove_if_unused() -> Result<(), Error> {
    let table = table();
    let mut socket = Socket::open().map_err(failed)?;
    let is_there = socket.tables().map_err(failed)?.contains(&table);
    let ports = owned::elements(&mut socket, &table, PORTS).map_err(failed)?;
    if !is_there || !ports.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.delete_table(&table);
    batch.commit(&mut socket).map_err(failed)
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::failed(format!("macspoofchk: {cause}"))
}
