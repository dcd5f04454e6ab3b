//! Membership of a bridge's ports in VLANs.

use super::Result;
use super::conversation::Netlink;
use super::message::Message;

/// VLANs that a port is a member of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgeVlan {
    /// 1 to 4094
    pub first: u16,
    /// Not less than `first`.
    pub last: u16,
    /// What comes in without a tag belongs to it, and what goes out for it carries none; only for a single VLAN.
    pub untagged: bool,
}

/// `linux/if_bridge.h`
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;
const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 1 << 3;
const BRIDGE_VLAN_INFO_RANGE_END: u16 = 1 << 4;

impl Netlink {
    /// Makes the port `index` of a bridge a member of VLANs.
    ///
    /// # Errors
    /// EOPNOTSUPP if it is no bridge's port; EINVAL for ids out of range.
    pub fn add_bridge_vlan(&mut self, index: u32, vlan: &BridgeVlan) -> Result<()> {
        let flags = if vlan.untagged {
            BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED
        } else {
            0
        };
        let message = request(libc::RTM_SETLINK, index, vlan.first, vlan.last, flags);
        let object = || format!("{} to {} of interface {index}", vlan.first, vlan.last);
        self.execute(message)
            .map_err(|refusal| refusal.on("add bridge vlan", object()))
    }

    /// Takes the port `index` of a bridge out of one VLAN. Does nothing if it is not in it.
    ///
    /// # Errors
    /// As [`Netlink::add_bridge_vlan`].
    pub fn delete_bridge_vlan(&mut self, index: u32, id: u16) -> Result<()> {
        match self.execute(request(libc::RTM_DELLINK, index, id, id, 0)) {
            Err(refusal) if refusal.errno != libc::ENOENT => {
                Err(refusal.on("delete bridge vlan", format!("{id} of interface {index}")))
            }
            _ => Ok(()),
        }
    }
}

fn request(kind: u16, index: u32, first: u16, last: u16, flags: u16) -> Message {
    let mut header = super::link::header(index, 0, 0);
    header[0] = libc::AF_BRIDGE as u8;
    let mut message = Message::new(kind, libc::NLM_F_ACK, &header);
    // `struct bridge_vlan_info`: flags, id
    let info = |flags: u16, id: u16| [flags.to_ne_bytes(), id.to_ne_bytes()].concat();
    message.nested(libc::IFLA_AF_SPEC, |spec| {
        if first == last {
            spec.bytes(IFLA_BRIDGE_VLAN_INFO, &info(flags, first));
        } else {
            spec.bytes(
                IFLA_BRIDGE_VLAN_INFO,
                &info(flags | BRIDGE_VLAN_INFO_RANGE_BEGIN, first),
            );
            spec.bytes(
                IFLA_BRIDGE_VLAN_INFO,
                &info(flags | BRIDGE_VLAN_INFO_RANGE_END, last),
            );
        }
    });
    message
}
