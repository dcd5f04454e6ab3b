//! Packets from a network to the outside get the host's address.
//!
//! One chain of the table `orlop-cni` for each subnet, made when its first container is connected. It says the same
//! for all containers of the subnet, so an ADD that finds it changes nothing, and a DEL has nothing to take back.

use std::net::IpAddr;

use ipnet::IpNet;
use linux::nftables::{Batch, Chain, ChainKind, Compare, Family, Field, Hook, Rule, Socket, Table};

use crate::protocol::Error;

/// The table of the CNI plugins, in each of the two IP families.
pub const TABLE: &str = "orlop-cni";

/// `NF_IP_PRI_NAT_SRC`
const SOURCE_NAT: i32 = 100;

/// Makes the rules for the subnets of `addresses`, unless they are there.
///
/// # Errors
/// The kernel's; EOPNOTSUPP in one without nftables or its nat.
pub fn ensure(addresses: impl IntoIterator<Item = IpNet>) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(failed)?;
    for subnet in addresses.into_iter().map(|address| address.trunc()) {
        let table = Table::new(family(subnet), TABLE);
        let name = chain_name(subnet);
        let chains = socket.chains(&table).map_err(failed)?;
        if chains.iter().any(|chain| chain.name == name) {
            continue;
        }
        // Emptied and filled in one transaction: two at once come out as one.
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(
            &table,
            &Chain::base(&name, ChainKind::Nat, Hook::Postrouting, SOURCE_NAT),
        );
        batch.flush_chain(&table, &name);
        batch.add_rule(&table, &name, &rule(subnet));
        batch.commit(&mut socket).map_err(failed)?;
    }
    Ok(())
}

/// Removes the rules of subnets that end. Rules that aren't there are no error.
///
/// # Errors
/// The kernel's.
pub fn remove(addresses: impl IntoIterator<Item = IpNet>) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(failed)?;
    for subnet in addresses.into_iter().map(|address| address.trunc()) {
        let table = Table::new(family(subnet), TABLE);
        let name = chain_name(subnet);
        if socket
            .chains(&table)
            .map_err(failed)?
            .iter()
            .any(|chain| chain.name == name)
        {
            let mut batch = Batch::new();
            batch.flush_chain(&table, &name);
            batch.delete_chain(&table, &name);
            batch.commit(&mut socket).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether a chain is one of this module's.
pub fn is_ours(chain: &str) -> bool {
    chain.starts_with(PREFIX)
}

const PREFIX: &str = "masquerade-";

fn rule(subnet: IpNet) -> Rule {
    let family = family(subnet);
    let (multicast, length): (IpAddr, u8) = match subnet {
        IpNet::V4(_) => ([224, 0, 0, 0].into(), 4),
        IpNet::V6(_) => ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    Rule::new()
        .in_network(
            Field::saddr(family),
            Compare::Equal,
            subnet.addr(),
            subnet.prefix_len(),
        )
        .in_network(
            Field::daddr(family),
            Compare::NotEqual,
            subnet.addr(),
            subnet.prefix_len(),
        )
        .in_network(Field::daddr(family), Compare::NotEqual, multicast, length)
        .masquerade()
}

fn family(subnet: IpNet) -> Family {
    match subnet {
        IpNet::V4(_) => Family::Ip,
        IpNet::V6(_) => Family::Ip6,
    }
}

/// `masquerade-10.244.0.0-24`; a colon can't be in a name that `nft` reads.
fn chain_name(subnet: IpNet) -> String {
    format!("{PREFIX}{}-{}", subnet.addr(), subnet.prefix_len()).replace(':', "_")
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::failed(format!("masquerade: {cause}"))
}
