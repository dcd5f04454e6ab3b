//! The proxy with a real kernel: an API in memory, packets between network namespaces. Needs root and `ip`, `nft`,
//! `iptables`.

mod api;
mod chains;
mod lab;
mod measure;
mod packets;
mod random;
mod rules;
mod serving;

use api::Api;
use lab::{Lab, Namespace};
use linux::namespace::{NamespaceKind, unshare};
use proxy::{Config, IptablesSettings, Mode, Progress};
use serde_json::{Value, json};
use std::net::IpAddr;

pub type Running = lab::Running<Progress, proxy::Error>;

/// Starts a proxy and waits until its rules stand.
pub fn start(api: &Api, namespace: &Namespace, config: Config) -> Running {
    let running = start_unsynced(api, namespace, config);
    running.wait_for(|progress| progress.synced());
    running
}

pub fn start_unsynced(api: &Api, namespace: &Namespace, config: Config) -> Running {
    let api = api.clone();
    Running::start(namespace, config.progress(), move |shutdown| {
        proxy::run(config, api.client(), shutdown)
    })
}

impl Running {
    /// Does something to the API and waits for the transaction that it leads to.
    pub fn after(&self, change: impl FnOnce()) -> Progress {
        let before = self.progress().transactions;
        change();
        self.wait_for(|progress| progress.transactions > before);
        self.progress()
    }
}

pub fn config() -> Config {
    let networks = ["10.244.0.0/16", "fd00:10:244::/48"].map(|text| text.parse().expect("network"));
    Config {
        bridge: Some("orlop0".into()),
        ..Config::new("node", networks.to_vec())
    }
}

/// What makes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nftables,
    /// `iptables` as the host has it, which is the nf_tables kind on Debian.
    Iptables,
    /// Its older kind.
    LegacyIptables,
}

impl Kind {
    pub fn mode(self) -> Mode {
        match self {
            Kind::Nftables => Mode::Nftables,
            _ => Mode::Iptables(IptablesSettings::default()),
        }
    }

    pub fn config(self) -> Config {
        Config {
            mode: self.mode(),
            ..config()
        }
    }

    /// Lets the namespace's `iptables` be of this kind.
    pub fn prepare(self, namespace: &Namespace) {
        if self == Kind::LegacyIptables {
            namespace.run(|| unshare(&[NamespaceKind::Mount]).expect("a mount namespace"));
            namespace.command("mount --make-rprivate /");
            namespace
                .command("mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi");
            assert!(
                !namespace
                    .command("iptables --version")
                    .contains("nf_tables")
            );
        }
    }

    pub fn lab(self, pods: usize) -> Lab {
        let lab = Lab::new(pods);
        self.prepare(&lab.node);
        lab
    }
}

/// A Service `default/web` with one port, 80 to 8080.
pub fn service(cluster_ip: &str) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": { "namespace": "default", "name": "web" },
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }]
        }
    })
}

/// Changes a JSON value by a merge.
pub fn merged(mut object: Value, patch: Value) -> Value {
    fn merge(into: &mut Value, patch: Value) {
        match (into, patch) {
            (Value::Object(into), Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }
    merge(&mut object, patch);
    object
}

/// The slice of `default/web`, with ready endpoints on this node.
pub fn slice(addresses: &[IpAddr]) -> Value {
    let endpoint = |address: &IpAddr| json!({ "addresses": [address.to_string()], "nodeName": "node", "conditions": { "ready": true } });
    slice_of(
        addresses.first().is_some_and(IpAddr::is_ipv6),
        addresses.iter().map(endpoint).collect(),
    )
}

pub fn slice_of(ipv6: bool, endpoints: Vec<Value>) -> Value {
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "namespace": "default", "name": "web-1", "labels": { "kubernetes.io/service-name": "web" }
        },
        "addressType": if ipv6 { "IPv6" } else { "IPv4" },
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }, { "name": "dns", "port": 8080, "protocol": "UDP" }]
    })
}
