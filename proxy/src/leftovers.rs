//! What a kube-proxy leaves behind when it ends: its own nftables table, or chains among others' in the tables that
//! `iptables` keeps in nf_tables, or ipvs mode's device that holds the Services' addresses.

use linux::netlink::{self, Netlink};
use linux::nftables::{Batch, BatchError, Family, Socket, Table};

/// kube-proxy's table in nftables mode.
const TABLE: &str = "kube-proxy";
/// The device of ipvs mode: every address on it is the node's own, and NodePorts answer there too.
const IPVS_DEVICE: &str = "kube-ipvs0";
/// Where `iptables` of the nf_tables kind has its chains.
const IPTABLES_TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// kube-proxy's chains in iptables and ipvs mode. The kubelet's own (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`) aren't
/// among them.
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-MARK-DROP",
];
/// How the names of its chains for single Services and endpoints begin.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-XLB-",
];

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Deletes the rules that it finds, each table in a transaction of its own. Connections that are established go on.
///
/// # Errors
/// The kernel's; what was deleted before stays deleted.
pub fn delete(socket: &mut Socket) -> Result<(), BatchError> {
    for table in socket.tables()? {
        if table.name == TABLE && table.family != Family::Inet {
            let mut batch = Batch::new();
            batch.delete_table(&table);
            batch.commit(socket)?;
        }
    }
    delete_iptables(socket)?;
    warn_of_others();
    Ok(())
}

/// The same, of what `iptables` of the nf_tables kind has alone.
///
/// # Errors
/// As [`delete`].
pub fn delete_iptables(socket: &mut Socket) -> Result<(), BatchError> {
    for table in socket.tables()? {
        if IPTABLES_TABLES.contains(&table.name.as_str()) && table.family != Family::Inet {
            delete_chains(socket, &table)?;
        }
    }
    Ok(())
}

fn delete_chains(socket: &mut Socket, table: &Table) -> Result<(), BatchError> {
    let chains = socket.chains(table)?;
    let ours: Vec<&str> = chains
        .iter()
        .map(|chain| chain.name.as_str())
        .filter(|name| is_kube_proxys(name))
        .collect();
    if ours.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for rule in socket.rules(table)? {
        let leads_to_ours = rule.leads_to().is_some_and(is_kube_proxys);
        if leads_to_ours && !is_kube_proxys(&rule.chain) {
            batch.delete_rule(table, &rule.chain, rule.handle);
        }
    }
    for chain in &ours {
        batch.flush_chain(table, chain);
    }
    for chain in &ours {
        batch.delete_chain(table, chain);
    }
    batch.commit(socket)
}

/// Deletes ipvs mode's device and the addresses on it; none there is no error.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN.
pub fn delete_device() -> netlink::Result<()> {
    Netlink::open()?.delete_link_by_name(IPVS_DEVICE)
}

/// What is left is named.
fn warn_of_others() {
    let holds =
        |path: &str| std::fs::read_to_string(path).is_ok_and(|text| !text.trim().is_empty());
    if holds("/proc/net/ip_tables_names") || holds("/proc/net/ip6_tables_names") {
        tracing::warn!(
            "this host has legacy iptables tables: kube-proxy's rules in them, if any, are left as they are"
        );
    }
    // Three lines of heading.
    if std::fs::read_to_string("/proc/net/ip_vs").is_ok_and(|text| text.lines().count() > 3) {
        tracing::warn!(
            "ipvs has virtual servers, which are left as they are: if all are kube-proxy's, run `ipvsadm --clear`"
        );
    }
}
