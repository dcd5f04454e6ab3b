//! Rules, built statement by statement in nft's words: each step adds the kernel's expressions and the text that
//! `nft list` prints for them.

use super::Family;
use super::expr::{Compare, Expr, LookupResult, MetaKey, Register, SetOperation, Verdict};
use super::field::{Field, format_fields};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

pub(super) const FIRST: Register = Register(0);

/// A rule: what must hold, then what happens.
///
/// ```
/// use linux::nftables::{Field, Rule};
/// let rule = Rule::new().matches(Field::L4Proto, &[6]).jump("web");
/// assert_eq!(rule.text(), "meta l4proto tcp jump web");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub(super) exprs: Vec<Expr>,
    /// The keys of the rule's own nameless set.
    pub(super) inline_set: Option<(Field, Vec<Vec<u8>>)>,
    pub(super) comment: Option<String>,
    text: String,
}

/// Loads fields one after the other from a register on, as a concatenation; returns the next free register.
pub(super) fn load_all(exprs: &mut Vec<Expr>, fields: &[Field], first: Register) -> Register {
    fields.iter().fold(first, |register, field| {
        exprs.push(field.load(register));
        Register(register.0 + field.size().div_ceil(4) as u32)
    })
}

impl Rule {
    /// A rule that does nothing yet.
    pub fn new() -> Rule {
        Rule::default()
    }

    /// The rule as `nft list` prints it.
    pub fn text(&self) -> String {
        match &self.comment {
            Some(comment) => format!("{} comment \"{comment}\"", self.text),
            None => self.text.clone(),
        }
    }

    pub(super) fn step(mut self, text: &str, exprs: impl IntoIterator<Item = Expr>) -> Rule {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(text);
        self.exprs.extend(exprs);
        self
    }

    /// Says what the rule is for; nft prints it at the rule's end.
    pub fn comment(mut self, comment: impl Into<String>) -> Rule {
        self.comment = Some(comment.into());
        self
    }

    /// `field == value`; `value` has the field's size, and the byte order that [`Field`] states.
    pub fn matches(self, field: Field, value: &[u8]) -> Rule {
        self.compare(field, Compare::Equal, value)
    }

    /// `field == value` or `field != value`.
    pub fn compare(self, field: Field, compare: Compare, value: &[u8]) -> Rule {
        let sign = if compare == Compare::NotEqual {
            "!= "
        } else {
            ""
        };
        let text = format!("{field} {sign}{}", field.format_value(value));
        self.step(
            &text,
            [
                field.load(FIRST),
                Expr::Cmp {
                    from: FIRST,
                    compare,
                    value: value.to_vec(),
                },
            ],
        )
    }

    /// An interface's name: of the packet's way in ([`Field::IifName`]) or out ([`Field::OifName`]). A name that ends
    /// in `*` stands for all that begin so.
    pub fn interface(self, field: Field, compare: Compare, name: &str) -> Rule {
        let mut value = vec![0; 16];
        let wanted = name.strip_suffix('*').unwrap_or(name).as_bytes();
        let length = wanted.len().min(15);
        value[..length].copy_from_slice(&wanted[..length]);
        if name.ends_with('*') {
            value.truncate(length);
        }
        let sign = if compare == Compare::NotEqual {
            "!= "
        } else {
            ""
        };
        let text = format!("{field} {sign}\"{name}\"");
        self.step(
            &text,
            [
                field.load(FIRST),
                Expr::Cmp {
                    from: FIRST,
                    compare,
                    value,
                },
            ],
        )
    }

    /// An address is in the network `address/prefix` (or isn't). The field's family and the address's must agree.
    pub fn in_network(self, field: Field, compare: Compare, address: IpAddr, prefix: u8) -> Rule {
        let bytes = super::address_bytes(address);
        let mask: Vec<u8> = (0..bytes.len())
            .map(|at| !(255u16 >> usize::from(prefix).saturating_sub(at * 8).min(8)) as u8)
            .collect();
        let value: Vec<u8> = bytes
            .iter()
            .zip(&mask)
            .map(|(byte, mask)| byte & mask)
            .collect();
        let sign = if compare == Compare::NotEqual {
            "!= "
        } else {
            ""
        };
        let full = usize::from(prefix) == bytes.len() * 8;
        let suffix = if full {
            String::new()
        } else {
            format!("/{prefix}")
        };
        let text = format!("{field} {sign}{}{suffix}", field.format_value(&value));
        let xor = vec![0; bytes.len()];
        self.step(
            &text,
            [
                field.load(FIRST),
                Expr::Bitwise {
                    from: FIRST,
                    to: FIRST,
                    mask,
                    xor,
                },
                Expr::Cmp {
                    from: FIRST,
                    compare,
                    value,
                },
            ],
        )
    }

    /// Any of the bits is set: `ct state new`, `ct status dnat`.
    pub fn has_any(self, field: Field, bits: u32) -> Rule {
        let text = format!("{field} {}", field.format_value(&bits.to_ne_bytes()));
        self.step(
            &text,
            [
                field.load(FIRST),
                Expr::Bitwise {
                    from: FIRST,
                    to: FIRST,
                    mask: bits.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                },
                Expr::Cmp {
                    from: FIRST,
                    compare: Compare::NotEqual,
                    value: vec![0; 4],
                },
            ],
        )
    }

    /// `field & mask == value`, for fields in host order.
    pub fn masked(self, field: Field, mask: u32, value: u32) -> Rule {
        let show = |value: u32| field.format_value(&value.to_ne_bytes());
        let text = format!("{field} & {} == {}", show(mask), show(value));
        self.step(
            &text,
            [
                field.load(FIRST),
                Expr::Bitwise {
                    from: FIRST,
                    to: FIRST,
                    mask: mask.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                },
                Expr::Cmp {
                    from: FIRST,
                    compare: Compare::Equal,
                    value: value.to_ne_bytes().to_vec(),
                },
            ],
        )
    }

    /// The fields' concatenation is in a named set.
    pub fn is_in(self, fields: &[Field], set: &str) -> Rule {
        self.lookup(fields, set, false)
    }

    /// The fields' concatenation isn't in a named set.
    pub fn is_not_in(self, fields: &[Field], set: &str) -> Rule {
        self.lookup(fields, set, true)
    }

    fn lookup(self, fields: &[Field], set: &str, invert: bool) -> Rule {
        let sign = if invert { "!= " } else { "" };
        let text = format!("{} {sign}@{set}", format_fields(fields));
        let mut exprs = Vec::new();
        load_all(&mut exprs, fields, FIRST);
        exprs.push(Expr::Lookup {
            set: set.to_owned(),
            from: FIRST,
            result: LookupResult::Member { invert },
        });
        self.step(&text, exprs)
    }

    /// The field is one of a few values, held in the rule's own nameless set; at most once in a rule.
    pub fn is_one_of(mut self, field: Field, values: &[&[u8]]) -> Rule {
        let shown: Vec<String> = values
            .iter()
            .map(|value| field.format_value(value))
            .collect();
        self.inline_set = Some((field, values.iter().map(|value| value.to_vec()).collect()));
        self.step(
            &format!("{field} {{ {} }}", shown.join(", ")),
            [field.load(FIRST), Expr::LookupInline { from: FIRST }],
        )
    }

    /// `meta priority set <key> map @map`; the rule ends here if the key is absent.
    pub fn set_priority_from(self, key: &[Field], map: &str) -> Rule {
        let text = format!("meta priority set {} map @{map}", format_fields(key));
        let mut exprs = Vec::new();
        load_all(&mut exprs, key, FIRST);
        exprs.push(Expr::Lookup {
            set: map.to_owned(),
            from: FIRST,
            result: LookupResult::Value(FIRST),
        });
        exprs.push(Expr::MetaSet {
            key: MetaKey::Priority,
            from: FIRST,
        });
        self.step(&text, exprs)
    }

    /// `meta priority set none`.
    pub fn clear_priority(self) -> Rule {
        self.step(
            "meta priority set none",
            [
                Expr::Immediate {
                    to: FIRST,
                    value: vec![0; 4],
                },
                Expr::MetaSet {
                    key: MetaKey::Priority,
                    from: FIRST,
                },
            ],
        )
    }

    /// `meta priority set meta priority & mask`.
    pub fn mask_priority(self, mask: u32) -> Rule {
        let text = format!(
            "meta priority set meta priority & {}",
            Field::Priority.format_value(&mask.to_ne_bytes())
        );
        self.step(
            &text,
            [
                Field::Priority.load(FIRST),
                Expr::Bitwise {
                    from: FIRST,
                    to: FIRST,
                    mask: mask.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                },
                Expr::MetaSet {
                    key: MetaKey::Priority,
                    from: FIRST,
                },
            ],
        )
    }

    /// `meta mark set meta mark | bits`.
    pub fn set_mark_bits(self, bits: u32) -> Rule {
        self.change_mark(
            &format!("meta mark set meta mark | 0x{bits:08x}"),
            !bits,
            bits,
        )
    }

    /// `meta mark set meta mark ^ bits`.
    pub fn flip_mark_bits(self, bits: u32) -> Rule {
        self.change_mark(
            &format!("meta mark set meta mark ^ 0x{bits:08x}"),
            u32::MAX,
            bits,
        )
    }

    fn change_mark(self, text: &str, mask: u32, xor: u32) -> Rule {
        self.step(
            text,
            [
                Field::Mark.load(FIRST),
                Expr::Bitwise {
                    from: FIRST,
                    to: FIRST,
                    mask: mask.to_ne_bytes().to_vec(),
                    xor: xor.to_ne_bytes().to_vec(),
                },
                Expr::MetaSet {
                    key: MetaKey::Mark,
                    from: FIRST,
                },
            ],
        )
    }

    /// `meta mark & bits != 0`.
    pub fn mark_has(self, bits: u32) -> Rule {
        let text = format!("meta mark & 0x{bits:08x} != 0x00000000");
        self.step(
            &text,
            [
                Field::Mark.load(FIRST),
                Expr::Bitwise {
                    from: FIRST,
                    to: FIRST,
                    mask: bits.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                },
                Expr::Cmp {
                    from: FIRST,
                    compare: Compare::NotEqual,
                    value: vec![0; 4],
                },
            ],
        )
    }

    /// `<key> vmap @map`: obeys the verdict that the key leads to.
    pub fn verdict_from(self, key: &[Field], map: &str) -> Rule {
        let mut exprs = Vec::new();
        load_all(&mut exprs, key, FIRST);
        exprs.push(Expr::Lookup {
            set: map.to_owned(),
            from: FIRST,
            result: LookupResult::Verdict,
        });
        self.step(&format!("{} vmap @{map}", format_fields(key)), exprs)
    }

    /// `<field> & mask vmap @map`, for fields in host order.
    pub fn verdict_from_masked(self, field: Field, mask: u32, map: &str) -> Rule {
        let text = format!(
            "{field} & {} vmap @{map}",
            field.format_value(&mask.to_ne_bytes())
        );
        self.step(
            &text,
            [
                field.load(FIRST),
                Expr::Bitwise {
                    from: FIRST,
                    to: FIRST,
                    mask: mask.to_ne_bytes().to_vec(),
                    xor: vec![0; 4],
                },
                Expr::Lookup {
                    set: map.to_owned(),
                    from: FIRST,
                    result: LookupResult::Verdict,
                },
            ],
        )
    }

    /// `reject`: ICMP port unreachable.
    pub fn reject(self, family: Family) -> Rule {
        let code = if family == Family::Ip6 { 4 } else { 3 };
        self.step("reject", [Expr::Reject { reset: false, code }])
    }

    /// `reject with tcp reset`, of TCP alone: nft keeps the match of the protocol to itself. Unlike an ICMP message a
    /// reset isn't held back by the kernel's rate limit.
    pub fn reject_tcp(self) -> Rule {
        let tcp = vec![libc::IPPROTO_TCP as u8];
        self.step(
            "reject with tcp reset",
            [
                Field::L4Proto.load(FIRST),
                Expr::Cmp {
                    from: FIRST,
                    compare: Compare::Equal,
                    value: tcp,
                },
                Expr::Reject {
                    reset: true,
                    code: 0,
                },
            ],
        )
    }

    /// `counter`.
    pub fn counter(self) -> Rule {
        self.step("counter packets 0 bytes 0", [Expr::Counter])
    }

    /// `update @set { key timeout T : data }` and its like, for dynamic sets and maps. `data` is for maps, also when
    /// deleting; an element that is there keeps its data.
    pub fn change_set(
        self,
        operation: SetOperation,
        set: &str,
        key: &[Field],
        timeout: Option<Duration>,
        data: &[Field],
    ) -> Rule {
        let word = match operation {
            SetOperation::Add => "add",
            SetOperation::Update => "update",
            SetOperation::Delete => "delete",
        };
        let mut text = format!("{word} @{set} {{ {}", format_fields(key));
        if let Some(timeout) = timeout {
            let _ = write!(text, " timeout {}", format_duration(timeout));
        }
        if !data.is_empty() {
            let _ = write!(text, " : {}", format_fields(data));
        }
        text.push_str(" }");
        let mut exprs = Vec::new();
        // nft reads a rule's registers back as 16-byte ones: data begins at the next of these.
        let data_register = Register(load_all(&mut exprs, key, FIRST).0.next_multiple_of(4));
        load_all(&mut exprs, data, data_register);
        exprs.push(Expr::Dynset {
            operation,
            set: set.to_owned(),
            key: FIRST,
            data: (!data.is_empty()).then_some(data_register),
            timeout_ms: timeout.map_or(0, |timeout| timeout.as_millis() as u64),
        });
        self.step(&text, exprs)
    }

    /// Ends the rule with any verdict.
    pub fn verdict(self, verdict: Verdict) -> Rule {
        let text = verdict.to_string();
        self.step(&text, [Expr::Verdict(verdict)])
    }

    /// `jump chain`.
    pub fn jump(self, chain: &str) -> Rule {
        self.verdict(Verdict::Jump(chain.to_owned()))
    }

    /// `goto chain`.
    pub fn goto(self, chain: &str) -> Rule {
        self.verdict(Verdict::Goto(chain.to_owned()))
    }

    /// `accept`.
    pub fn accept(self) -> Rule {
        self.verdict(Verdict::Accept)
    }

    /// `drop`.
    pub fn drop(self) -> Rule {
        self.verdict(Verdict::Drop)
    }

    /// `return`.
    pub fn return_(self) -> Rule {
        self.verdict(Verdict::Return)
    }
}

/// A duration as nft prints it: `3h`, `1h30m`, `10s`.
fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, name) in parts {
        if rest >= unit {
            let _ = write!(text, "{}{name}", rest / unit);
            rest %= unit;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_nft_prints_them() {
        let frontend = [Field::IpDaddr, Field::L4Proto, Field::ThDport];
        let rule = Rule::new()
            .set_priority_from(&frontend, "cluster-ips")
            .goto("cluster");
        let expected =
            "meta priority set ip daddr . meta l4proto . th dport map @cluster-ips goto cluster";
        assert_eq!(rule.text(), expected);
        let network = Rule::new()
            .in_network(
                Field::IpSaddr,
                Compare::NotEqual,
                [10, 244, 3, 4].into(),
                12,
            )
            .accept();
        assert_eq!(network.text(), "ip saddr != 10.240.0.0/12 accept");
        assert_eq!(format_duration(Duration::from_secs(5_400)), "1h30m");
    }

    #[test]
    fn a_network_is_masked_to_its_prefix() {
        let rule = Rule::new().in_network(
            Field::Ip6Saddr,
            Compare::Equal,
            "fe80::1".parse().expect("address"),
            10,
        );
        assert!(
            rule.exprs.iter().any(
                |expr| matches!(expr, Expr::Bitwise { mask, .. } if mask[..3] == [255, 192, 0])
            )
        );
        assert_eq!(rule.text(), "ip6 saddr fe80::/10");
    }
}
