//! Kernel settings without which no packet of a Service arrives.

use std::path::Path;

/// Sets a setting of this network namespace, unless it has the value. What is changed is logged; what can't be
/// changed too, with what it means.
fn ensure(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    match std::fs::read_to_string(&path) {
        Ok(found) if found.trim() == value => {}
        Ok(found) => match std::fs::write(&path, value) {
            Ok(()) => tracing::info!("set {name} from {} to {value}", found.trim()),
            Err(error) => {
                tracing::warn!(%error, "set {name} to {value}: Services may not be reachable from pods")
            }
        },
        Err(error) => tracing::debug!(%error, "read {name}"),
    }
}

/// Lets the node pass packets on.
pub fn enable_forwarding(ipv6: bool) {
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
