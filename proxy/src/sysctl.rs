//! Kernel settings without which no packet of a Service arrives.

use crate::config::{Config, ConntrackSettings, DetectLocal, Mode};
use crate::iptables::settings::serves_localhost;
use std::path::Path;
use std::time::Duration;

/// Sets a setting of this network namespace, unless it has the value. What is changed is logged; what can't be
/// changed too, with what it means.
fn ensure(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    match std::fs::read_to_string(&path) {
        Ok(found) if found.trim() == value => {}
        Ok(found) => match std::fs::write(&path, value) {
            Ok(()) => tracing::info!("set {name} from {} to {value}", found.trim()),
            Err(error) => tracing::warn!(%error, "{name} could not be set to {value}"),
        },
        Err(error) => tracing::debug!(%error, "read {name}"),
    }
}

/// Sets what the configuration needs of the kernel in this network namespace. A bridge whose packets pass the IP layer
/// afterwards needs no care of the rules, and is taken out of the configuration.
pub fn prepare(config: &mut Config) {
    let ipv6 = matches!(&config.detect_local, DetectLocal::Networks(networks)
        if networks.iter().any(|network| network.addr().is_ipv6()));
    enable_forwarding(ipv6);
    if let Some(settings) = &config.conntrack {
        set_conntrack(settings);
    }
    if config.bridge.is_some() && enable_bridge_filtering() {
        config.bridge = None;
    }
    if let Mode::Iptables(settings) = config.mode {
        if serves_localhost(settings, config) {
            // Else the kernel drops what comes from loopback and goes elsewhere.
            ensure("net.ipv4.conf.all.route_localnet", "1");
        }
        if let Some(bridge) = &config.bridge {
            tracing::warn!(
                "the kernel has no br_netfilter: a pod on {bridge} can't reach another on it through a Service; mode nftables could"
            );
        }
    }
}

/// Lets the node pass packets on.
fn enable_forwarding(ipv6: bool) {
    ensure("net.ipv4.ip_forward", "1");
    if ipv6 {
        keep_router_advertisements();
        ensure("net.ipv6.conf.all.forwarding", "1");
    }
}

/// A host that forwards ignores router advertisements unless told not to: it would lose its default route.
fn keep_router_advertisements() {
    let Ok(interfaces) = std::fs::read_dir("/proc/sys/net/ipv6/conf") else {
        return;
    };
    for interface in interfaces.flatten() {
        let path = interface.path().join("accept_ra");
        if std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            let _ = std::fs::write(&path, "2");
        }
    }
}

/// Lets bridged packets pass the IP layer, so that answers between pods of a bridge are translated back. False if the
/// kernel can't.
pub fn enable_bridge_filtering() -> bool {
    let exists = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    if exists {
        ensure("net.bridge.bridge-nf-call-iptables", "1");
        ensure("net.bridge.bridge-nf-call-ip6tables", "1");
    }
    exists
}

/// Whether connection tracking takes TCP packets out of window for valid.
pub fn takes_packets_out_of_window() -> bool {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
        .is_ok_and(|text| text.trim() != "0")
}

/// Sets connection tracking's limits. A larger limit that is there already stays.
fn set_conntrack(settings: &ConntrackSettings) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let wanted = settings
        .max_per_core
        .saturating_mul(cores)
        .max(settings.min);
    let found = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    let found: u32 = found
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    if settings.max_per_core != 0 && wanted > found {
        ensure("net.netfilter.nf_conntrack_max", &wanted.to_string());
    }
    let timeout = |name: &str, value: Option<Duration>| {
        if let Some(value) = value {
            ensure(
                &format!("net.netfilter.nf_conntrack_{name}"),
                &value.as_secs().to_string(),
            );
        }
    };
    timeout("tcp_timeout_established", settings.tcp_established);
    timeout("tcp_timeout_close_wait", settings.tcp_close_wait);
    timeout("udp_timeout", settings.udp);
    timeout("udp_timeout_stream", settings.udp_stream);
    if settings.tcp_be_liberal {
        ensure("net.netfilter.nf_conntrack_tcp_be_liberal", "1");
    }
}
