//! Chains, sets and elements: what a table holds besides rules.

use super::expr::Verdict;
use super::field::{Field, format_fields, size_of};
use super::wire::Writer;
use std::fmt;

/// The kernel replaces `%d`, so that every rule gets a nameless set of its own.
pub(super) const INLINE_SET: &str = "__set%d";

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Accepts and drops.
    Filter,
    /// Translates addresses; sees a connection's first packet only.
    Nat,
    /// As filter, and routes again when the packet was changed (output only).
    Route,
}

/// Where a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// All that comes in, before routing.
    Prerouting = 0,
    /// What comes in for this host.
    Input = 1,
    /// What is passed on.
    Forward = 2,
    /// What this host sends, before its route is final.
    Output = 3,
    /// All that goes out.
    Postrouting = 4,
}

/// A base chain's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// What it may do.
    pub kind: ChainKind,
    /// Where it is called.
    pub hook: Hook,
    /// Smaller is earlier; destination NAT is at -100, source NAT at 100, filters at 0.
    pub priority: i32,
}

/// A chain: named, and called from a hook if it is a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Unique in its table.
    pub name: String,
    /// Its hook; its policy is always accept.
    pub base: Option<BaseChain>,
}

impl Chain {
    /// A chain that others jump to.
    pub fn regular(name: impl Into<String>) -> Chain {
        Chain {
            name: name.into(),
            base: None,
        }
    }

    /// A chain that the kernel calls.
    pub fn base(name: impl Into<String>, kind: ChainKind, hook: Hook, priority: i32) -> Chain {
        Chain {
            name: name.into(),
            base: Some(BaseChain {
                kind,
                hook,
                priority,
            }),
        }
    }

    pub(super) fn encode(&self, table: &str, out: &mut Writer) {
        out.string(1, table);
        out.string(3, &self.name);
        if let Some(base) = &self.base {
            out.string(7, base.kind.name());
            let hook = out.nest(4);
            out.u32(1, base.hook as u32);
            out.u32(2, base.priority as u32);
            out.close(hook);
        }
    }
}

impl ChainKind {
    fn name(self) -> &'static str {
        match self {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        }
    }
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        write!(f, "type {} hook {hook} priority ", self.kind.name())?;
        match (self.kind, self.hook, self.priority) {
            (ChainKind::Nat, Hook::Prerouting, -100) => f.write_str("dstnat")?,
            (ChainKind::Nat, Hook::Postrouting, 100) => f.write_str("srcnat")?,
            (ChainKind::Filter, _, 0) => f.write_str("filter")?,
            (_, _, priority) => write!(f, "{priority}")?,
        }
        f.write_str("; policy accept;")
    }
}

/// What a map's values are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapValue {
    /// Data: one field or several.
    Fields(Vec<Field>),
    /// Verdicts. Each change of such an element makes the kernel look at the whole table again: keep these maps small
    /// and still.
    Verdict,
}

/// A set, or a map if it has values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Unique in its table, at most 255 bytes.
    pub name: String,
    /// What the key is made of.
    pub key: Vec<Field>,
    /// What an element leads to, if this is a map.
    pub value: Option<MapValue>,
    /// Keys are ranges. One field: elements come as the ranges' ends (see [`super::Element`]); several: each element
    /// has a first and a last key.
    pub interval: bool,
    /// Rules add, renew and delete elements, which expire.
    pub dynamic: bool,
    /// The most elements there may be; a dynamic set needs it.
    pub size: Option<u32>,
}

const CONSTANT_FLAGS: (u32, u32, u32, u32, u32, u32) = (0x1, 0x4, 0x8, 0x10, 0x20, 0x80);

impl Set {
    /// A set of keys.
    pub fn of(name: impl Into<String>, key: &[Field]) -> Set {
        Set {
            name: name.into(),
            key: key.to_vec(),
            value: None,
            interval: false,
            dynamic: false,
            size: None,
        }
    }

    /// A map to data.
    pub fn map(name: impl Into<String>, key: &[Field], value: &[Field]) -> Set {
        Set {
            value: Some(MapValue::Fields(value.to_vec())),
            ..Set::of(name, key)
        }
    }

    /// A map to verdicts.
    pub fn verdict_map(name: impl Into<String>, key: &[Field]) -> Set {
        Set {
            value: Some(MapValue::Verdict),
            ..Set::of(name, key)
        }
    }

    /// The same, of ranges.
    pub fn of_intervals(self) -> Set {
        Set {
            interval: true,
            ..self
        }
    }

    /// The same, filled by rules, with elements that expire.
    pub fn dynamic(self, size: u32) -> Set {
        Set {
            dynamic: true,
            size: Some(size),
            ..self
        }
    }

    /// `NFT_SET_*`.
    pub(super) fn flags(&self) -> u32 {
        let (_, interval, map, timeout, dynamic, concatenated) = CONSTANT_FLAGS;
        let mut flags = 0;
        if self.interval {
            flags |= interval | if self.key.len() > 1 { concatenated } else { 0 };
        }
        if self.value.is_some() {
            flags |= map;
        }
        if self.dynamic {
            flags |= timeout | dynamic;
        }
        flags
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        size_of(&self.key)
    }

    pub(super) fn encode(&self, table: &str, id: u32, out: &mut Writer) {
        out.string(1, table);
        out.string(2, &self.name);
        out.u32(3, self.flags());
        out.u32(4, data_type(&self.key));
        out.u32(5, self.key_size() as u32);
        match &self.value {
            Some(MapValue::Fields(fields)) => {
                out.u32(6, data_type(fields));
                out.u32(7, size_of(fields) as u32);
            }
            Some(MapValue::Verdict) => {
                out.u32(6, 0xffff_ff00);
                out.u32(7, 0);
            }
            None => {}
        }
        out.u32(10, id);
        if self.size.is_some() || (self.interval && self.key.len() > 1) {
            self.encode_description(out);
        }
        out.bytes(13, &self.user_data());
    }

    fn encode_description(&self, out: &mut Writer) {
        let description = out.nest(9);
        if let Some(size) = self.size {
            out.u32(1, size);
        }
        if self.interval && self.key.len() > 1 {
            let fields = out.nest(2);
            for field in &self.key {
                let element = out.nest(1);
                out.u32(1, field.size() as u32);
                out.close(element);
            }
            out.close(fields);
        }
        out.close(description);
    }

    /// What nft keeps beside a set so that it can print it: byte orders and the `typeof` expressions.
    pub(super) fn user_data(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        number(&mut out, 0, byte_order(&self.key));
        if let Some(value) = &self.value {
            number(
                &mut out,
                1,
                if let MapValue::Fields(fields) = value {
                    byte_order(fields)
                } else {
                    0
                },
            );
        }
        tlv(&mut out, 3, &typeof_fields(&self.key));
        match &self.value {
            Some(MapValue::Fields(fields)) => tlv(&mut out, 4, &typeof_fields(fields)),
            Some(MapValue::Verdict) => tlv(&mut out, 4, &[0, 4, 1, 0, 0, 0, 1, 0]),
            None => {}
        }
        if self.value.is_some() {
            number(&mut out, 6, 0);
        }
        out
    }
}

impl fmt::Display for Set {
    /// The head of the declaration, as `nft list` prints it, without elements and closing brace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.value.is_some() { "map" } else { "set" };
        writeln!(f, "\t{word} {} {{", self.name)?;
        write!(f, "\t\ttypeof {}", format_fields(&self.key))?;
        match &self.value {
            Some(MapValue::Fields(fields)) => writeln!(f, " : {}", format_fields(fields))?,
            Some(MapValue::Verdict) => writeln!(f, " : verdict")?,
            None => writeln!(f)?,
        }
        if let Some(size) = self.size {
            writeln!(f, "\t\tsize {size}")?;
        }
        match (self.interval, self.dynamic) {
            (true, _) => writeln!(f, "\t\tflags interval"),
            (_, true) => writeln!(f, "\t\tflags dynamic,timeout"),
            _ => Ok(()),
        }
    }
}

/// nft's number for a concatenation: six bits a field.
fn data_type(fields: &[Field]) -> u32 {
    fields
        .iter()
        .fold(0, |number, field| number << 6 | field.data_type())
}

fn byte_order(fields: &[Field]) -> u32 {
    if let [one] = fields {
        one.byte_order()
    } else {
        0
    }
}

fn tlv(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.push(value.len() as u8);
    out.extend_from_slice(value);
}

fn number(out: &mut Vec<u8>, kind: u8, value: u32) {
    tlv(out, kind, &value.to_ne_bytes());
}

/// One field as nft stores it: `{ 0: kind of expression, 1: { parameters } }`.
fn typeof_field(field: Field) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some((kind, parameters)) = field.typeof_expression() {
        number(&mut out, 0, kind);
        let mut nested = Vec::new();
        for (kind, value) in parameters {
            number(&mut nested, kind, value);
        }
        tlv(&mut out, 1, &nested);
    }
    out
}

fn typeof_fields(fields: &[Field]) -> Vec<u8> {
    const CONCATENATION: u32 = 13;
    if let [one] = fields {
        return typeof_field(*one);
    }
    let mut list = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        tlv(&mut list, index as u8, &typeof_field(*field));
    }
    let mut out = Vec::new();
    number(&mut out, 0, CONCATENATION);
    tlv(&mut out, 1, &list);
    out
}

/// What an element of a map leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementValue<'a> {
    /// Data, padded as keys are.
    Data(&'a [u8]),
    /// A verdict.
    Verdict(&'a Verdict),
}

/// One element of a set or a map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Element<'a> {
    /// The key: a field's bytes, or several fields', each padded to four bytes.
    pub key: &'a [u8],
    /// The last key of a range, in interval sets of several fields.
    pub key_end: Option<&'a [u8]>,
    /// In an interval set of one field: this key is the first one past the range.
    pub interval_end: bool,
    /// A map's value.
    pub value: Option<ElementValue<'a>>,
    /// At most 127 bytes; longer ones are cut.
    pub comment: Option<&'a str>,
}

impl<'a> Element<'a> {
    /// A key alone.
    pub fn key(key: &'a [u8]) -> Element<'a> {
        Element {
            key,
            ..Element::default()
        }
    }

    /// A key that leads to data.
    pub fn pair(key: &'a [u8], value: &'a [u8]) -> Element<'a> {
        Element {
            key,
            value: Some(ElementValue::Data(value)),
            ..Element::default()
        }
    }

    pub(super) fn encode(&self, out: &mut Writer) {
        let element = out.nest(1);
        if self.interval_end {
            out.u32(3, 1);
        }
        super::expr::encode_value(out, 1, self.key);
        if let Some(end) = self.key_end {
            super::expr::encode_value(out, 10, end);
        }
        match self.value {
            Some(ElementValue::Data(data)) => super::expr::encode_value(out, 2, data),
            Some(ElementValue::Verdict(verdict)) => {
                let nest = out.nest(2);
                verdict.encode(out);
                out.close(nest);
            }
            None => {}
        }
        if let Some(comment) = self.comment {
            out.bytes(6, &comment_data(comment));
        }
        out.close(element);
    }
}

/// A comment as nft stores it beside a rule or an element.
pub(super) fn comment_data(comment: &str) -> Vec<u8> {
    const LONGEST: usize = 127;
    let end = (0..=comment.len().min(LONGEST))
        .rev()
        .find(|at| comment.is_char_boundary(*at))
        .unwrap_or(0);
    let mut out = Vec::with_capacity(end + 3);
    out.push(0);
    out.push(end as u8 + 1);
    out.extend_from_slice(&comment.as_bytes()[..end]);
    out.push(0);
    out
}

/// The comment in what nft stores beside a rule or an element.
pub(super) fn parse_comment(data: &[u8]) -> Option<&str> {
    let length = *data.get(1)? as usize;
    (*data.first()? == 0)
        .then(|| data.get(2..2 + length))
        .flatten()
        .and_then(super::wire::text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_what_nft_stores() {
        let map = Set::map(
            "endpoints",
            &[Field::Priority, Field::random(2)],
            &[Field::IpDaddr, Field::ThDport],
        );
        let expected = "000400000000010400000000033400040d000000012c000e0004090000000106000402000000011a00041700000001\
                        12000401000000010402000000020400000000043400040d000000012c0014000407000000010c00040c0000000104\
                        0c0000000114000407000000010c00040b000000010402000000060400000000";
        let hexadecimal: String = map
            .user_data()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hexadecimal, expected.replace(char::is_whitespace, ""));
        assert_eq!(data_type(&map.key), 0x05c4);
    }

    #[test]
    fn a_long_comment_is_cut_at_a_character() {
        let data = comment_data(&"ä".repeat(100));
        assert_eq!(parse_comment(&data).map(str::len), Some(126));
    }
}
