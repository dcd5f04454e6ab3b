//! D-Bus messages (D-Bus specification, "Message Format").

use super::value::{Malformed, Reader, Value, pad};

/// Far above what systemd answers; the specification's limit is 128 MiB.
pub(super) const LARGEST: usize = 1 << 20;

/// What comes before the length of the header's fields, and that.
pub(super) const FIXED_PART: usize = 16;

const LITTLE_ENDIAN: u8 = b'l';
const VERSION: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
}

/// The fields of a header.
mod field {
    pub const PATH: u8 = 1;
    pub const INTERFACE: u8 = 2;
    pub const MEMBER: u8 = 3;
    pub const ERROR_NAME: u8 = 4;
    pub const REPLY_SERIAL: u8 = 5;
    pub const DESTINATION: u8 = 6;
    pub const SIGNATURE: u8 = 8;
}

/// A method call, which expects an answer.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    /// `None` when the other side is the service itself.
    pub destination: Option<&'a str>,
    pub path: &'a str,
    pub interface: &'a str,
    pub member: &'a str,
    pub body: Vec<Value>,
}

impl Call<'_> {
    pub fn to_bytes(&self, serial: u32) -> Vec<u8> {
        let signature: String = self.body.iter().map(Value::signature).collect();
        let mut body = Vec::new();
        self.body.iter().for_each(|value| value.write(&mut body));
        let field = |code, value: Value| Value::Struct(vec![Value::Byte(code), value.variant()]);
        let mut fields = vec![
            field(field::PATH, Value::Path(self.path.to_owned())),
            field(field::INTERFACE, Value::text(self.interface)),
            field(field::MEMBER, Value::text(self.member)),
        ];
        if let Some(destination) = self.destination {
            fields.push(field(field::DESTINATION, Value::text(destination)));
        }
        if !signature.is_empty() {
            fields.push(field(field::SIGNATURE, Value::Signature(signature)));
        }
        let mut out = vec![LITTLE_ENDIAN, Kind::Call as u8, 0, VERSION];
        Value::U32(u32::try_from(body.len()).unwrap_or(u32::MAX)).write(&mut out);
        Value::U32(serial).write(&mut out);
        Value::Array("(yv)".to_owned(), fields).write(&mut out);
        pad(&mut out, 8);
        out.extend(body);
        out
    }
}

/// A message that came.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// `None` for a kind that later versions may have, and which is to be ignored.
    pub kind: Option<Kind>,
    pub reply_serial: Option<u32>,
    pub interface: String,
    pub member: String,
    pub error_name: String,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    /// How long the message is that begins with this fixed part.
    ///
    /// # Errors
    /// If it is none, or longer than [`LARGEST`].
    pub fn length(fixed: &[u8; FIXED_PART]) -> Result<usize, Malformed> {
        if fixed[0] != LITTLE_ENDIAN || fixed[3] != VERSION {
            return Err(Malformed("not a little-endian message of version 1"));
        }
        let number = |at: usize| {
            u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize
        };
        let (body, fields) = (number(4), number(12));
        let length = fields.checked_next_multiple_of(8);
        let length = length.and_then(|fields| fields.checked_add(body)?.checked_add(FIXED_PART));
        length
            .filter(|length| *length <= LARGEST)
            .ok_or(Malformed("a message is too long"))
    }

    /// Reads a whole message.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; FIXED_PART] = bytes
            .first_chunk()
            .ok_or(Malformed("a message is cut short"))?;
        if Self::length(fixed)? != bytes.len() {
            return Err(Malformed("a message has another length than it says"));
        }
        let fields = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]) as usize;
        // The array's length is the fixed part's last word, so that the alignment is the message's.
        let header = Reader::new(&bytes[..FIXED_PART + fields]).read_all("yyyyuua(yv)")?;
        let mut message = Message {
            kind: match fixed[1] {
                1 => Some(Kind::Call),
                2 => Some(Kind::Return),
                3 => Some(Kind::Error),
                4 => Some(Kind::Signal),
                _ => None,
            },
            reply_serial: None,
            interface: String::new(),
            member: String::new(),
            error_name: String::new(),
            signature: String::new(),
            body: bytes[(FIXED_PART + fields).next_multiple_of(8)..].to_vec(),
        };
        if let Some(Value::Array(_, fields)) = header.into_iter().next_back() {
            fields
                .into_iter()
                .for_each(|field| message.take_field(field));
        }
        Ok(message)
    }

    /// A field of an unexpected type is as good as none.
    fn take_field(&mut self, field: Value) {
        let Value::Struct(parts) = field else { return };
        let mut parts = parts.into_iter();
        let (Some(Value::Byte(code)), Some(Value::Variant(value))) = (parts.next(), parts.next())
        else {
            return;
        };
        match (code, *value) {
            (field::INTERFACE, Value::Text(text)) => self.interface = text,
            (field::MEMBER, Value::Text(text)) => self.member = text,
            (field::ERROR_NAME, Value::Text(text)) => self.error_name = text,
            (field::REPLY_SERIAL, Value::U32(serial)) => self.reply_serial = Some(serial),
            (field::SIGNATURE, Value::Signature(text)) => self.signature = text,
            _ => {}
        }
    }

    /// What it carries.
    pub fn values(&self) -> Result<Vec<Value>, Malformed> {
        Reader::new(&self.body).read_all(&self.signature)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message as a bus sends it.
    pub fn encode(kind: Kind, serial: u32, header: Vec<(u8, Value)>, body: &[Value]) -> Vec<u8> {
        let call = Call {
            destination: None,
            path: "",
            interface: "",
            member: "",
            body: body.to_vec(),
        };
        let plain = call.to_bytes(serial);
        let length = u32::from_le_bytes([plain[4], plain[5], plain[6], plain[7]]) as usize;
        let signature: String = body.iter().map(Value::signature).collect();
        let fields = header
            .into_iter()
            .chain([(field::SIGNATURE, Value::Signature(signature))]);
        let fields = fields
            .map(|(code, value)| Value::Struct(vec![Value::Byte(code), value.variant()]))
            .collect();
        let mut out = vec![LITTLE_ENDIAN, kind as u8, 0, VERSION];
        out.extend(&plain[4..12]);
        Value::Array("(yv)".to_owned(), fields).write(&mut out);
        pad(&mut out, 8);
        out.extend(&plain[plain.len() - length..]);
        out
    }

    pub fn reply(to: u32, body: &[Value]) -> Vec<u8> {
        encode(
            Kind::Return,
            1,
            vec![(field::REPLY_SERIAL, Value::U32(to))],
            body,
        )
    }

    pub fn error(to: u32, name: &str, text: &str) -> Vec<u8> {
        let header = vec![
            (field::REPLY_SERIAL, Value::U32(to)),
            (field::ERROR_NAME, Value::text(name)),
        ];
        encode(Kind::Error, 1, header, &[Value::text(text)])
    }

    pub fn signal(interface: &str, member: &str, body: &[Value]) -> Vec<u8> {
        let header = vec![
            (
                field::PATH,
                Value::Path("/org/freedesktop/systemd1".to_owned()),
            ),
            (field::INTERFACE, Value::text(interface)),
            (field::MEMBER, Value::text(member)),
        ];
        encode(Kind::Signal, 1, header, body)
    }

    #[test]
    fn a_call_has_the_bytes_that_others_send() {
        let call = Call {
            destination: Some("org.freedesktop.DBus"),
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            body: vec![],
        };
        let expected: &[u8] = b"l\x01\0\x01\0\0\0\0\x01\0\0\0\x6d\0\0\0\
            \x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0\
            \x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
            \x03\x01s\0\x05\0\0\0Hello\0\0\0\
            \x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0";
        assert_eq!(call.to_bytes(1), expected);
    }

    #[test]
    fn an_answer_is_read() {
        let message = Message::parse(&reply(7, &[Value::Path("/job/1".into())])).unwrap();
        assert_eq!(
            (message.kind, message.reply_serial),
            (Some(Kind::Return), Some(7))
        );
        assert_eq!(message.values(), Ok(vec![Value::Path("/job/1".into())]));
        let message = Message::parse(&error(8, "a.b", "no")).unwrap();
        assert_eq!(
            (message.kind, message.error_name.as_str()),
            (Some(Kind::Error), "a.b")
        );
    }

    #[test]
    fn a_message_without_end_is_refused_by_its_first_bytes() {
        let mut fixed = [0; FIXED_PART];
        fixed[..4].copy_from_slice(b"l\x02\0\x01");
        fixed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Message::length(&fixed).is_err());
        fixed[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Message::length(&fixed).is_err());
        fixed[0] = b'B';
        assert!(Message::length(&fixed).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut data: Vec<u8>, fields in 0u32..64, honest: bool) {
            if honest && data.len() >= FIXED_PART {
                data[..4].copy_from_slice(b"l\x02\0\x01");
                let fields = fields.min((data.len() - FIXED_PART) as u32 / 8 * 8);
                let body = (data.len() - FIXED_PART) as u32 - fields;
                data[4..8].copy_from_slice(&body.to_le_bytes());
                data[12..16].copy_from_slice(&fields.to_le_bytes());
            }
            if let Ok(message) = Message::parse(&data) {
                let _ = message.values();
            }
        }

        #[test]
        fn a_damaged_message_never_panics(at in 0usize..200, byte: u8) {
            let body = [Value::U32(1), Value::Path("/j".into()), Value::text("u"), Value::text("done")];
            let mut data = signal("org.freedesktop.systemd1.Manager", "JobRemoved", &body);
            let length = data.len();
            data[at % length] = byte;
            if let Ok(message) = Message::parse(&data) {
                let _ = message.values();
            }
        }
    }
}
