//! The network of a node that nobody configured.

use std::path::Path;

use ipnet::IpNet;
use serde_json::json;

/// The name of the default network.
pub const DEFAULT_NETWORK: &str = "orlop";

/// The name of its bridge.
pub const DEFAULT_BRIDGE: &str = "orlop0";

/// The name of its configuration file.
pub const DEFAULT_CONFLIST: &str = "10-orlop.conflist";

/// The configuration that `orlop` writes when the folder has none: pods on the bridge `orlop0`, which is their
/// gateway, with an address from each of the node's pod CIDRs, masqueraded to the outside, with host ports. The leases
/// of their addresses are kept below `lease_dir` (usually `/var/lib/cni/networks`), in a folder of [`DEFAULT_NETWORK`].
pub fn default_conflist(pod_cidrs: &[IpNet], lease_dir: &Path) -> String {
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
        "name": DEFAULT_NETWORK,
        "plugins": [
            {
                "type": "bridge",
                "bridge": DEFAULT_BRIDGE,
                "isGateway": true,
                "ipMasq": true,
                "ipMasqBackend": "nftables",
                "hairpinMode": true,
                "ipam": { "type": "host-local", "dataDir": lease_dir, "ranges": ranges, "routes": routes },
            },
            { "type": "portmap", "backend": "nftables", "snat": true, "capabilities": { "portMappings": true } },
        ],
    });
    format!("{list:#}\n")
}
