//! Making interfaces.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::link::{MacAddress, header};
use super::message::Message;
use super::{Netlink, Result};

/// An interface to be made. One message makes it whole: named, placed, attached and up.
#[derive(Debug, Clone, Copy)]
pub struct NewLink<'a> {
    /// At most 15 bytes, unused in its namespace.
    pub name: &'a str,
    /// What it is.
    pub kind: LinkKind<'a>,
    /// In bytes; the kind's default if absent.
    pub mtu: Option<u32>,
    /// Its hardware address; one of the kernel's if absent.
    pub mac: Option<MacAddress>,
    /// The bridge or VRF that it becomes a port of.
    pub master: Option<u32>,
    /// The interface that it stands on, in this conversation's namespace.
    pub parent: Option<u32>,
    /// The namespace that it is born in; this conversation's if absent.
    pub netns: Option<BorrowedFd<'a>>,
    /// Administratively up from the start.
    pub up: bool,
}

/// What kind of interface, with what only that kind has.
#[derive(Debug, Clone, Copy)]
pub enum LinkKind<'a> {
    /// A bridge; `vlan_filtering` makes it look at VLAN tags, `no_default_vlan` keeps new ports out of VLAN 1.
    Bridge {
        /// Ports are members of VLANs.
        vlan_filtering: bool,
        /// New ports are in no VLAN.
        no_default_vlan: bool,
    },
    /// One end of a virtual cable.
    Veth(VethPeer<'a>),
    /// Another hardware address on the parent. The number is `MACVLAN_MODE_*`.
    Macvlan {
        /// 1 private, 2 vepa, 4 bridge, 8 passthru
        mode: u32,
        /// How many broadcasts may wait; the kernel's default if absent.
        bc_queue_len: Option<u32>,
    },
    /// Another address behind the parent's hardware address.
    Ipvlan {
        /// 0 L2, 1 L3, 2 L3S
        mode: u16,
        /// 0 bridge, 1 private, 2 vepa
        flag: u16,
    },
    /// The parent's traffic with one 802.1Q tag.
    Vlan {
        /// 1 to 4094
        id: u16,
    },
    /// Swallows what is sent to it.
    Dummy,
    /// A routing domain.
    Vrf {
        /// Its routing table.
        table: u32,
    },
    /// A redirection target, where what comes in can be queued.
    Ifb,
    /// Ethernet in UDP between hosts.
    Vxlan {
        /// VXLAN network identifier, 24 bits.
        id: u32,
        /// UDP port.
        port: u16,
        /// This host's address towards the others.
        local: Option<std::net::IpAddr>,
    },
}

/// A veth's other end: born where it belongs, under its final name. It is down: the kernel can't open one end
/// before both are registered.
#[derive(Debug, Clone, Copy)]
pub struct VethPeer<'a> {
    /// Its name in its namespace.
    pub name: &'a str,
    /// Its namespace; the first end's if absent.
    pub netns: Option<BorrowedFd<'a>>,
    /// Its hardware address; one of the kernel's if absent.
    pub mac: Option<MacAddress>,
    /// In bytes.
    pub mtu: Option<u32>,
}

impl<'a> NewLink<'a> {
    /// An interface that is down, with defaults.
    pub fn new(name: &'a str, kind: LinkKind<'a>) -> Self {
        Self {
            name,
            kind,
            mtu: None,
            mac: None,
            master: None,
            parent: None,
            netns: None,
            up: false,
        }
    }
}

/// `linux/if_link.h`, `linux/veth.h`
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_MACVLAN_BC_QUEUE_LEN: u16 = 7;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_FLAGS: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VRF_TABLE: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;

impl Netlink {
    /// Makes an interface.
    ///
    /// # Errors
    /// EEXIST if the name is taken (of a veth, either end's); EOPNOTSUPP where the kernel lacks the kind; EINVAL or
    /// ERANGE for attributes that it doesn't take.
    pub fn add_link(&mut self, link: &NewLink<'_>) -> Result<()> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let up = if link.up { libc::IFF_UP as u32 } else { 0 };
        let mut message = Message::new(libc::RTM_NEWLINK, flags, &header(0, up, up));
        common(&mut message, link.name, link.netns, link.mac, link.mtu);
        for (kind, value) in [
            (libc::IFLA_MASTER, link.master),
            (libc::IFLA_LINK, link.parent),
        ] {
            value.into_iter().for_each(|value| message.u32(kind, value));
        }
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.bytes(libc::IFLA_INFO_KIND, link.kind.name().as_bytes());
            info.nested(libc::IFLA_INFO_DATA, |data| link.kind.write(data));
        });
        self.execute(message).map_err(|refusal| {
            refusal.on("add link", format!("{} {}", link.kind.name(), link.name))
        })
    }
}

fn common(
    message: &mut Message,
    name: &str,
    netns: Option<BorrowedFd<'_>>,
    mac: Option<MacAddress>,
    mtu: Option<u32>,
) {
    message.string(libc::IFLA_IFNAME, name);
    if let Some(netns) = netns {
        message.u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    }
    if let Some(mac) = mac {
        message.bytes(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = mtu {
        message.u32(libc::IFLA_MTU, mtu);
    }
}

impl LinkKind<'_> {
    /// As the kernel names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bridge { .. } => "bridge",
            Self::Veth(_) => "veth",
            Self::Macvlan { .. } => "macvlan",
            Self::Ipvlan { .. } => "ipvlan",
            Self::Vlan { .. } => "vlan",
            Self::Dummy => "dummy",
            Self::Vrf { .. } => "vrf",
            Self::Ifb => "ifb",
            Self::Vxlan { .. } => "vxlan",
        }
    }

    fn write(&self, data: &mut Message) {
        match *self {
            Self::Bridge {
                vlan_filtering,
                no_default_vlan,
            } => {
                if vlan_filtering {
                    data.u8(IFLA_BR_VLAN_FILTERING, 1);
                }
                if no_default_vlan {
                    data.u16(IFLA_BR_VLAN_DEFAULT_PVID, 0);
                }
            }
            Self::Veth(peer) => data.nested(VETH_INFO_PEER, |message| {
                message.fixed(&header(0, 0, 0));
                common(message, peer.name, peer.netns, peer.mac, peer.mtu);
            }),
            Self::Macvlan { mode, bc_queue_len } => {
                data.u32(IFLA_MACVLAN_MODE, mode);
                if let Some(length) = bc_queue_len {
                    data.u32(IFLA_MACVLAN_BC_QUEUE_LEN, length);
                }
            }
            Self::Ipvlan { mode, flag } => {
                data.u16(IFLA_IPVLAN_MODE, mode);
                data.u16(IFLA_IPVLAN_FLAGS, flag);
            }
            Self::Vlan { id } => data.u16(IFLA_VLAN_ID, id),
            Self::Vrf { table } => data.u32(IFLA_VRF_TABLE, table),
            Self::Vxlan { id, port, local } => {
                data.u32(IFLA_VXLAN_ID, id);
                data.bytes(IFLA_VXLAN_PORT, &port.to_be_bytes());
                data.u8(IFLA_VXLAN_LEARNING, 0);
                if let Some(local) = local {
                    data.ip(
                        if local.is_ipv4() {
                            IFLA_VXLAN_LOCAL
                        } else {
                            IFLA_VXLAN_LOCAL6
                        },
                        local,
                    );
                }
            }
            Self::Dummy | Self::Ifb => {}
        }
    }
}
