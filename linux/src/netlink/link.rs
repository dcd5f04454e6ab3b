//! Network interfaces: what they are, and what can be changed about them.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use super::Result;
use super::conversation::Netlink;
use super::message::{Message, attributes, text, u16_at, u32_at, u64_at};

pub use super::new_link::{LinkKind, NewLink, VethPeer};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad = || format!("{text:?} is not a hardware address like 0a:58:0a:f4:00:05");
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(bad)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(Self(octets))
        }
    }
}

/// An interface, as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFF_*`
    pub flags: u32,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Its hardware address; none for loopback's all zero kind and for tunnels.
    pub mac: Option<MacAddress>,
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// The interface it stands on (VLAN, macvlan), or a veth's other end, in that end's namespace.
    pub parent: Option<u32>,
    /// `veth`, `bridge`, ...; none for a physical one.
    pub kind: Option<String>,
    /// A free text that whoever made it left.
    pub alias: String,
    /// How many packets may wait to be sent.
    pub tx_queue_len: u32,
    /// How many asked for promiscuous mode.
    pub promiscuity: u32,
    /// `IFLA_INFO_DATA`, unparsed.
    kind_data: Vec<u8>,
}

/// What an interface counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkStatistics {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Failures to send.
    pub tx_errors: u64,
    /// Packets dropped instead of sent.
    pub tx_dropped: u64,
}

impl Link {
    /// Whether it is administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }

    /// Whether promiscuous mode was asked for by an administrator or a plugin (not by a sniffer).
    pub fn is_promiscuous(&self) -> bool {
        self.flags & libc::IFF_PROMISC as u32 != 0
    }

    /// Whether it receives all multicast frames.
    pub fn is_all_multicast(&self) -> bool {
        self.flags & libc::IFF_ALLMULTI as u32 != 0
    }

    /// Whether it is of this kind.
    pub fn is_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }

    /// One attribute of its kind's own, by its number in `linux/if_link.h`.
    pub fn kind_attribute(&self, number: u16) -> Option<&[u8]> {
        attributes(&self.kind_data)
            .find(|(kind, _)| *kind == number)
            .map(|(_, value)| value)
    }

    /// One attribute of its kind's own, a number of 8, 16 or 32 bits.
    pub fn kind_number(&self, number: u16) -> Option<u32> {
        let value = self.kind_attribute(number)?;
        match value.len() {
            1 => value.first().map(|byte| u32::from(*byte)),
            2 => u16_at(value, 0).map(u32::from),
            _ => u32_at(value, 0),
        }
    }
}

/// Changes to an interface: what is `None` stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkChange<'a> {
    /// Its name; the interface must be down on kernels before 6.2.
    pub name: Option<&'a str>,
    /// Administratively up or down.
    pub up: Option<bool>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
    /// The interface that it becomes a port of, 0 for none.
    pub master: Option<u32>,
    /// A free text, at most 255 bytes.
    pub alias: Option<&'a str>,
    /// Receives every frame on the link.
    pub promiscuous: Option<bool>,
    /// Receives every multicast frame.
    pub all_multicast: Option<bool>,
    /// Packets.
    pub tx_queue_len: Option<u32>,
    /// The namespace that it moves to. Slow: a veth's peer is better born there ([`VethPeer`]).
    pub netns: Option<BorrowedFd<'a>>,
    /// Its properties as a port of a bridge, which it must be already.
    pub port: Option<BridgePort>,
    /// A bridge's own filtering by VLAN.
    pub vlan_filtering: Option<bool>,
}

/// How a bridge treats one of its ports; what is absent stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// A frame may go back out by the port that it came in by.
    pub hairpin: Option<bool>,
    /// No frames to or from other isolated ports.
    pub isolated: Option<bool>,
}

impl Netlink {
    /// An interface by its name; `None` if there is none.
    ///
    /// # Errors
    /// ERANGE for a name of more than 15 bytes.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = get(0);
        message.string(libc::IFLA_IFNAME, name);
        self.get_link(message, name)
    }

    /// An interface by its number; `None` if there is none.
    ///
    /// # Errors
    /// None that can be foreseen.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.get_link(get(index), &format!("interface {index}"))
    }

    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// ENOBUFS and its like.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let ask = || {
            let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; 16]);
            message.u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
            message
        };
        self.dump(ask, read)
            .map_err(|refusal| refusal.on("list", "links"))
    }

    /// What an interface counted; `None` if there is no such interface.
    ///
    /// # Errors
    /// None that can be foreseen.
    pub fn link_statistics(&mut self, name: &str) -> Result<Option<LinkStatistics>> {
        let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &header(0, 0, 0));
        message.string(libc::IFLA_IFNAME, name);
        match self.query(message, read_statistics) {
            Err(refusal) if refusal.errno == libc::ENODEV => Ok(None),
            other => other.map_err(|refusal| refusal.on("read statistics of link", name)),
        }
    }

    /// Changes an interface; all of `change`, or in the order of the kernel as far as it went.
    ///
    /// # Errors
    /// ENODEV; EINVAL, ERANGE and EBUSY for what the interface can't be.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<()> {
        let message = change_request(index, change);
        self.execute(message)
            .map_err(|refusal| refusal.on("change link", format!("interface {index} to {change}")))
    }

    /// Deletes an interface and waits until the kernel is rid of it (some 16 ms). Does nothing if it is gone.
    ///
    /// # Errors
    /// EOPNOTSUPP for a physical one.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        match self.execute(Message::new(
            libc::RTM_DELLINK,
            libc::NLM_F_ACK,
            &header(index, 0, 0),
        )) {
            Err(refusal) if refusal.errno != libc::ENODEV => {
                Err(refusal.on("delete link", format!("interface {index}")))
            }
            _ => Ok(()),
        }
    }

    /// The same by name.
    ///
    /// # Errors
    /// EOPNOTSUPP for a physical one.
    pub fn delete_link_by_name(&mut self, name: &str) -> Result<()> {
        let mut message = Message::new(libc::RTM_DELLINK, libc::NLM_F_ACK, &header(0, 0, 0));
        message.string(libc::IFLA_IFNAME, name);
        match self.execute(message) {
            Err(refusal) if refusal.errno != libc::ENODEV => Err(refusal.on("delete link", name)),
            _ => Ok(()),
        }
    }

    fn get_link(&mut self, message: Message, object: &str) -> Result<Option<Link>> {
        match self.query(message, read) {
            Err(refusal) if refusal.errno == libc::ENODEV => Ok(None),
            other => other.map_err(|refusal| refusal.on("get link", object)),
        }
    }
}

/// `linux/rtnetlink.h`
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `linux/if_link.h`
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BR_VLAN_FILTERING: u16 = 7;

fn get(index: u32) -> Message {
    let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_ACK, &header(index, 0, 0));
    message.u32(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    message
}

/// `struct ifinfomsg`
pub(super) fn header(index: u32, flags: u32, changed: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&changed.to_ne_bytes());
    bytes
}

fn change_request(index: u32, change: &LinkChange<'_>) -> Message {
    let wanted = [
        (change.up, libc::IFF_UP),
        (change.promiscuous, libc::IFF_PROMISC),
        (change.all_multicast, libc::IFF_ALLMULTI),
    ];
    let changed = wanted
        .iter()
        .filter(|(on, _)| on.is_some())
        .fold(0, |all, (_, flag)| all | *flag as u32);
    let flags = wanted
        .iter()
        .filter(|(on, _)| *on == Some(true))
        .fold(0, |all, (_, flag)| all | *flag as u32);
    // NEWLINK without CREATE rather than SETLINK, which ignores the attributes of a kind and of a port.
    let mut message = Message::new(
        libc::RTM_NEWLINK,
        libc::NLM_F_ACK,
        &header(index, flags, changed),
    );
    if let Some(name) = change.name {
        message.string(libc::IFLA_IFNAME, name);
    }
    if let Some(mac) = change.mac {
        message.bytes(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(alias) = change.alias {
        message.bytes(libc::IFLA_IFALIAS, alias.as_bytes());
    }
    if let Some(netns) = change.netns {
        message.u32(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    }
    let numbers = [
        (libc::IFLA_MTU, change.mtu),
        (libc::IFLA_MASTER, change.master),
        (libc::IFLA_TXQLEN, change.tx_queue_len),
    ];
    for (kind, value) in numbers {
        value.into_iter().for_each(|value| message.u32(kind, value));
    }
    if let Some(port) = change.port {
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.bytes(libc::IFLA_INFO_SLAVE_KIND, b"bridge");
            info.nested(libc::IFLA_INFO_SLAVE_DATA, |data| {
                let properties = [
                    (IFLA_BRPORT_MODE, port.hairpin),
                    (IFLA_BRPORT_ISOLATED, port.isolated),
                ];
                for (kind, on) in properties {
                    on.into_iter().for_each(|on| data.u8(kind, on.into()));
                }
            });
        });
    }
    if let Some(filtering) = change.vlan_filtering {
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.bytes(libc::IFLA_INFO_KIND, b"bridge");
            info.nested(libc::IFLA_INFO_DATA, |data| {
                data.u8(IFLA_BR_VLAN_FILTERING, filtering.into())
            });
        });
    }
    message
}

fn read(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: u32_at(payload, 4)?,
        name: String::new(),
        flags: u32_at(payload, 8)?,
        mtu: 0,
        mac: None,
        master: None,
        parent: None,
        kind: None,
        alias: String::new(),
        tx_queue_len: 0,
        promiscuity: 0,
        kind_data: Vec::new(),
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_ADDRESS if value.len() == 6 => {
                link.mac = value.first_chunk().map(|octets| MacAddress(*octets));
            }
            libc::IFLA_MASTER => link.master = u32_at(value, 0),
            libc::IFLA_LINK => link.parent = u32_at(value, 0),
            libc::IFLA_IFALIAS => link.alias = text(value),
            libc::IFLA_TXQLEN => link.tx_queue_len = u32_at(value, 0)?,
            libc::IFLA_PROMISCUITY => link.promiscuity = u32_at(value, 0)?,
            libc::IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        libc::IFLA_INFO_KIND => link.kind = Some(text(value)),
                        libc::IFLA_INFO_DATA => link.kind_data = value.to_vec(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

/// `struct rtnl_link_stats64`
fn read_statistics(payload: &[u8]) -> Option<LinkStatistics> {
    let (_, value) =
        attributes(payload.get(16..)?).find(|(kind, _)| *kind == libc::IFLA_STATS64)?;
    let field = |index: usize| u64_at(value, index * 8);
    Some(LinkStatistics {
        rx_packets: field(0)?,
        tx_packets: field(1)?,
        rx_bytes: field(2)?,
        tx_bytes: field(3)?,
        rx_errors: field(4)?,
        tx_errors: field(5)?,
        rx_dropped: field(6)?,
        tx_dropped: field(7)?,
    })
}

impl fmt::Display for LinkChange<'_> {
    /// What is to be changed, for errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.name.map(|v| format!("name {v}")));
        parts.extend(self.up.map(|v| {
            if v {
                "up".to_owned()
            } else {
                "down".to_owned()
            }
        }));
        parts.extend(self.mtu.map(|v| format!("mtu {v}")));
        parts.extend(self.mac.map(|v| format!("mac {v}")));
        parts.extend(self.master.map(|v| format!("master {v}")));
        parts.extend(self.alias.map(|v| format!("alias {v:?}")));
        parts.extend(self.promiscuous.map(|v| format!("promiscuous {v}")));
        parts.extend(self.all_multicast.map(|v| format!("all multicast {v}")));
        parts.extend(self.tx_queue_len.map(|v| format!("queue length {v}")));
        parts.extend(self.netns.map(|_| "another namespace".to_owned()));
        parts.extend(self.port.map(|v| format!("bridge port {v:?}")));
        parts.extend(self.vlan_filtering.map(|v| format!("vlan filtering {v}")));
        f.write_str(&parts.join(", "))
    }
}
