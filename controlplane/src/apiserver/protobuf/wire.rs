//! The protobuf wire format: tags, varints, lengths.

/// Bytes that aren't a protobuf message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the message ends in the middle of a field")]
    Truncated,
    #[error("a number has more than 64 bits")]
    Overflow,
    #[error("wire type {0} is not known")]
    WireType(u64),
    #[error("a field has another wire type than its type")]
    Mismatch,
    #[error("a string is not UTF-8")]
    Utf8,
}

/// A field's content.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    Varint(u64),
    /// Four or eight bytes: no field of the types that are known has this form.
    Fixed,
    Bytes(&'a [u8]),
}

impl<'a> Data<'a> {
    pub fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::Mismatch),
        }
    }

    pub fn text(self) -> Result<String, WireError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| WireError::Utf8)
    }

    /// A signed number in two's complement.
    pub fn integer(self) -> Result<i64, WireError> {
        match self {
            Self::Varint(value) => Ok(value.cast_signed()),
            _ => Err(WireError::Mismatch),
        }
    }
}

/// The fields of a message, in their order.
pub struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if shift > 63 || (shift == 63 && bits > 1) {
                return Err(WireError::Overflow);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], WireError> {
        let length = usize::try_from(length).map_err(|_| WireError::Truncated)?;
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn fixed(&mut self, length: u64) -> Result<Data<'a>, WireError> {
        self.take(length).map(|_| Data::Fixed)
    }

    fn field(&mut self) -> Result<(u64, Data<'a>), WireError> {
        let tag = self.varint()?;
        let data = match tag & 7 {
            0 => Data::Varint(self.varint()?),
            1 => self.fixed(8)?,
            2 => {
                let length = self.varint()?;
                Data::Bytes(self.take(length)?)
            }
            5 => self.fixed(4)?,
            other => return Err(WireError::WireType(other)),
        };
        Ok((tag >> 3, data))
    }
}

impl<'a> Iterator for Message<'a> {
    type Item = Result<(u64, Data<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}
