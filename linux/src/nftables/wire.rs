//! Netlink messages of the netfilter subsystems as bytes: headers, attributes, and a reader for replies.

use crate::error::{Error, Result};

/// `NLM_F_*` flags that requests here use.
pub(crate) mod flag {
    pub const REQUEST: u16 = 0x1;
    pub const ACK: u16 = 0x4;
    pub const DUMP: u16 = 0x300;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
    /// In a reply: the dump was made while its object changed.
    pub const DUMP_INTERRUPTED: u16 = 0x10;
}

/// `NFNL_SUBSYS_*`.
pub(crate) const SUBSYSTEM_CONNTRACK: u8 = 1;
pub(crate) const SUBSYSTEM_NFTABLES: u8 = 10;

const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const NESTED: u16 = 0x8000;

/// Room for attributes in one nested list, whose length is a `u16`; one element is far smaller than what is kept free.
pub(crate) const LIST_LIMIT: usize = 60_000;

/// Builds messages one after the other in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub buffer: Vec<u8>,
    message: usize,
}

/// Where an open nested attribute began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nest(usize);

impl Writer {
    /// Begins a message; `kind` is `subsystem << 8 | message`.
    pub fn begin(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) {
        self.message = self.buffer.len();
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&0u32.to_ne_bytes());
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
    }

    /// Ends the message that was begun last.
    pub fn end(&mut self) {
        let length = (self.buffer.len() - self.message) as u32;
        self.patch(self.message, &length.to_ne_bytes());
    }

    /// Adds flags to the message that was begun last.
    pub fn add_flags(&mut self, flags: u16) {
        let at = self.message + 6;
        let old = u16::from_ne_bytes([self.buffer[at], self.buffer[at + 1]]);
        self.patch(at, &(old | flags).to_ne_bytes());
    }

    /// How far into its message the next attribute is written.
    pub fn offset(&self) -> usize {
        self.buffer.len() - self.message
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// One attribute.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.buffer
            .extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.pad();
    }

    /// One attribute of a NUL-terminated string.
    pub fn string(&mut self, kind: u16, value: &str) {
        self.buffer
            .extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value.as_bytes());
        self.buffer.push(0);
        self.pad();
    }

    /// One attribute of a number, in network order as all of netfilter's are.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// As [`Writer::u32`], 64 bits.
    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Opens a nested attribute.
    pub fn nest(&mut self, kind: u16) -> Nest {
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0, 0]);
        self.buffer
            .extend_from_slice(&(kind | NESTED).to_ne_bytes());
        Nest(at)
    }

    /// As [`Writer::nest`], without the flag that says so: as the kernel's dumps have it.
    pub fn nest_unflagged(&mut self, kind: u16) -> Nest {
        let nest = self.nest(kind);
        self.patch(nest.0 + 2, &kind.to_ne_bytes());
        nest
    }

    /// Closes what [`Writer::nest`] opened.
    pub fn close(&mut self, nest: Nest) {
        let length = (self.buffer.len() - nest.0) as u16;
        self.patch(nest.0, &length.to_ne_bytes());
    }

    /// Bytes written since the nest was opened.
    pub fn length_of(&self, nest: Nest) -> usize {
        self.buffer.len() - nest.0
    }

    fn pad(&mut self) {
        while !self.buffer.len().is_multiple_of(4) {
            self.buffer.push(0);
        }
    }
}

/// One message of a reply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Everything after the netlink header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes that follow the generic netfilter header.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(GENERIC_HEADER..).unwrap_or_default())
    }
}

/// The messages in a datagram.
pub(crate) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = read_u32(self.0, 0)? as usize;
        if length < HEADER || length > self.0.len() {
            return None;
        }
        let message = Message {
            kind: read_u16(self.0, 4)?,
            flags: read_u16(self.0, 6)?,
            sequence: read_u32(self.0, 8)?,
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// Attributes one after the other, as type (without flags) and value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = read_u16(self.0, 0)? as usize;
        let kind = read_u16(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The first attribute of that type.
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        { self }.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The first attribute of that type, as a string.
    pub fn find_str(self, kind: u16) -> Option<&'a str> {
        self.find(kind).and_then(text)
    }

    /// The first attribute of that type, as a number in network order.
    pub fn find_u32(self, kind: u16) -> Option<u32> {
        self.find(kind)
            .and_then(|value| value.try_into().ok())
            .map(u32::from_be_bytes)
    }

    /// The first attribute of that type, as a number in network order.
    pub fn find_u64(self, kind: u16) -> Option<u64> {
        self.find(kind)
            .and_then(|value| value.try_into().ok())
            .map(u64::from_be_bytes)
    }
}

/// A NUL-terminated string of an attribute.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The kernel's answer to one message (`NLMSG_ERROR`): errno 0 is an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub errno: i32,
    /// Of the message that is answered.
    pub sequence: u32,
    /// Where in that message the attribute stands that the kernel objects to.
    pub offset: Option<u32>,
}

/// `NLMSG_ERROR` and `NLMSG_DONE`.
pub(crate) const ERROR: u16 = 2;
pub(crate) const DONE: u16 = 3;

impl Answer {
    /// Reads an `NLMSG_ERROR` message.
    pub fn parse(message: &Message<'_>) -> Result<Answer> {
        const CAPPED: u16 = 0x100;
        const HAS_ATTRIBUTES: u16 = 0x200;
        const OFFSET: u16 = 2;
        let malformed = || Error::new("read netlink answer", "", 0);
        let code = read_u32(message.payload, 0).ok_or_else(malformed)? as i32;
        let length = read_u32(message.payload, 4).ok_or_else(malformed)? as usize;
        let sequence = read_u32(message.payload, 12).ok_or_else(malformed)?;
        let skipped = if message.flags & CAPPED != 0 {
            HEADER
        } else {
            length.next_multiple_of(4)
        };
        let offset = (message.flags & HAS_ATTRIBUTES != 0)
            .then(|| message.payload.get(4 + skipped..))
            .flatten()
            .and_then(|rest| Attributes(rest).find(OFFSET))
            .and_then(|value| read_u32(value, 0));
        Ok(Answer {
            errno: code.wrapping_neg(),
            sequence,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let mut writer = Writer::default();
        writer.begin(0x0a09, flag::REQUEST, 7, 2, 0);
        writer.string(1, "orlop");
        let list = writer.nest(3);
        writer.u32(4, 0x01020304);
        writer.close(list);
        writer.end();
        let message = Messages(&writer.buffer).next().expect("a message");
        assert_eq!((message.kind, message.sequence), (0x0a09, 7));
        assert_eq!(message.attributes().find_str(1), Some("orlop"));
        let nested = Attributes(message.attributes().find(3).expect("the list"));
        assert_eq!(nested.find_u32(4), Some(0x01020304));
    }

    #[test]
    fn malformed_bytes_end_the_iteration() {
        assert!(Messages(&[255; 40]).next().is_none());
        assert!(Messages(&[3, 0]).next().is_none());
        assert!(Attributes(&[1, 0, 0, 0]).next().is_none());
        assert!(Attributes(&[200, 0, 1, 0, 5]).next().is_none());
    }
}
