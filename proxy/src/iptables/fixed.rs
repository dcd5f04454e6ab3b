//! The rules that don't depend on the Services.

use super::names::{FORWARD, KUBELET_FIREWALL, MARK_MASQ, NODE_PORTS, POSTROUTING, Table};
use super::settings::{NodePorts, Settings, loopback};
use super::words::Words;

/// The rules of a chain that holds no Service's.
pub fn rules(table: Table, chain: &str, settings: &Settings) -> Vec<String> {
    match (table, chain) {
        (Table::Nat, POSTROUTING) => postrouting(settings),
        (Table::Nat, MARK_MASQ) => {
            let mark = settings.mark;
            vec![format!("-j MARK --set-xmark {mark:#x}/{mark:#x}")]
        }
        (Table::Filter, FORWARD) => forward(settings),
        (Table::Filter, KUBELET_FIREWALL) if settings.localhost => vec![
            Words::about("block incoming localnet connections")
                .not_from(loopback(settings.family))
                .to(loopback(settings.family))
                .matches("-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT")
                .then("-j DROP"),
        ],
        _ => Vec::new(),
    }
}

fn marked(settings: &Settings) -> String {
    let mark = settings.mark;
    format!("--mark {mark:#x}/{mark:#x}")
}

/// The mark goes with it: the packet may come through here once more.
fn postrouting(settings: &Settings) -> Vec<String> {
    let random = if settings.random_fully {
        " --random-fully"
    } else {
        ""
    };
    vec![
        format!("-m mark ! {} -j RETURN", marked(settings)),
        format!("-j MARK --set-xmark {:#x}/0x0", settings.mark),
        Words::about("kubernetes service traffic requiring SNAT")
            .then(&format!("-j MASQUERADE{random}")),
    ]
}

/// A node may drop by default what it forwards.
fn forward(settings: &Settings) -> Vec<String> {
    let invalid = "-m conntrack --ctstate INVALID -j DROP".to_owned();
    let marked = format!("-m mark {}", marked(settings));
    let rest = [
        Words::about("kubernetes forwarding rules")
            .matches(&marked)
            .then("-j ACCEPT"),
        Words::about("kubernetes forwarding conntrack rule")
            .matches("-m conntrack --ctstate RELATED,ESTABLISHED")
            .then("-j ACCEPT"),
    ];
    let first = settings.drop_invalid.then_some(invalid);
    first.into_iter().chain(rest).collect()
}

/// The way to NodePorts, after all other ways to Services. Networks and not single addresses: an address that the node
/// gets later is served at once.
pub fn node_ports(settings: &Settings) -> Vec<String> {
    let about = || {
        let note = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
        Words::about(note)
    };
    let local = "-m addrtype --dst-type LOCAL";
    let loopback = loopback(settings.family);
    match &settings.node_ports {
        NodePorts::All if settings.localhost => vec![about().matches(local).jump(NODE_PORTS)],
        NodePorts::All => vec![about().not_to(loopback).matches(local).jump(NODE_PORTS)],
        NodePorts::Networks(networks) => {
            let hidden =
                !settings.localhost && settings.node_ports.include_loopback(settings.family);
            let spare = hidden.then(|| Words::new().to(loopback).then("-j RETURN"));
            let served = networks
                .iter()
                .map(|network| about().to(*network).matches(local).jump(NODE_PORTS));
            spare.into_iter().chain(served).collect()
        }
    }
}
