//! What the kernel holds, read back.

use super::object::parse_comment;
use super::rule::Rule;
use super::socket::{Collect, DumpTarget, Socket};
use super::wire::{Attributes, Message, SUBSYSTEM_NFTABLES, Writer};
use super::{Set, Table, message};
use crate::error::Result;

/// A chain as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainDump {
    /// Its name.
    pub name: String,
    /// Hook number and priority, if it is a base chain.
    pub hook: Option<(u32, i32)>,
}

/// A set as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetDump {
    /// Its name.
    pub name: String,
    flags: u32,
    key_size: u32,
    value_size: u32,
}

impl SetDump {
    /// Whether the kernel's set is of the same make, so that its elements can be kept.
    pub fn is_like(&self, set: &Set) -> bool {
        let same_value = match &set.value {
            Some(super::MapValue::Fields(fields)) => {
                self.value_size == super::field::size_of(fields) as u32
            }
            // The kernel states its own size of a verdict.
            Some(super::MapValue::Verdict) => true,
            None => self.value_size == 0,
        };
        self.flags == set.flags() && self.key_size == set.key_size() as u32 && same_value
    }
}

/// A rule as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleDump {
    /// The chain that it is in.
    pub chain: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    expressions: Vec<u8>,
}

impl RuleDump {
    /// The chain that the rule jumps or goes to, if it does.
    pub fn leads_to(&self) -> Option<&str> {
        Attributes(&self.expressions).find_map(|(_, expression)| {
            let expression = Attributes(expression);
            let data = Attributes(
                expression
                    .find(2)
                    .filter(|_| expression.find_str(1) == Some("immediate"))?,
            );
            let verdict = Attributes(Attributes(data.find(2)?).find(2)?);
            verdict.find_str(2)
        })
    }

    /// Whether the kernel's rule does the same: each expression has all that ours states. (The kernel adds what it
    /// derives. A rule's nameless set is compared by its presence.)
    pub fn is_like(&self, rule: &Rule) -> bool {
        let mut out = Writer::default();
        for expr in &rule.exprs {
            expr.encode(&mut out, None);
        }
        let ours: Vec<_> = Attributes(&out.buffer).collect();
        let theirs: Vec<_> = Attributes(&self.expressions).collect();
        let comment = rule.comment.as_deref();
        ours.len() == theirs.len()
            && self.comment.as_deref() == comment
            && ours
                .iter()
                .zip(&theirs)
                .all(|((_, ours), (_, theirs))| same_expression(ours, theirs))
    }
}

fn same_expression(ours: &[u8], theirs: &[u8]) -> bool {
    const INLINE_PREFIX: &str = "__set";
    let (ours, theirs) = (Attributes(ours), Attributes(theirs));
    let Some(name) = ours.find_str(1) else {
        return false;
    };
    if theirs.find_str(1) != Some(name) {
        return false;
    }
    let (ours, theirs) = (
        ours.find(2).unwrap_or_default(),
        theirs.find(2).unwrap_or_default(),
    );
    let inline = name == "lookup"
        && Attributes(ours)
            .find_str(1)
            .is_some_and(|set| set.starts_with(INLINE_PREFIX));
    if inline {
        return Attributes(theirs)
            .find_str(1)
            .is_some_and(|set| set.starts_with(INLINE_PREFIX));
    }
    name == "counter" || contains_all(ours, theirs)
}

/// Whether every attribute of `ours` is in `theirs` with the same value.
fn contains_all(ours: &[u8], theirs: &[u8]) -> bool {
    Attributes(ours).all(|(kind, value)| {
        Attributes(theirs)
            .find(kind)
            .is_some_and(|found| found == value)
    })
}

/// An element as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ElementDump {
    /// The key's bytes.
    pub key: Vec<u8>,
    /// The last key of a range.
    pub key_end: Option<Vec<u8>>,
    /// This key is the first one past a range.
    pub interval_end: bool,
    /// A map's value: data as it is, a verdict's attributes.
    pub value: Vec<u8>,
    /// Its comment.
    pub comment: Option<String>,
}

impl ElementDump {
    /// Whether the value is this verdict.
    pub fn leads_to(&self, verdict: &super::Verdict) -> bool {
        let attributes = Attributes(&self.value);
        attributes.find_u32(1) == Some(verdict.code() as u32)
            && attributes.find_str(2) == verdict.chain()
    }
}

impl Socket {
    /// The tables of this network namespace, of all families.
    ///
    /// # Errors
    /// The dump's.
    pub fn tables(&mut self) -> Result<Vec<Table>> {
        let mut collect = Collect(Vec::new(), |message: &Message<'_>| {
            let family = super::Family::from_number(*message.payload.first()?)?;
            Some(Table {
                family,
                name: message.attributes().find_str(1)?.to_owned(),
            })
        });
        self.dump("tables", kind(message::GET_TABLE), 0, &|_| {}, &mut collect)?;
        Ok(collect.0)
    }

    /// A table's chains.
    ///
    /// # Errors
    /// The dump's; none for a table that isn't there.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<ChainDump>> {
        let mut collect = Collect(Vec::new(), |message: &Message<'_>| {
            let attributes = message.attributes();
            if attributes.find_str(1) != Some(&table.name) {
                return None;
            }
            let hook = attributes.find(4).map(Attributes);
            let hook = hook.and_then(|hook| Some((hook.find_u32(1)?, hook.find_u32(2)? as i32)));
            Some(ChainDump {
                name: attributes.find_str(3)?.to_owned(),
                hook,
            })
        });
        self.dump(
            &table.name,
            kind(message::GET_CHAIN),
            table.family as u8,
            &|_| {},
            &mut collect,
        )?;
        Ok(collect.0)
    }

    /// A table's named sets and maps.
    ///
    /// # Errors
    /// The dump's; ENOENT if the table isn't there.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetDump>> {
        const ANONYMOUS: u32 = 1;
        let mut collect = Collect(Vec::new(), |message: &Message<'_>| {
            let attributes = message.attributes();
            let flags = attributes.find_u32(3).unwrap_or(0);
            if flags & ANONYMOUS != 0 {
                return None;
            }
            Some(SetDump {
                name: attributes.find_str(2)?.to_owned(),
                flags,
                key_size: attributes.find_u32(5)?,
                value_size: attributes.find_u32(7).unwrap_or(0),
            })
        });
        let write = |out: &mut Writer| out.string(1, &table.name);
        self.dump(
            &table.name,
            kind(message::GET_SET),
            table.family as u8,
            &write,
            &mut collect,
        )?;
        Ok(collect.0)
    }

    /// A table's rules, chain by chain in their order.
    ///
    /// # Errors
    /// The dump's.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<RuleDump>> {
        let mut collect = Collect(Vec::new(), |message: &Message<'_>| {
            let attributes = message.attributes();
            if attributes.find_str(1) != Some(&table.name) {
                return None;
            }
            Some(RuleDump {
                chain: attributes.find_str(2)?.to_owned(),
                handle: attributes.find_u64(3)?,
                comment: attributes
                    .find(7)
                    .and_then(parse_comment)
                    .map(str::to_owned),
                expressions: attributes.find(4).unwrap_or_default().to_vec(),
            })
        });
        let write = |out: &mut Writer| out.string(1, &table.name);
        self.dump(
            &table.name,
            kind(message::GET_RULE),
            table.family as u8,
            &write,
            &mut collect,
        )?;
        Ok(collect.0)
    }

    /// A set's elements, in no order.
    ///
    /// # Errors
    /// The dump's; ENOENT if the set isn't there.
    pub fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<ElementDump>> {
        let mut collect = Elements(Vec::new());
        let write = |out: &mut Writer| {
            out.string(1, &table.name);
            out.string(2, set);
        };
        self.dump(
            set,
            kind(message::GET_ELEMENT),
            table.family as u8,
            &write,
            &mut collect,
        )?;
        Ok(collect.0)
    }
}

fn kind(message: u16) -> u16 {
    u16::from(SUBSYSTEM_NFTABLES) << 8 | message
}

struct Elements(Vec<ElementDump>);

impl DumpTarget for Elements {
    fn restart(&mut self) {
        self.0.clear();
    }

    fn message(&mut self, message: &Message<'_>) -> Result<()> {
        let list = message.attributes().find(3).unwrap_or_default();
        self.0
            .extend(Attributes(list).map(|(_, element)| parse_element(Attributes(element))));
        Ok(())
    }
}

fn parse_element(attributes: Attributes<'_>) -> ElementDump {
    let mut element = ElementDump::default();
    for (kind, value) in attributes {
        let data = || Attributes(value).find(1).unwrap_or_default().to_vec();
        match kind {
            1 => element.key = data(),
            2 => {
                element.value = Attributes(value)
                    .find(1)
                    .or(Attributes(value).find(2))
                    .unwrap_or_default()
                    .to_vec()
            }
            3 => element.interval_end = value.last().is_some_and(|flags| flags & 1 != 0),
            6 => element.comment = parse_comment(value).map(str::to_owned),
            10 => element.key_end = Some(data()),
            _ => {}
        }
    }
    element
}
