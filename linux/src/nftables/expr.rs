//! Rule expressions as the kernel runs them, and their encoding.

use super::wire::Writer;

/// A register by its index among sixteen of four bytes. The kernel names the same space also as four of sixteen bytes;
/// its dumps prefer those names, and so does the encoding here, which makes a dump comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u32);

impl Register {
    fn number(self) -> u32 {
        if self.0.is_multiple_of(4) {
            1 + self.0 / 4
        } else {
            8 + self.0
        }
    }
}

/// `NFT_PAYLOAD_LL_HEADER`.
pub const LINK_HEADER: u32 = 0;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
pub const NETWORK_HEADER: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
pub const TRANSPORT_HEADER: u32 = 2;

/// Metadata of a packet (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MetaKey {
    /// The queueing priority.
    Priority = 2,
    /// The packet's mark.
    Mark = 3,
    /// Name of the interface that it came in by.
    IifName = 6,
    /// Name of the interface that it leaves by.
    OifName = 7,
    /// The transport protocol's number.
    L4Proto = 16,
}

/// What a routing lookup gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult {
    /// The kind of the address: local, broadcast, …
    AddressType,
}

/// Equal or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `==`.
    Equal,
    /// `!=`.
    NotEqual,
}

/// What happens to the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Leaves this base chain's hook.
    Accept,
    /// Is dropped.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Into another chain and back.
    Jump(String),
    /// Into another chain, from which it returns to this one's caller.
    Goto(String),
}

impl Verdict {
    /// The kernel's number for it.
    pub(super) fn code(&self) -> i32 {
        match self {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
            Verdict::Jump(_) => -3,
            Verdict::Goto(_) => -4,
            Verdict::Return => -5,
        }
    }

    /// The chain that it leads to.
    pub(super) fn chain(&self) -> Option<&str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            _ => None,
        }
    }

    /// Writes the nested attributes of a verdict.
    pub(super) fn encode(&self, out: &mut Writer) {
        const VERDICT: u16 = 2;
        let nest = out.nest_unflagged(VERDICT);
        out.u32(1, self.code() as u32);
        if let Some(chain) = self.chain() {
            out.string(2, chain);
        }
        out.close(nest);
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// Where a lookup's result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupResult {
    /// Nothing is read: the rule goes on if the key is in the set (or isn't, if `invert`).
    Member {
        /// Go on if the key is absent.
        invert: bool,
    },
    /// The value is read into a register; the rule ends if the key is absent.
    Value(Register),
    /// The value is a verdict, which is obeyed.
    Verdict,
}

/// What a rule does to a dynamic set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SetOperation {
    /// Adds unless it is there.
    Add = 0,
    /// Adds, or renews its time.
    Update = 1,
    /// Deletes if it is there.
    Delete = 2,
}

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Meta {
        key: MetaKey,
        to: Register,
    },
    MetaSet {
        key: MetaKey,
        from: Register,
    },
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        to: Register,
    },
    Ct {
        key: u32,
        to: Register,
    },
    Fib {
        source: bool,
        result: FibResult,
        to: Register,
    },
    Random {
        modulus: u32,
        offset: u32,
        to: Register,
    },
    /// `to = from & mask ^ xor`.
    Bitwise {
        from: Register,
        to: Register,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Cmp {
        from: Register,
        compare: Compare,
        value: Vec<u8>,
    },
    Lookup {
        set: String,
        from: Register,
        result: LookupResult,
    },
    /// A lookup in the rule's own nameless set.
    LookupInline {
        from: Register,
    },
    Immediate {
        to: Register,
        value: Vec<u8>,
    },
    Verdict(Verdict),
    /// `family` is `NFPROTO_IPV4` or `NFPROTO_IPV6`; registers hold the lowest address and port.
    Nat {
        source: bool,
        family: u32,
        address: Option<Register>,
        port: Option<Register>,
        flags: u32,
    },
    Masquerade {
        flags: u32,
        port: Option<Register>,
    },
    Redirect {
        port: Option<Register>,
    },
    /// Refuses: `icmp` is (family's) port-unreachable, else a TCP reset.
    Reject {
        reset: bool,
        code: u8,
    },
    Counter,
    Dynset {
        operation: SetOperation,
        set: String,
        key: Register,
        data: Option<Register>,
        timeout_ms: u64,
    },
}

impl Expr {
    /// The kernel module's name for the expression.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Expr::Meta { .. } | Expr::MetaSet { .. } => "meta",
            Expr::Payload { .. } => "payload",
            Expr::Ct { .. } => "ct",
            Expr::Fib { .. } => "fib",
            Expr::Random { .. } => "numgen",
            Expr::Bitwise { .. } => "bitwise",
            Expr::Cmp { .. } => "cmp",
            Expr::Lookup { .. } | Expr::LookupInline { .. } => "lookup",
            Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
            Expr::Nat { .. } => "nat",
            Expr::Masquerade { .. } => "masq",
            Expr::Redirect { .. } => "redir",
            Expr::Reject { .. } => "reject",
            Expr::Counter => "counter",
            Expr::Dynset { .. } => "dynset",
        }
    }

    /// Writes the expression as one element of a rule's list. `inline_set` is the id of the rule's nameless set.
    pub(super) fn encode(&self, out: &mut Writer, inline_set: Option<u32>) {
        const ELEMENT: u16 = 1;
        let element = out.nest(ELEMENT);
        out.string(1, self.name());
        let data = out.nest(2);
        self.encode_data(out, inline_set);
        out.close(data);
        out.close(element);
    }

    fn encode_data(&self, out: &mut Writer, inline_set: Option<u32>) {
        match self {
            Expr::Meta { key, to } => {
                out.u32(2, *key as u32);
                out.u32(1, to.number());
            }
            Expr::MetaSet { key, from } => {
                out.u32(2, *key as u32);
                out.u32(3, from.number());
            }
            Expr::Payload {
                base,
                offset,
                length,
                to,
            } => {
                out.u32(1, to.number());
                out.u32(2, *base);
                out.u32(3, *offset);
                out.u32(4, *length);
            }
            Expr::Ct { key, to } => {
                out.u32(2, *key);
                out.u32(1, to.number());
            }
            Expr::Fib {
                source,
                result: FibResult::AddressType,
                to,
            } => {
                out.u32(3, if *source { 1 } else { 2 });
                out.u32(2, 3);
                out.u32(1, to.number());
            }
            Expr::Random {
                modulus,
                offset,
                to,
            } => {
                out.u32(1, to.number());
                out.u32(2, *modulus);
                out.u32(3, 1);
                out.u32(4, *offset);
            }
            Expr::Bitwise {
                from,
                to,
                mask,
                xor,
            } => {
                out.u32(1, from.number());
                out.u32(2, to.number());
                out.u32(6, 0);
                out.u32(3, mask.len() as u32);
                encode_value(out, 4, mask);
                encode_value(out, 5, xor);
            }
            Expr::Cmp {
                from,
                compare,
                value,
            } => {
                out.u32(1, from.number());
                out.u32(2, if *compare == Compare::Equal { 0 } else { 1 });
                encode_value(out, 3, value);
            }
            Expr::Immediate { to, value } => {
                out.u32(1, to.number());
                encode_value(out, 2, value);
            }
            Expr::Verdict(verdict) => {
                out.u32(1, 0);
                let nest = out.nest(2);
                verdict.encode(out);
                out.close(nest);
            }
            Expr::Counter => {}
            Expr::Reject { reset, code } => {
                out.u32(1, u32::from(*reset));
                if !reset {
                    out.bytes(2, &[*code]);
                }
            }
            Expr::Lookup { .. } | Expr::LookupInline { .. } | Expr::Dynset { .. } => {
                self.encode_set(out, inline_set)
            }
            Expr::Nat { .. } | Expr::Masquerade { .. } | Expr::Redirect { .. } => {
                self.encode_nat(out)
            }
        }
    }

    fn encode_set(&self, out: &mut Writer, inline_set: Option<u32>) {
        match self {
            Expr::Lookup { set, from, result } => {
                out.u32(2, from.number());
                match result {
                    LookupResult::Value(to) => out.u32(3, to.number()),
                    LookupResult::Verdict => out.u32(3, 0),
                    LookupResult::Member { .. } => {}
                }
                out.string(1, set);
                if matches!(result, LookupResult::Member { invert: true }) {
                    out.u32(5, 1);
                }
            }
            Expr::LookupInline { from } => {
                out.u32(2, from.number());
                out.string(1, super::object::INLINE_SET);
                out.u32(4, inline_set.unwrap_or(0));
            }
            Expr::Dynset {
                operation,
                set,
                key,
                data,
                timeout_ms,
            } => {
                out.u32(4, key.number());
                if let Some(data) = data {
                    out.u32(5, data.number());
                }
                out.u32(3, *operation as u32);
                if *timeout_ms > 0 {
                    out.u64(6, *timeout_ms);
                }
                out.string(1, set);
            }
            _ => {}
        }
    }

    fn encode_nat(&self, out: &mut Writer) {
        let register = |out: &mut Writer, kind, register: &Option<Register>| {
            if let Some(register) = register {
                out.u32(kind, register.number());
            }
        };
        match self {
            Expr::Nat {
                source,
                family,
                address,
                port,
                flags,
            } => {
                out.u32(1, if *source { 0 } else { 1 });
                out.u32(2, *family);
                register(out, 3, address);
                register(out, 5, port);
                if *flags != 0 {
                    out.u32(7, *flags);
                }
            }
            Expr::Masquerade { flags, port } => {
                if *flags != 0 {
                    out.u32(1, *flags);
                }
                register(out, 2, port);
            }
            Expr::Redirect { port } => {
                register(out, 1, port);
                if port.is_some() {
                    out.u32(3, 2);
                }
            }
            _ => {}
        }
    }
}

/// A value inside its `NFTA_DATA_VALUE`.
pub(super) fn encode_value(out: &mut Writer, kind: u16, value: &[u8]) {
    let nest = out.nest(kind);
    out.bytes(1, value);
    out.close(nest);
}
