//! The network of a node that nobody configured.

use ipnet::IpNet;
use serde_json::json;

/// The configuration that `orlop` writes when the folder has none: pods on the bridge `orlop0`, which is their
/// gateway, with an address from each of the node's pod CIDRs, masqueraded to the outside, with host ports.
pub fn default_conflist(pod_cidrs: &[IpNet]) -> String {
    let ranges: Vec<_> = pod_cidrs
        .iter()
        .map(|cidr| json!([{ "subnet": cidr.trunc().to_string() }]))
        .collect();
    let routes: Vec<_> = pod_cidrs
        .iter()
        .map(|cidr| match cidr {
            IpNet::V4(_) => json!({ "dst": "0.0.0.0/0" }),
            IpNet::V6(_) => json!({ "dst": "::/0" }),
        })
        .collect();
    let list = json!({
        "cniVersion": "1.1.0",
        "name": "orlop",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "orlop0",
                "isGateway": true,
                "ipMasq": true,
                "ipMasqBackend": "nftables",
                "hairpinMode": true,
                "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
            },
            { "type": "portmap", "backend": "nftables", "snat": true, "capabilities": { "portMappings": true } },
        ],
    });
    format!("{list:#}\n")
}
