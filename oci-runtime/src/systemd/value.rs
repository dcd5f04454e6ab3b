//! D-Bus values and their little-endian form (D-Bus specification, "Type System" and "Marshaling").

/// How deep containers may be in one another, and how long a signature may be (D-Bus specification, "Valid Signatures").
const DEEPEST: usize = 32;
const LONGEST_SIGNATURE: usize = 255;

/// One value, with its type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Text(String),
    Path(String),
    Signature(String),
    /// Values of one type, whose signature is given since there may be none.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    /// Only in an array.
    Entry(Box<(Value, Value)>),
    Variant(Box<Value>),
}

/// What arrived is not what the specification allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed D-Bus data: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Value::Text(text.into())
    }

    pub(crate) fn variant(self) -> Self {
        Value::Variant(Box::new(self))
    }

    pub(crate) fn signature(&self) -> String {
        let of_all = |items: &[Value]| items.iter().map(Value::signature).collect::<String>();
        match self {
            Value::Byte(_) => "y".to_owned(),
            Value::Bool(_) => "b".to_owned(),
            Value::I16(_) => "n".to_owned(),
            Value::U16(_) => "q".to_owned(),
            Value::I32(_) => "i".to_owned(),
            Value::U32(_) => "u".to_owned(),
            Value::I64(_) => "x".to_owned(),
            Value::U64(_) => "t".to_owned(),
            Value::F64(_) => "d".to_owned(),
            Value::Text(_) => "s".to_owned(),
            Value::Path(_) => "o".to_owned(),
            Value::Signature(_) => "g".to_owned(),
            Value::Array(element, _) => format!("a{element}"),
            Value::Struct(fields) => format!("({})", of_all(fields)),
            Value::Entry(entry) => format!("{{{}{}}}", entry.0.signature(), entry.1.signature()),
            Value::Variant(_) => "v".to_owned(),
        }
    }

    /// Appends this value; `out` must begin where alignment is counted from.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        pad(out, alignment(self.signature().as_bytes().first().copied()));
        match self {
            Value::Byte(value) => out.push(*value),
            Value::Bool(value) => out.extend(u32::from(*value).to_le_bytes()),
            Value::I16(value) => out.extend(value.to_le_bytes()),
            Value::U16(value) => out.extend(value.to_le_bytes()),
            Value::I32(value) => out.extend(value.to_le_bytes()),
            Value::U32(value) => out.extend(value.to_le_bytes()),
            Value::I64(value) => out.extend(value.to_le_bytes()),
            Value::U64(value) => out.extend(value.to_le_bytes()),
            Value::F64(value) => out.extend(value.to_le_bytes()),
            Value::Text(text) | Value::Path(text) => {
                out.extend(length(text.len()));
                out.extend(text.as_bytes());
                out.push(0);
            }
            Value::Signature(text) => {
                out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
                out.extend(text.as_bytes());
                out.push(0);
            }
            Value::Array(element, items) => write_array(element, items, out),
            Value::Struct(fields) => fields.iter().for_each(|field| field.write(out)),
            Value::Entry(entry) => {
                entry.0.write(out);
                entry.1.write(out);
            }
            Value::Variant(value) => {
                Value::Signature(value.signature()).write(out);
                value.write(out);
            }
        }
    }
}

fn write_array(element: &str, items: &[Value], out: &mut Vec<u8>) {
    let at = out.len();
    out.extend([0; 4]);
    // The padding before the first element is there without one too, and isn't counted.
    pad(out, alignment(element.bytes().next()));
    let start = out.len();
    items.iter().for_each(|item| item.write(out));
    let size = length(out.len() - start);
    out[at..at + 4].copy_from_slice(&size);
}

/// Our own messages are far from 4 GiB.
fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

pub(crate) fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn alignment(code: Option<u8>) -> usize {
    match code {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

/// The length of the first complete type of a signature.
pub(crate) fn first_type(signature: &str) -> Result<usize, Malformed> {
    if signature.len() > LONGEST_SIGNATURE {
        return Err(Malformed("a signature is too long"));
    }
    type_length(signature.as_bytes(), 0, false)
}

fn type_length(signature: &[u8], depth: usize, in_array: bool) -> Result<usize, Malformed> {
    const BAD: Malformed = Malformed("a signature names no type");
    if depth > DEEPEST {
        return Err(Malformed("a signature is too deep"));
    }
    match signature.first().ok_or(BAD)? {
        b'y' | b'b' | b'n' | b'q' | b'i' | b'u' | b'x' | b't' | b'd' | b's' | b'o' | b'g'
        | b'v' => Ok(1),
        b'a' => Ok(1 + type_length(&signature[1..], depth + 1, true)?),
        b'(' => {
            let mut at = 1;
            while signature.get(at) != Some(&b')') {
                at += type_length(signature.get(at..).ok_or(BAD)?, depth + 1, false)?;
            }
            if at == 1 { Err(BAD) } else { Ok(at + 1) }
        }
        b'{' if in_array => {
            let value = type_length(signature.get(2..).ok_or(BAD)?, depth + 1, false)?;
            let basic = !matches!(signature.get(1), Some(b'a' | b'(' | b'{' | b'v') | None);
            let closed = signature.get(2 + value) == Some(&b'}');
            if basic && closed && type_length(&signature[1..2], depth, false).is_ok() {
                Ok(value + 3)
            } else {
                Err(BAD)
            }
        }
        _ => Err(BAD),
    }
}

/// Reads values off bytes that somebody else wrote.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// `bytes` must begin where alignment is counted from.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// All values of a signature, which take all bytes.
    pub(crate) fn read_all(mut self, signature: &str) -> Result<Vec<Value>, Malformed> {
        let mut values = Vec::new();
        let mut left = signature;
        while !left.is_empty() {
            let one = first_type(left)?;
            values.push(self.read(&left[..one], 0)?);
            left = &left[one..];
        }
        if self.at == self.bytes.len() {
            Ok(values)
        } else {
            Err(Malformed("bytes are left over"))
        }
    }

    /// One value of a complete type.
    fn read(&mut self, signature: &str, depth: usize) -> Result<Value, Malformed> {
        if depth > DEEPEST {
            return Err(Malformed("a value is too deep"));
        }
        let code = signature.bytes().next();
        self.align(alignment(code))?;
        Ok(match code {
            Some(b'y') => Value::Byte(self.number::<1>()?[0]),
            Some(b'b') => match u32::from_le_bytes(self.number()?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(Malformed("a boolean is neither")),
            },
            Some(b'n') => Value::I16(i16::from_le_bytes(self.number()?)),
            Some(b'q') => Value::U16(u16::from_le_bytes(self.number()?)),
            Some(b'i') => Value::I32(i32::from_le_bytes(self.number()?)),
            Some(b'u') => Value::U32(u32::from_le_bytes(self.number()?)),
            Some(b'x') => Value::I64(i64::from_le_bytes(self.number()?)),
            Some(b't') => Value::U64(u64::from_le_bytes(self.number()?)),
            Some(b'd') => Value::F64(f64::from_le_bytes(self.number()?)),
            Some(b's') => Value::Text(self.long_text()?),
            Some(b'o') => Value::Path(self.long_text()?),
            Some(b'g') => Value::Signature(self.signature()?),
            Some(b'a') => self.array(&signature[1..], depth)?,
            Some(b'(') => Value::Struct(self.fields(&signature[1..signature.len() - 1], depth)?),
            Some(b'v') => {
                let inner = self.signature()?;
                if inner.is_empty() || first_type(&inner)? != inner.len() {
                    return Err(Malformed("a variant is not one value"));
                }
                self.read(&inner, depth + 1)?.variant()
            }
            _ => return Err(Malformed("a type is unknown")),
        })
    }

    fn array(&mut self, element: &str, depth: usize) -> Result<Value, Malformed> {
        let size = u32::from_le_bytes(self.number()?) as usize;
        self.align(alignment(element.bytes().next()))?;
        let end = self
            .at
            .checked_add(size)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Malformed("an array ends after the message"))?;
        let mut items = Vec::new();
        while self.at < end {
            items.push(match element.strip_prefix('{') {
                Some(entry) => {
                    self.align(8)?;
                    let mut pair = self.fields(&entry[..entry.len() - 1], depth)?.into_iter();
                    match (pair.next(), pair.next()) {
                        (Some(key), Some(value)) => Value::Entry(Box::new((key, value))),
                        _ => return Err(Malformed("an entry is not a pair")),
                    }
                }
                None => self.read(element, depth + 1)?,
            });
        }
        if self.at == end {
            Ok(Value::Array(element.to_owned(), items))
        } else {
            Err(Malformed("an array's element ends after the array"))
        }
    }

    fn fields(&mut self, mut signature: &str, depth: usize) -> Result<Vec<Value>, Malformed> {
        let mut values = Vec::new();
        while !signature.is_empty() {
            let one = first_type(signature)?;
            values.push(self.read(&signature[..one], depth + 1)?);
            signature = &signature[one..];
        }
        Ok(values)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        let padding = self.at.next_multiple_of(to) - self.at;
        if self.take(padding)?.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(Malformed("padding is not zero"))
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(Malformed("the message ends too early"))?;
        self.at += count;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let taken = self.take(N)?;
        taken
            .try_into()
            .map_err(|_| Malformed("a number is cut short"))
    }

    fn long_text(&mut self) -> Result<String, Malformed> {
        let count = u32::from_le_bytes(self.number()?) as usize;
        self.text_of(count)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let count = usize::from(self.number::<1>()?[0]);
        self.text_of(count)
    }

    fn text_of(&mut self, count: usize) -> Result<String, Malformed> {
        let bytes = self.take(count)?;
        if self.take(1)? != [0] || bytes.contains(&0) {
            return Err(Malformed("a string does not end where it says"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed("a string is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        value.write(&mut out);
        out
    }

    #[test]
    fn values_have_the_bytes_of_the_specification() {
        assert_eq!(bytes(&Value::text("foo")), b"\x03\0\0\0foo\0");
        assert_eq!(bytes(&Value::Bool(true)), [1, 0, 0, 0]);
        assert_eq!(bytes(&Value::Signature("a(sv)".into())), b"\x05a(sv)\0");
        // The padding to the first element is not part of the length.
        let longs = Value::Array("x".into(), vec![Value::I64(5)]);
        assert_eq!(bytes(&longs), b"\x08\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        assert_eq!(bytes(&Value::Array("(ss)".into(), vec![])), [0; 8]);
        assert_eq!(
            bytes(&Value::U64(7).variant()),
            b"\x01t\0\0\0\0\0\0\x07\0\0\0\0\0\0\0"
        );
        let pids = Value::Struct(vec![
            Value::text("PIDs"),
            Value::Array("u".into(), vec![Value::U32(300)]).variant(),
        ]);
        assert_eq!(
            bytes(&pids),
            b"\x04\0\0\0PIDs\0\x02au\0\0\0\0\x04\0\0\0\x2c\x01\0\0"
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let all = Value::Struct(vec![
            Value::Byte(1),
            Value::F64(1.5),
            Value::I16(-3),
            Value::Array(
                "{sv}".into(),
                vec![Value::Entry(Box::new((
                    Value::text("k"),
                    Value::Path("/a".into()).variant(),
                )))],
            ),
            Value::U16(9),
            Value::Array("(ss)".into(), vec![]),
        ]);
        let read = Reader::new(&bytes(&all)).read_all(&all.signature());
        assert_eq!(read, Ok(vec![all]));
    }

    #[test]
    fn signatures_that_name_no_type_are_malformed() {
        for bad in [
            "", "a", "()", "(", "(s", "{sv}", "a{vs}", "a{s}", "a{sss}", "z", "a{(s)s}",
        ] {
            assert!(first_type(bad).is_err(), "{bad}");
        }
        assert!(first_type(&"a".repeat(300)).is_err());
        assert!(first_type(&"(".repeat(200)).is_err());
        assert_eq!(first_type("a{s(iv)}u"), Ok(8));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(data: Vec<u8>, signature in "[ybnqiuxtdsogav(){}]{0,12}") {
            let _ = Reader::new(&data).read_all(&signature);
        }

        #[test]
        fn a_variant_that_names_itself_ends(count in 0usize..5000) {
            let data = b"\x01v\0".repeat(count);
            prop_assert!(Reader::new(&data).read_all("v").is_err());
        }
    }
}
