//! A batch of changes that becomes one transaction: all of it, or nothing.

use super::object::{Chain, Element, INLINE_SET, Set, comment_data};
use super::rule::Rule;
use super::socket::Socket;
use super::wire::{Answer, LIST_LIMIT, Nest, SUBSYSTEM_NFTABLES, Writer, flag};
use super::{Table, message};
use crate::error::{Error, describe_errno};
use std::fmt;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Changes to tables, collected. Order counts: what is referred to is created before.
///
/// Each change carries the tag that was set last by [`Batch::tag`], and a refusal names it.
pub struct Batch {
    out: Writer,
    sequence: u32,
    set_id: u32,
    tag: u32,
    list: Option<OpenList>,
    /// Where each tag begins, in order.
    spots: Vec<Spot>,
    /// What each message is, for refusals; the index is the sequence number less one.
    messages: Vec<Subject>,
    changes: usize,
}

struct OpenList {
    table: Table,
    set: String,
    delete: bool,
    nest: Nest,
}

#[derive(Clone, Copy)]
struct Spot {
    sequence: u32,
    offset: u32,
    tag: u32,
}

#[derive(Clone)]
struct Subject {
    operation: &'static str,
    object: String,
}

/// One change that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The tag of the change; `None` if the kernel refused the batch as a whole.
    pub tag: Option<u32>,
    /// What was to be done: `add chain`, `delete element`.
    pub operation: &'static str,
    /// To what: the chain's or the set's name.
    pub object: String,
    /// Why.
    pub errno: i32,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}: {}",
            self.operation,
            self.object,
            describe_errno(self.errno)
        )
    }
}

/// Why a batch wasn't applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchError {
    /// The kernel refused these changes, and with them all others.
    Refused(Vec<Refusal>),
    /// The batch couldn't be handed over, or its answer was lost: what the kernel holds has to be looked up.
    Socket(Error),
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchError::Refused(refusals) => match refusals.as_slice() {
                [] => f.write_str("refused"),
                [one] => one.fmt(f),
                [first, more @ ..] => write!(f, "{first} (and {} more)", more.len()),
            },
            BatchError::Socket(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BatchError {}

impl From<Error> for BatchError {
    fn from(error: Error) -> Self {
        BatchError::Socket(error)
    }
}

impl Default for Batch {
    fn default() -> Self {
        Batch::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        let mut out = Writer::default();
        out.begin(BATCH_BEGIN, flag::REQUEST, 0, 0, SUBSYSTEM_NFTABLES.into());
        out.end();
        Batch {
            out,
            sequence: 0,
            set_id: 0,
            tag: 0,
            list: None,
            spots: Vec::new(),
            messages: Vec::new(),
            changes: 0,
        }
    }

    /// Marks all that follows, until the next call.
    pub fn tag(&mut self, tag: u32) {
        self.tag = tag;
    }

    /// How many changes there are; an element counts as one.
    pub fn len(&self) -> usize {
        self.changes
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes == 0
    }

    /// Bytes of the messages so far.
    pub fn size_bytes(&self) -> usize {
        self.out.buffer.len()
    }

    /// How many messages there are; elements of one set that follow one another share a message.
    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    fn begin(
        &mut self,
        kind: u16,
        flags: u16,
        table: &Table,
        operation: &'static str,
        object: &str,
    ) {
        self.close_list();
        self.sequence += 1;
        let kind = u16::from(SUBSYSTEM_NFTABLES) << 8 | kind;
        self.out.begin(
            kind,
            flag::REQUEST | flags,
            self.sequence,
            table.family as u8,
            0,
        );
        self.messages.push(Subject {
            operation,
            object: object.to_owned(),
        });
    }

    fn mark(&mut self) {
        self.changes += 1;
        let spot = Spot {
            sequence: self.sequence,
            offset: self.out.offset() as u32,
            tag: self.tag,
        };
        self.spots.push(spot);
    }

    fn single(
        &mut self,
        kind: u16,
        flags: u16,
        table: &Table,
        operation: &'static str,
        object: &str,
        write: impl FnOnce(&mut Writer),
    ) {
        self.begin(kind, flags, table, operation, object);
        self.mark();
        write(&mut self.out);
        self.out.end();
    }

    /// Creates a table, unless it is there.
    pub fn add_table(&mut self, table: &Table) {
        self.single(
            message::NEW_TABLE,
            0,
            table,
            "add table",
            &table.name,
            |out| {
                out.string(1, &table.name);
                out.u32(2, 0);
            },
        );
    }

    /// Deletes a table with all that it holds; one that isn't there is no error.
    pub fn delete_table(&mut self, table: &Table) {
        self.add_table(table);
        self.single(
            message::DELETE_TABLE,
            0,
            table,
            "delete table",
            &table.name,
            |out| out.string(1, &table.name),
        );
    }

    /// Creates a chain, unless it is there.
    pub fn add_chain(&mut self, table: &Table, chain: &Chain) {
        self.single(
            message::NEW_CHAIN,
            flag::CREATE,
            table,
            "add chain",
            &chain.name,
            |out| {
                chain.encode(&table.name, out);
            },
        );
    }

    /// Deletes an empty chain that nothing jumps to.
    pub fn delete_chain(&mut self, table: &Table, name: &str) {
        self.single(
            message::DELETE_CHAIN,
            0,
            table,
            "delete chain",
            name,
            |out| {
                out.string(1, &table.name);
                out.string(3, name);
            },
        );
    }

    /// Creates a set, unless one just like it is there.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.set_id += 1;
        let id = self.set_id;
        self.single(
            message::NEW_SET,
            flag::CREATE,
            table,
            "add set",
            &set.name,
            |out| set.encode(&table.name, id, out),
        );
    }

    /// Deletes a set with its elements; no rule may refer to it.
    pub fn delete_set(&mut self, table: &Table, name: &str) {
        self.single(message::DELETE_SET, 0, table, "delete set", name, |out| {
            out.string(1, &table.name);
            out.string(2, name);
        });
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        let inline = rule.inline_set.as_ref().map(|(field, values)| {
            self.set_id += 1;
            self.add_inline_set(table, self.set_id, *field, values);
            self.set_id
        });
        self.single(
            message::NEW_RULE,
            flag::CREATE | flag::APPEND,
            table,
            "add rule to chain",
            chain,
            |out| {
                out.string(1, &table.name);
                out.string(2, chain);
                let list = out.nest(4);
                for expr in &rule.exprs {
                    expr.encode(out, inline);
                }
                out.close(list);
                if let Some(comment) = &rule.comment {
                    out.bytes(7, &comment_data(comment));
                }
            },
        );
    }

    fn add_inline_set(&mut self, table: &Table, id: u32, field: super::Field, values: &[Vec<u8>]) {
        const ANONYMOUS_CONSTANT: u32 = 3;
        let set = Set::of(INLINE_SET, &[field]);
        self.single(
            message::NEW_SET,
            flag::CREATE,
            table,
            "add set",
            "of a rule",
            |out| {
                out.string(1, &table.name);
                out.string(2, INLINE_SET);
                out.u32(3, ANONYMOUS_CONSTANT);
                out.u32(4, field.data_type());
                out.u32(5, field.size() as u32);
                out.u32(10, id);
                let description = out.nest(9);
                out.u32(1, values.len() as u32);
                out.close(description);
                out.bytes(13, &set.user_data());
            },
        );
        self.single(
            message::NEW_ELEMENT,
            flag::CREATE,
            table,
            "add element",
            "of a rule",
            |out| {
                out.string(1, &table.name);
                out.string(2, INLINE_SET);
                out.u32(4, id);
                let list = out.nest(3);
                for value in values {
                    Element::key(value).encode(out);
                }
                out.close(list);
            },
        );
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) {
        self.single(
            message::DELETE_RULE,
            0,
            table,
            "delete rules of chain",
            chain,
            |out| {
                out.string(1, &table.name);
                out.string(2, chain);
            },
        );
    }

    /// Deletes one rule, by the handle that the kernel gave it.
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) {
        self.single(
            message::DELETE_RULE,
            0,
            table,
            "delete rule of chain",
            chain,
            |out| {
                out.string(1, &table.name);
                out.string(2, chain);
                out.u64(3, handle);
            },
        );
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, table: &Table, set: &str) {
        self.single(
            message::DELETE_ELEMENT,
            0,
            table,
            "delete elements of set",
            set,
            |out| {
                out.string(1, &table.name);
                out.string(2, set);
            },
        );
    }

    /// Adds an element; one that is there must be just like it, or the batch is refused.
    pub fn add_element(&mut self, table: &Table, set: &str, element: &Element<'_>) {
        self.element(table, set, false, element);
    }

    /// Deletes an element, which must be there; its value doesn't matter.
    pub fn delete_element(&mut self, table: &Table, set: &str, element: &Element<'_>) {
        self.element(table, set, true, element);
    }

    fn element(&mut self, table: &Table, set: &str, delete: bool, element: &Element<'_>) {
        let fits = self.list.as_ref().is_some_and(|open| {
            open.delete == delete
                && open.set == set
                && open.table == *table
                && self.out.length_of(open.nest) < LIST_LIMIT
        });
        if !fits {
            self.open_list(table, set, delete);
        }
        self.mark();
        element.encode(&mut self.out);
    }

    fn open_list(&mut self, table: &Table, set: &str, delete: bool) {
        let (kind, flags, operation) = if delete {
            (message::DELETE_ELEMENT, 0, "delete element of set")
        } else {
            (message::NEW_ELEMENT, flag::CREATE, "add element to set")
        };
        self.begin(kind, flags, table, operation, set);
        self.out.string(1, &table.name);
        self.out.string(2, set);
        let nest = self.out.nest(3);
        self.list = Some(OpenList {
            table: table.clone(),
            set: set.to_owned(),
            delete,
            nest,
        });
    }

    fn close_list(&mut self) {
        if let Some(list) = self.list.take() {
            self.out.close(list.nest);
            self.out.end();
        }
    }

    /// Applies the batch. Of an empty one nothing is sent.
    ///
    /// # Errors
    /// [`BatchError::Refused`] names the changes that the kernel refused; none was applied then.
    pub fn commit(mut self, socket: &mut Socket) -> Result<(), BatchError> {
        if self.is_empty() {
            return Ok(());
        }
        self.close_list();
        // The last message's answer is the transaction's; the others answer only if refused.
        self.out.add_flags(flag::ACK);
        self.out.begin(
            BATCH_END,
            flag::REQUEST,
            self.sequence + 1,
            0,
            SUBSYSTEM_NFTABLES.into(),
        );
        self.out.end();
        socket.answers()?;
        socket.send(&self.out.buffer)?;
        let answers = socket.answers()?;
        let refusals: Vec<Refusal> = answers
            .iter()
            .filter(|answer| answer.errno != 0)
            .map(|answer| self.refusal(answer))
            .collect();
        if !refusals.is_empty() {
            return Err(BatchError::Refused(refusals));
        }
        if answers
            .iter()
            .any(|answer| answer.sequence == self.sequence)
        {
            Ok(())
        } else {
            Err(BatchError::Socket(Error::new(
                "read netlink answers",
                "of a batch",
                libc::ENOBUFS,
            )))
        }
    }

    /// Finds what an answer is about: the change that begins last before the attribute that the kernel objects to.
    fn refusal(&self, answer: &Answer) -> Refusal {
        let subject = (answer.sequence as usize)
            .checked_sub(1)
            .and_then(|index| self.messages.get(index));
        let Some(subject) = subject else {
            return Refusal {
                tag: None,
                operation: "commit",
                object: "batch".into(),
                errno: answer.errno,
            };
        };
        let first = self
            .spots
            .partition_point(|spot| spot.sequence < answer.sequence);
        let within = self.spots[first..]
            .iter()
            .take_while(|spot| spot.sequence == answer.sequence);
        let tag = match answer.offset {
            Some(offset) => within
                .take_while(|spot| spot.offset <= offset)
                .last()
                .map(|spot| spot.tag),
            // Without an offset the message as a whole is meant: that is one change only if it holds one.
            None => {
                let tags: Vec<u32> = within.map(|spot| spot.tag).collect();
                tags.first()
                    .copied()
                    .filter(|first| tags.iter().all(|tag| tag == first))
            }
        };
        Refusal {
            tag,
            operation: subject.operation,
            object: subject.object.clone(),
            errno: answer.errno,
        }
    }
}
