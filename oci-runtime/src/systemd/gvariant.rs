//! Values as text, for annotations (GVariant's text format, without maybes and tuples).

use super::value::{Value, first_type};

/// Annotations are the user's; none of systemd's properties comes near this depth.
const DEEPEST: usize = 16;

/// Reads one value. Numbers without a type are 32-bit integers, or doubles if they have a point or an exponent.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { left: text };
    let node = parser.node(0)?;
    if !parser.skip_space().is_empty() {
        return Err(format!("unexpected {:?}", parser.left));
    }
    let signature = node
        .signature()
        .ok_or("its type can't be told: give it one, as in @as []")?;
    node.value(&signature)
}

/// What was read, before all types are known.
#[derive(Debug)]
enum Node {
    Number(String),
    Text(String),
    Bool(bool),
    Bytes(Vec<u8>),
    Array(Vec<Node>),
    Dict(Vec<(Node, Node)>),
    Variant(Box<Node>),
    Typed(String, Box<Node>),
}

impl Node {
    /// Its type, if it can be no other.
    fn fixed(&self) -> Option<String> {
        match self {
            Node::Number(text) => text.contains(['.', 'e', 'E']).then(|| "d".to_owned()),
            Node::Text(_) => None,
            Node::Bool(_) => Some("b".to_owned()),
            Node::Bytes(_) => Some("ay".to_owned()),
            Node::Array(items) => Some(format!("a{}", items.iter().find_map(Node::fixed)?)),
            Node::Dict(pairs) => {
                let key = pairs.iter().find_map(|(key, _)| key.fixed())?;
                let value = pairs.iter().find_map(|(_, value)| value.fixed())?;
                Some(format!("a{{{key}{value}}}"))
            }
            Node::Variant(_) => Some("v".to_owned()),
            Node::Typed(signature, _) => Some(signature.clone()),
        }
    }

    fn signature(&self) -> Option<String> {
        let of = |nodes: &mut dyn Iterator<Item = &Node>| {
            let nodes: Vec<&Node> = nodes.collect();
            let fixed = nodes.iter().find_map(|node| node.fixed());
            fixed.or_else(|| nodes.first()?.signature())
        };
        self.fixed().or_else(|| match self {
            Node::Number(_) => Some("i".to_owned()),
            Node::Text(_) => Some("s".to_owned()),
            Node::Array(items) => Some(format!("a{}", of(&mut items.iter())?)),
            Node::Dict(pairs) => {
                let key = of(&mut pairs.iter().map(|(key, _)| key))?;
                let value = of(&mut pairs.iter().map(|(_, value)| value))?;
                Some(format!("a{{{key}{value}}}"))
            }
            _ => None,
        })
    }

    fn value(self, signature: &str) -> Result<Value, String> {
        let wrong = || format!("is not of type {signature:?}");
        match self {
            Node::Typed(own, node) if own == signature => node.value(signature),
            Node::Number(text) => number(&text, signature),
            Node::Text(text) => match signature {
                "s" => Ok(Value::Text(text)),
                "o" if is_path(&text) => Ok(Value::Path(text)),
                "g" if is_signature(&text) => Ok(Value::Signature(text)),
                _ => Err(wrong()),
            },
            Node::Bool(value) if signature == "b" => Ok(Value::Bool(value)),
            Node::Bytes(bytes) if signature == "ay" => {
                let bytes = bytes.into_iter().map(Value::Byte).collect();
                Ok(Value::Array("y".to_owned(), bytes))
            }
            Node::Array(items) => {
                let element = signature.strip_prefix('a').ok_or_else(wrong)?;
                let items = items.into_iter().map(|item| item.value(element));
                Ok(Value::Array(
                    element.to_owned(),
                    items.collect::<Result<_, _>>()?,
                ))
            }
            Node::Dict(pairs) => {
                let element = signature.strip_prefix('a').ok_or_else(wrong)?;
                let inner = element
                    .strip_prefix('{')
                    .and_then(|text| text.strip_suffix('}'));
                let (key, value) = inner
                    .and_then(|text| text.split_at_checked(1))
                    .ok_or_else(wrong)?;
                let entries = pairs.into_iter().map(|pair| {
                    Ok(Value::Entry(Box::new((
                        pair.0.value(key)?,
                        pair.1.value(value)?,
                    ))))
                });
                Ok(Value::Array(
                    element.to_owned(),
                    entries.collect::<Result<_, String>>()?,
                ))
            }
            Node::Variant(node) if signature == "v" => {
                let inner = node.signature().ok_or("a variant's type can't be told")?;
                Ok(node.value(&inner)?.variant())
            }
            _ => Err(wrong()),
        }
    }
}

fn is_signature(text: &str) -> bool {
    let mut left = text;
    while !left.is_empty() {
        match first_type(left) {
            Ok(one) => left = &left[one..],
            Err(_) => return false,
        }
    }
    text.len() <= 255
}

fn is_path(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    text == "/"
        || text
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(part))
}

fn number(text: &str, signature: &str) -> Result<Value, String> {
    let bad = || format!("{text:?} is not of type {signature:?}");
    if signature == "d" {
        return text.parse().map(Value::F64).map_err(|_| bad());
    }
    let (digits, negative) = match text.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    // As in C: 0x for hexadecimal, 0 for octal.
    let magnitude = match (digits.strip_prefix("0x"), digits.strip_prefix('0')) {
        (Some(hex), _) => i128::from_str_radix(hex, 16),
        (_, Some(octal)) if !octal.is_empty() => i128::from_str_radix(octal, 8),
        _ => digits.parse(),
    };
    let value = magnitude.map_err(|_| bad())?;
    let value = if negative { -value } else { value };
    let converted = match signature {
        "y" => value.try_into().map(Value::Byte),
        "n" => value.try_into().map(Value::I16),
        "q" => value.try_into().map(Value::U16),
        "i" => value.try_into().map(Value::I32),
        "u" => value.try_into().map(Value::U32),
        "x" => value.try_into().map(Value::I64),
        "t" => value.try_into().map(Value::U64),
        _ => return Err(bad()),
    };
    converted.map_err(|_| bad())
}

struct Parser<'a> {
    left: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) -> &'a str {
        self.left = self.left.trim_start();
        self.left
    }

    /// Takes this word if it is next.
    fn take(&mut self, word: &str) -> bool {
        self.skip_space();
        match self.left.strip_prefix(word) {
            Some(rest) => {
                self.left = rest;
                true
            }
            None => false,
        }
    }

    fn node(&mut self, depth: usize) -> Result<Node, String> {
        if depth > DEEPEST {
            return Err("is too deep".to_owned());
        }
        let next = self.skip_space();
        match next.bytes().next() {
            None => Err("ends too early".to_owned()),
            Some(b'\'' | b'"') => self.text().map(Node::Text),
            Some(b'b') if next.starts_with("b'") || next.starts_with("b\"") => {
                self.bytes().map(Node::Bytes)
            }
            Some(b'0'..=b'9' | b'+' | b'-') => {
                let end = next.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
                let (number, rest) = next.split_at(end.unwrap_or(next.len()));
                self.left = rest;
                Ok(Node::Number(number.to_owned()))
            }
            Some(b'[') => {
                self.take("[");
                self.list("]", |parser| parser.node(depth + 1))
                    .map(Node::Array)
            }
            Some(b'{') => {
                self.take("{");
                let pair = |parser: &mut Self| {
                    let key = parser.node(depth + 1)?;
                    if !parser.take(":") {
                        return Err(format!("expected ':' before {:?}", parser.left));
                    }
                    Ok((key, parser.node(depth + 1)?))
                };
                self.list("}", pair).map(Node::Dict)
            }
            Some(b'<') => {
                self.take("<");
                let inner = self.node(depth + 1)?;
                if self.take(">") {
                    Ok(Node::Variant(Box::new(inner)))
                } else {
                    Err(format!("expected '>' before {:?}", self.left))
                }
            }
            _ if self.take("true") => Ok(Node::Bool(true)),
            _ if self.take("false") => Ok(Node::Bool(false)),
            _ => {
                let signature = self.type_word()?;
                let node = self.node(depth + 1)?;
                if matches!(node, Node::Typed(..)) {
                    return Err("has two types".to_owned());
                }
                Ok(Node::Typed(signature, Box::new(node)))
            }
        }
    }

    fn list<T>(
        &mut self,
        end: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let mut items = Vec::new();
        if self.take(end) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.take(end) {
                return Ok(items);
            }
            if !self.take(",") {
                return Err(format!("expected ',' or '{end}' before {:?}", self.left));
            }
        }
    }

    /// `@au` or `uint32`.
    fn type_word(&mut self) -> Result<String, String> {
        let end = self
            .left
            .find(char::is_whitespace)
            .unwrap_or(self.left.len());
        let (word, rest) = self.left.split_at(end);
        self.left = rest;
        if let Some(signature) = word.strip_prefix('@') {
            return match first_type(signature) {
                Ok(length) if length == signature.len() => Ok(signature.to_owned()),
                _ => Err(format!("unrecognized type {word:?}")),
            };
        }
        let signature = match word {
            "boolean" => "b",
            "byte" => "y",
            "int16" => "n",
            "uint16" => "q",
            "int32" => "i",
            "uint32" => "u",
            "int64" => "x",
            "uint64" => "t",
            "double" => "d",
            "string" => "s",
            "objectpath" => "o",
            "signature" => "g",
            _ => return Err(format!("unrecognized type {word:?}")),
        };
        Ok(signature.to_owned())
    }

    /// What is between quotes, and whether each character was escaped.
    fn quoted(&mut self) -> Result<Vec<(bool, char)>, String> {
        let mut chars = self.left.chars();
        let quote = chars.next();
        let mut found = Vec::new();
        loop {
            match chars.next() {
                None => return Err("has a string without an end".to_owned()),
                Some('\\') => {
                    found.push((true, chars.next().ok_or("has a string without an end")?))
                }
                other if other == quote => break,
                Some(c) => found.push((false, c)),
            }
        }
        self.left = chars.as_str();
        Ok(found)
    }

    fn text(&mut self) -> Result<String, String> {
        let mut chars = self.quoted()?.into_iter();
        let mut text = String::new();
        while let Some((escaped, c)) = chars.next() {
            match (escaped, c) {
                (false, c) => text.push(c),
                (true, '\n') => {}
                (true, 'u') => text.push(code_point(&mut chars, 4, 16)?),
                (true, 'U') => text.push(code_point(&mut chars, 8, 16)?),
                (true, c) => text.push(control(c)),
            }
        }
        if text.contains('\0') {
            return Err("has a zero in a string".to_owned());
        }
        Ok(text)
    }

    /// With the zero that ends it.
    fn bytes(&mut self) -> Result<Vec<u8>, String> {
        self.take("b");
        let mut chars = self.quoted()?.into_iter();
        let mut bytes = Vec::new();
        while let Some((escaped, c)) = chars.next() {
            let c = match (escaped, c) {
                (true, 'x') => code_point(&mut chars, 2, 16)?,
                (true, '0') => code_point(&mut chars, 3, 8)?,
                (true, c) => control(c),
                (false, c) => {
                    bytes.extend(c.to_string().bytes());
                    continue;
                }
            };
            bytes.push(
                u8::try_from(u32::from(c))
                    .map_err(|_| "has a number above 255 in a byte string")?,
            );
        }
        bytes.push(0);
        Ok(bytes)
    }
}

fn control(letter: char) -> char {
    match letter {
        'a' => '\x07',
        'b' => '\x08',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        other => other,
    }
}

fn code_point(
    chars: &mut impl Iterator<Item = (bool, char)>,
    count: usize,
    radix: u32,
) -> Result<char, String> {
    let mut value: u32 = 0;
    for _ in 0..count {
        let digit = chars.next().and_then(|(_, c)| c.to_digit(radix));
        value = value
            .checked_mul(radix)
            .and_then(|value| value.checked_add(digit?))
            .ok_or("has a bad escape in a string")?;
    }
    char::from_u32(value).ok_or_else(|| "has an escape for no character".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_read_with_the_types_that_they_have() {
        let texts = |items: &[&str]| {
            Value::Array(
                "s".into(),
                items.iter().map(|item| Value::text(*item)).collect(),
            )
        };
        for (text, value) in [
            ("5", Value::I32(5)),
            ("-0x10", Value::I32(-16)),
            ("010", Value::I32(8)),
            ("uint64 18446744073709551615", Value::U64(u64::MAX)),
            ("@y 7", Value::Byte(7)),
            ("1.5", Value::F64(1.5)),
            ("true", Value::Bool(true)),
            ("'inactive-or-failed'", Value::text("inactive-or-failed")),
            (r#""a'\n\u00e9""#, Value::text("a'\né")),
            ("objectpath '/a/b'", Value::Path("/a/b".into())),
            (
                "['a.service', \"b.service\"]",
                texts(&["a.service", "b.service"]),
            ),
            ("@as []", texts(&[])),
            (
                "[1, uint16 2]",
                Value::Array("q".into(), vec![Value::U16(1), Value::U16(2)]),
            ),
            (
                r"b'\x41\010'",
                Value::Array(
                    "y".into(),
                    vec![Value::Byte(65), Value::Byte(8), Value::Byte(0)],
                ),
            ),
            ("<int16 3>", Value::I16(3).variant()),
        ] {
            // The octal escape takes three digits after its zero.
            let text = text.replace(r"\010", r"\0010");
            assert_eq!(parse(&text), Ok(value), "{text}");
        }
        let dict = parse("{'a': <1>, 'b': <true>}").unwrap();
        assert_eq!(dict.signature(), "a{sv}");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for bad in [
            "",
            "[",
            "[1",
            "[1 2]",
            "[]",
            "{'a' 1}",
            "'a",
            "1x",
            "uint32 -1",
            "byte 256",
            "@q 'a'",
            "@() 1",
            "@ss 'a'",
            "uint32 uint32 1",
            "[1, 'a']",
            "foo",
            "1 2",
            "objectpath 'a'",
            "<1",
            "b'\\x4",
            "'\\ud800'",
            "'\\u0000'",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&"<".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r#"([\[\]{}<>:,'"\\@a-z0-9 .+-]|uint32 |@as |.){0,24}"#) {
            if let Ok(value) = parse(&text) {
                prop_assert_eq!(first_type(&value.signature()), Ok(value.signature().len()));
            }
        }
    }
}
