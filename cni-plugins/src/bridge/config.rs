//! The configuration of `bridge`, in upstream's keys.

use linux::netlink::MacAddress;
use serde::Deserialize;

use super::vlan::VlanRange;
use crate::attach::MacConf;
use crate::delegate;
use crate::protocol::{Error, Request};

/// What is to be made, all checked.
#[derive(Debug)]
pub(super) struct Config {
    /// The bridge's name.
    pub bridge: String,
    /// The bridge gets the gateway's address.
    pub is_gateway: bool,
    /// The container's default route goes by the bridge.
    pub is_default_gateway: bool,
    /// Another address of the bridge's is replaced.
    pub force_address: bool,
    /// Traffic to the outside gets the host's address.
    pub masquerade: bool,
    /// Of the bridge and both ends; the kernel's default if absent.
    pub mtu: Option<u32>,
    /// A container reaches itself by the host.
    pub hairpin: bool,
    /// The bridge receives every frame.
    pub promiscuous: bool,
    /// The container's VLAN, untagged.
    pub vlan: Option<u16>,
    /// VLANs that the container sees tagged.
    pub trunk: Vec<VlanRange>,
    /// The port stays in VLAN 1 too.
    pub preserve_default_vlan: bool,
    /// The container's hardware address.
    pub mac: Option<MacAddress>,
    /// IPv6 addresses are probed for duplicates.
    pub detect_duplicates: bool,
    /// The container's interface is left down.
    pub disable_container_interface: bool,
    /// The container sends from its own hardware address only.
    pub mac_spoof_check: bool,
    /// Containers can't reach one another on the link.
    pub isolated: bool,
    /// Addresses come from an address plugin.
    pub has_ipam: bool,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NetConf {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: u32,
    vlan_trunk: Vec<Trunk>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    #[serde(flatten)]
    mac: MacConf,
}

impl Default for NetConf {
    fn default() -> Self {
        Self {
            bridge: "cni0".to_owned(),
            preserve_default_vlan: true,
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: Vec::new(),
            macspoofchk: false,
            enabledad: false,
            disable_container_interface: false,
            port_isolation: false,
            mac: MacConf::default(),
        }
    }
}

#[derive(Deserialize)]
struct Trunk {
    #[serde(rename = "minID")]
    min: Option<u32>,
    #[serde(rename = "maxID")]
    max: Option<u32>,
    id: Option<u32>,
}

impl Config {
    pub(super) fn read(request: &Request) -> Result<Self, Error> {
        let conf: NetConf = request.config()?;
        if conf.hairpin_mode && conf.promisc_mode {
            return Err(Error::config(
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        if let Some(backend) = conf
            .ip_masq_backend
            .as_deref()
            .filter(|b| !["", "iptables", "nftables"].contains(b))
        {
            return Err(Error::config(format!(
                "ipMasqBackend: unknown backend {backend:?}"
            )));
        }
        let has_ipam = delegate::ipam_type(request).is_some();
        if conf.disable_container_interface && has_ipam {
            return Err(Error::config(
                "cannot use IPAM when disableContainerInterface flag is set",
            ));
        }
        Ok(Self {
            is_gateway: conf.is_gateway || conf.is_default_gateway,
            is_default_gateway: conf.is_default_gateway,
            force_address: conf.force_address,
            masquerade: conf.ip_masq,
            mtu: Some(conf.mtu).filter(|mtu| *mtu != 0),
            hairpin: conf.hairpin_mode,
            promiscuous: conf.promisc_mode,
            vlan: vlan_id("vlan", conf.vlan, 0)?.filter(|id| *id != 0),
            trunk: trunk(&conf.vlan_trunk)?,
            preserve_default_vlan: conf.preserve_default_vlan,
            mac: conf.mac.read(request)?,
            detect_duplicates: conf.enabledad,
            disable_container_interface: conf.disable_container_interface,
            mac_spoof_check: conf.macspoofchk,
            isolated: conf.port_isolation,
            has_ipam,
            bridge: conf.bridge,
        })
    }

    /// Whether the bridge looks at VLAN tags.
    pub(super) fn filters_vlans(&self) -> bool {
        self.vlan.is_some() || !self.trunk.is_empty()
    }
}

fn vlan_id(key: &str, id: u32, lowest: u16) -> Result<Option<u16>, Error> {
    match u16::try_from(id) {
        Ok(short) if (lowest..=4094).contains(&short) => Ok(Some(short)),
        _ => Err(Error::config(format!(
            "{key}: invalid VLAN ID {id} (must be between {lowest} and 4094)"
        ))),
    }
}

fn trunk(list: &[Trunk]) -> Result<Vec<VlanRange>, Error> {
    let mut ranges = Vec::new();
    for (number, entry) in list.iter().enumerate() {
        let key = |name: &str| format!("vlanTrunk[{number}].{name}");
        let id = |name: &str, id: Option<u32>| {
            id.map(|id| vlan_id(&key(name), id, 1))
                .transpose()
                .map(Option::flatten)
        };
        match (id("minID", entry.min)?, id("maxID", entry.max)?) {
            (Some(first), Some(last)) if first <= last => ranges.push(VlanRange { first, last }),
            (None, None) => {}
            (Some(_), Some(_)) => {
                return Err(Error::config(format!(
                    "{}: greater than maxID",
                    key("minID")
                )));
            }
            _ => {
                return Err(Error::config(format!(
                    "{}: minID and maxID must be configured together",
                    key("minID")
                )));
            }
        }
        ranges.extend(id("id", entry.id)?.map(|id| VlanRange {
            first: id,
            last: id,
        }));
    }
    Ok(ranges)
}
