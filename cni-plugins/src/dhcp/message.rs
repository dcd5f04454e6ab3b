//! DHCP's messages (RFC 2131 §2, RFC 2132), and the IP and UDP headers of one that is sent without an address.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use linux::netlink::MacAddress;

/// Options (RFC 2132, RFC 3442).
pub mod option {
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTERS: u8 = 3;
    pub const NAME_SERVERS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const STATIC_ROUTES: u8 = 33;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const USER_CLASS: u8 = 77;
    pub const CLASSLESS_ROUTES: u8 = 121;
}

/// What a message is for (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
    Release = 7,
}

/// One message, with the fields that a client needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// From a server.
    pub is_reply: bool,
    pub transaction: u32,
    /// The server is to answer to all stations of the link.
    pub is_answered_to_all: bool,
    /// The client's address, if it can answer for it.
    pub client: Ipv4Addr,
    /// The address that the server gives.
    pub yours: Ipv4Addr,
    pub mac: MacAddress,
    /// By code, in order.
    pub options: BTreeMap<u8, Vec<u8>>,
}

const HEADER: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// What every relay and server takes (RFC 1542 §2.1).
const SHORTEST: usize = 300;
const END: u8 = 255;
const PAD: u8 = 0;

pub const SERVER_PORT: u16 = 67;
pub const CLIENT_PORT: u16 = 68;

impl Message {
    /// What it is for.
    pub fn kind(&self) -> Option<Kind> {
        let number = *self.options.get(&option::MESSAGE_TYPE)?.first()?;
        [
            Kind::Discover,
            Kind::Offer,
            Kind::Request,
            Kind::Ack,
            Kind::Nak,
            Kind::Release,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }

    /// The addresses that an option lists.
    pub fn addresses(&self, code: u8) -> Vec<Ipv4Addr> {
        let bytes = self.options.get(&code).map(Vec::as_slice);
        let words = bytes.unwrap_or_default().as_chunks::<4>().0;
        words.iter().map(|word| Ipv4Addr::from(*word)).collect()
    }

    /// The number of seconds that an option states.
    pub fn seconds(&self, code: u8) -> Option<u32> {
        let bytes = self.options.get(&code)?.as_slice().try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    /// The text of an option; servers may end it with a NUL.
    pub fn text(&self, code: u8) -> Option<String> {
        let text = String::from_utf8_lossy(self.options.get(&code)?);
        Some(text.trim_end_matches('\0').to_owned()).filter(|text| !text.is_empty())
    }

    /// The bytes of a UDP datagram.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        let mut put = |at: usize, bytes: &[u8]| {
            out.iter_mut()
                .skip(at)
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
        };
        put(0, &[if self.is_reply { 2 } else { 1 }, 1, 6]);
        put(4, &self.transaction.to_be_bytes());
        put(10, &[if self.is_answered_to_all { 0x80 } else { 0 }]);
        put(12, &self.client.octets());
        put(16, &self.yours.octets());
        put(28, &self.mac.0);
        out.extend(COOKIE);
        for (code, value) in &self.options {
            // A value longer than a length can say is continued (RFC 3396).
            let mut rest = value.as_slice();
            loop {
                let (part, more) = rest.split_at(rest.len().min(255));
                out.extend([*code, part.len() as u8]);
                out.extend(part);
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
        }
        out.push(END);
        out.resize(out.len().max(SHORTEST), PAD);
        out
    }

    /// Reads a UDP datagram; `None` if it is none of DHCP's over Ethernet.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
        if word(HEADER)? != COOKIE || bytes.get(1..3)? != [1, 6] {
            return None;
        }
        let mut options = BTreeMap::new();
        read_options(bytes.get(HEADER + 4..)?, &mut options);
        // The fields for names may hold options too.
        let overload = options
            .get(&option::OVERLOAD)
            .and_then(|value: &Vec<u8>| value.first().copied())
            .unwrap_or_default();
        if overload & 1 != 0 {
            read_options(bytes.get(108..HEADER)?, &mut options);
        }
        if overload & 2 != 0 {
            read_options(bytes.get(44..108)?, &mut options);
        }
        Some(Self {
            is_reply: *bytes.first()? == 2,
            transaction: u32::from_be_bytes(word(4)?),
            is_answered_to_all: *bytes.get(10)? & 0x80 != 0,
            client: word(12)?.into(),
            yours: word(16)?.into(),
            mac: MacAddress(bytes.get(28..34)?.try_into().ok()?),
            options,
        })
    }
}

/// Reads options up to their end; one that is cut short ends them too.
fn read_options(mut bytes: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) {
    while let [code, rest @ ..] = bytes {
        bytes = match (*code, rest) {
            (PAD, _) => rest,
            (code, [length, rest @ ..]) if code != END => {
                let Some((value, after)) = rest.split_at_checked(usize::from(*length)) else {
                    return;
                };
                options.entry(code).or_default().extend(value);
                after
            }
            _ => return,
        };
    }
}

const UDP: u8 = 17;

/// A datagram to all stations of the link, with its IP and UDP headers.
pub fn broadcast_packet(from: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = |header: usize| ((header + payload.len()) as u16).to_be_bytes();
    let mut ip = vec![0x45, 0];
    ip.extend(length(28));
    ip.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    ip.extend(from.octets());
    ip.extend(Ipv4Addr::BROADCAST.octets());
    let sum = checksum(&ip).to_be_bytes();
    ip.splice(10..12, sum);
    ip.extend(CLIENT_PORT.to_be_bytes());
    ip.extend(SERVER_PORT.to_be_bytes());
    ip.extend(length(8));
    // No checksum, which IPv4 allows.
    ip.extend([0, 0]);
    ip.extend(payload);
    ip
}

/// The payload of an IP packet from a DHCP server to a client. The UDP checksum is not looked at: between two ends of a
/// virtual cable it was never made.
pub fn payload(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header = usize::from(first & 15) * 4;
    let fragment = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x3fff;
    if first >> 4 != 4 || header < 20 || fragment != 0 || *packet.get(9)? != UDP {
        return None;
    }
    let udp = packet.get(header..)?;
    let word = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
    if word(0)? != SERVER_PORT || word(2)? != CLIENT_PORT {
        return None;
    }
    udp.get(8..usize::from(word(4)?))
}

fn checksum(header: &[u8]) -> u16 {
    let words = header.as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            is_reply: true,
            transaction: 0x1234_5678,
            is_answered_to_all: true,
            client: Ipv4Addr::UNSPECIFIED,
            yours: [192, 168, 1, 5].into(),
            mac: MacAddress([2, 0, 0, 0, 0, 7]),
            options: BTreeMap::from([
                (option::MESSAGE_TYPE, vec![Kind::Ack as u8]),
                (option::ROUTERS, vec![192, 168, 1, 1, 192, 168, 1, 2]),
                (option::LEASE_TIME, vec![0, 0, 1, 44]),
                (option::DOMAIN_NAME, b"example.org\0".to_vec()),
                (option::CLIENT_ID, vec![7; 600]),
            ]),
        }
    }

    #[test]
    fn a_message_reads_back_also_with_values_longer_than_a_length_can_say() {
        let read = Message::decode(&message().encode()).expect("decode");
        assert_eq!(read, message());
        assert_eq!(read.kind(), Some(Kind::Ack));
        assert_eq!(read.addresses(option::ROUTERS).len(), 2);
        assert_eq!(read.seconds(option::LEASE_TIME), Some(300));
        assert_eq!(
            read.text(option::DOMAIN_NAME).as_deref(),
            Some("example.org")
        );
    }

    #[test]
    fn options_in_the_fields_for_names_are_found() {
        let mut bytes = message().encode();
        bytes.splice(240..243, [option::OVERLOAD, 1, 3]);
        bytes.splice(44..48, [option::SUBNET_MASK, 1, 9, END]);
        bytes.splice(108..112, [option::HOST_NAME, 1, 8, END]);
        let read = Message::decode(&bytes).expect("decode");
        assert_eq!(read.options[&option::SUBNET_MASK], [9]);
        assert_eq!(read.options[&option::HOST_NAME], [8]);
    }

    #[test]
    fn a_packet_is_what_the_other_side_takes_apart() {
        let mut packet = broadcast_packet([192, 0, 2, 1].into(), b"hello");
        assert_eq!(checksum(packet.get(..20).expect("header")), 0);
        assert_eq!(payload(&packet), None, "not for a client");
        packet.splice(20..24, [0, 67, 0, 68]);
        assert_eq!(payload(&packet), Some(&b"hello"[..]));
        packet.truncate(30);
        assert_eq!(payload(&packet), None, "cut short");
    }

    /// Every prefix and every change of one byte, which an attacker on the link can send.
    #[test]
    fn nothing_that_comes_from_the_link_ends_the_reader() {
        let good = message().encode();
        let mut packet = broadcast_packet(Ipv4Addr::UNSPECIFIED, &good);
        packet.splice(20..24, [0, 67, 0, 68]);
        for at in 0..packet.len() {
            let _ = payload(packet.get(..at).expect("prefix")).and_then(Message::decode);
            for change in [1, 0x80, 0xff] {
                let mut changed = packet.clone();
                changed[at] ^= change;
                if let Some(read) = payload(&changed).and_then(Message::decode) {
                    read.kind();
                    read.addresses(option::ROUTERS);
                }
            }
        }
    }
}
