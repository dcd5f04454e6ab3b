//! kube-proxy's chains by their names, which other programs know.

use sha2::{Digest, Sha256};
use std::fmt;

/// A table of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Refuses and accepts.
    Filter,
    /// Translates addresses.
    Nat,
    /// Holds a canary only.
    Mangle,
}

impl Table {
    /// All, in the order in which they are given to `iptables-restore`: what is refused is so before it isn't
    /// translated any more.
    pub const ALL: [Table; 3] = [Table::Filter, Table::Nat, Table::Mangle];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
            Table::Mangle => "mangle",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// In nat the way to Services, in filter what refuses those without endpoints.
pub const SERVICES: &str = "KUBE-SERVICES";
/// Refuses external addresses and NodePorts without endpoints.
pub const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
/// In nat the way to NodePorts, in filter what lets health checks in.
pub const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// Masquerades what is marked.
pub const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Marks for masquerading.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// Lets through what is translated.
pub const FORWARD: &str = "KUBE-FORWARD";
/// Drops what loadBalancerSourceRanges left.
pub const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// Is gone when somebody took all rules away.
pub const CANARY: &str = "KUBE-PROXY-CANARY";
/// The kubelet's, which has the same rule: keeps others from loopback. It isn't deleted.
pub const KUBELET_FIREWALL: &str = "KUBE-FIREWALL";

/// The tables and chains that every node has, whatever its Services, but for [`KUBELET_FIREWALL`].
pub const FIXED: [(Table, &str); 12] = [
    (Table::Filter, SERVICES),
    (Table::Filter, EXTERNAL_SERVICES),
    (Table::Filter, FORWARD),
    (Table::Filter, NODE_PORTS),
    (Table::Filter, PROXY_FIREWALL),
    (Table::Filter, CANARY),
    (Table::Nat, SERVICES),
    (Table::Nat, NODE_PORTS),
    (Table::Nat, POSTROUTING),
    (Table::Nat, MARK_MASQ),
    (Table::Nat, CANARY),
    (Table::Mangle, CANARY),
];

/// How the names of chains for single Services and endpoints begin; they are in nat.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-SEP-",
    // Of kube-proxys before 1.24.
    "KUBE-XLB-",
];

/// Whether it is a single Service's or endpoint's chain.
pub fn is_of_service(chain: &str) -> bool {
    PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Whether the chain is this mode's, but for the kubelet's.
pub fn is_ours(table: Table, chain: &str) -> bool {
    FIXED.contains(&(table, chain)) || table == Table::Nat && is_of_service(chain)
}

/// A rule in a built-in chain that leads to one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// The table.
    pub table: Table,
    /// The built-in chain.
    pub from: &'static str,
    /// Ours.
    pub to: &'static str,
    comment: &'static str,
    new_only: bool,
}

const fn jump(
    table: Table,
    from: &'static str,
    to: &'static str,
    comment: &'static str,
    new_only: bool,
) -> Jump {
    Jump {
        table,
        from,
        to,
        comment,
        new_only,
    }
}

const EXTERNAL: &str = "kubernetes externally-visible service portals";
const PORTALS: &str = "kubernetes service portals";
const FIREWALL: &str = "kubernetes load balancer firewall";

/// All ways into our chains. Each missing one is put before all that is there, so that the last comes first.
pub const JUMPS: [Jump; 14] = [
    jump(Table::Filter, "INPUT", EXTERNAL_SERVICES, EXTERNAL, true),
    jump(Table::Filter, "FORWARD", EXTERNAL_SERVICES, EXTERNAL, true),
    jump(
        Table::Filter,
        "INPUT",
        NODE_PORTS,
        "kubernetes health check service ports",
        false,
    ),
    jump(Table::Filter, "FORWARD", SERVICES, PORTALS, true),
    jump(Table::Filter, "OUTPUT", SERVICES, PORTALS, true),
    jump(
        Table::Filter,
        "FORWARD",
        FORWARD,
        "kubernetes forwarding rules",
        false,
    ),
    jump(Table::Filter, "INPUT", PROXY_FIREWALL, FIREWALL, true),
    jump(Table::Filter, "OUTPUT", PROXY_FIREWALL, FIREWALL, true),
    jump(Table::Filter, "FORWARD", PROXY_FIREWALL, FIREWALL, true),
    jump(Table::Nat, "OUTPUT", SERVICES, PORTALS, false),
    jump(Table::Nat, "PREROUTING", SERVICES, PORTALS, false),
    jump(
        Table::Nat,
        "POSTROUTING",
        POSTROUTING,
        "kubernetes postrouting rules",
        false,
    ),
    jump(Table::Filter, "INPUT", KUBELET_FIREWALL, "", false),
    jump(Table::Filter, "OUTPUT", KUBELET_FIREWALL, "", false),
];

impl Jump {
    /// The rule's words, without its chain.
    pub fn rule(&self) -> String {
        let mut words = String::new();
        if self.new_only {
            words.push_str("-m conntrack --ctstate NEW ");
        }
        if !self.comment.is_empty() {
            words.push_str(&format!("-m comment --comment \"{}\" ", self.comment));
        }
        words + &self.end()
    }

    /// How any rule with the same end ends.
    pub fn end(&self) -> String {
        format!("-j {}", self.to)
    }
}

/// The first 16 digits of a SHA-256 in base32 (RFC 4648 §6): with its prefix a name fits into a chain's 28 bytes.
fn short_hash(parts: &[&str]) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    const LENGTH: u32 = 16;
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    // 16 digits of 5 bits are 10 bytes.
    let bytes = hash.finalize();
    let bits = bytes
        .iter()
        .take(10)
        .fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    (0..LENGTH)
        .rev()
        .map(|digit| char::from(DIGITS[(bits >> (5 * digit) & 31) as usize]))
        .collect()
}

/// The names of the chains of one port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortChains {
    /// To all endpoints.
    pub cluster: String,
    /// To those on this node.
    pub local: String,
    /// From external addresses and NodePorts.
    pub external: String,
    /// Through loadBalancerSourceRanges.
    pub firewall: String,
}

impl PortChains {
    /// By the port's name (`namespace/name:port`) and its protocol in lower case.
    pub fn new(port: &str, protocol: &str) -> PortChains {
        let hash = short_hash(&[port, protocol]);
        let name = |prefix: &str| format!("KUBE-{prefix}-{hash}");
        PortChains {
            cluster: name("SVC"),
            local: name("SVL"),
            external: name("EXT"),
            firewall: name("FW"),
        }
    }
}

/// The name of an endpoint's chain.
pub fn endpoint_chain(port: &str, protocol: &str, endpoint: &str) -> String {
    format!("KUBE-SEP-{}", short_hash(&[port, protocol, endpoint]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `printf %s 'ns1/svc1:p80tcp' | sha256sum`, its first ten bytes in base32.
    #[test]
    fn chains_have_upstreams_names() {
        let chains = PortChains::new("ns1/svc1:p80", "tcp");
        assert_eq!(chains.cluster, "KUBE-SVC-XPGD46QRK7WJZT7O");
        assert_eq!(chains.external, "KUBE-EXT-XPGD46QRK7WJZT7O");
        assert_eq!(
            endpoint_chain("ns1/svc1:p80", "tcp", "10.180.0.1:80"),
            "KUBE-SEP-SXIVWICOYRO3J4NJ"
        );
    }

    #[test]
    fn jumps_are_as_iptables_save_prints_them() {
        assert_eq!(
            JUMPS[0].rule(),
            "-m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" \
             -j KUBE-EXTERNAL-SERVICES"
        );
        assert_eq!(JUMPS[13].rule(), "-j KUBE-FIREWALL");
    }
}
