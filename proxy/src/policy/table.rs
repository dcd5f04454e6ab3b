//! The tables in the kernel: made whole at the start, and then changed by differences.

use super::compile::{
    FixedSet, address_chain, address_rules, compile, declaration, fixed_sets, policy_chain,
    port_key, set_name,
};
use super::facts::{Direction, PolicyFacts};
use super::model::{Difference, Element as PodElement, Isolation, Model, PodSet};
use linux::nftables::{
    Batch, Chain, ChainKind, Element, ElementValue, Family, Field, Hook, Rule, Set, Table, Verdict,
    address_bytes, ct_state,
};
use std::net::IpAddr;

/// The tables' name, one in each family.
pub const TABLE: &str = "orlop-policy";

/// Pairs of an isolated address with itself: nothing keeps a pod from reaching itself.
const ITSELF: &str = "itself";
/// What is needed that any packet goes over IPv6: neighbours, routers, multicast groups.
const DISCOVERY: [[u8; 1]; 9] = [
    [130],
    [131],
    [132],
    [133],
    [134],
    [135],
    [136],
    [137],
    [143],
];
const ICMPV6: u8 = 58;
/// `NF_IP_PRI_FILTER`; the Services' destinations are translated before, masquerading comes after.
const FILTER: i32 = 0;

/// The map from an isolated address to its chain.
fn isolated(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "isolated-ingress",
        Direction::Egress => "isolated-egress",
    }
}

fn own_field(family: Family, direction: Direction) -> Field {
    match direction {
        Direction::Ingress => Field::daddr(family),
        Direction::Egress => Field::saddr(family),
    }
}

fn table(family: Family) -> Table {
    Table::new(family, TABLE)
}

/// Deletes the tables.
pub fn delete(batch: &mut Batch, families: &[Family]) {
    for family in families {
        batch.delete_table(&table(*family));
    }
}

/// Replaces the tables by what the model says.
pub fn replace(batch: &mut Batch, families: &[Family], model: &Model) {
    delete(batch, families);
    for family in families {
        let mut writer = Writer::new(batch, *family);
        writer.skeleton();
        for (set, _) in model.sets() {
            writer
                .batch
                .add_set(&writer.table, &declaration(set, *family));
        }
        for policy in model.policies().values() {
            writer.add_policy(model, policy.number, &policy.facts);
        }
        for (address, isolation) in model.isolated() {
            writer.set_address(model, *address, &Isolation::default(), isolation);
        }
        for (set, elements) in model.sets() {
            for element in elements {
                writer.element(set, element, true);
            }
        }
    }
}

/// Changes the tables. What is new comes first, then what refers to it, then what is gone.
pub fn change(batch: &mut Batch, families: &[Family], model: &Model, difference: &Difference) {
    for family in families {
        let mut writer = Writer::new(batch, *family);
        for set in &difference.new_sets {
            writer
                .batch
                .add_set(&writer.table, &declaration(*set, *family));
        }
        for number in &difference.new_policies {
            if let Some((_, facts)) = model.policy(*number) {
                writer.add_policy(model, *number, facts);
            }
        }
        for set in &difference.new_sets {
            for element in model.elements(*set) {
                writer.element(*set, element, true);
            }
        }
        for added in [false, true] {
            for ((set, element), is) in &difference.elements {
                if *is == added {
                    writer.element(*set, element, added);
                }
            }
        }
        for (address, (before, now)) in &difference.addresses {
            writer.set_address(model, *address, before, now);
        }
        for (number, facts) in &difference.gone_policies {
            writer.delete_policy(*number, facts);
        }
        for set in &difference.gone_sets {
            writer.batch.delete_set(&writer.table, &set_name(*set));
        }
    }
}

/// Writes one family's part.
struct Writer<'a> {
    batch: &'a mut Batch,
    table: Table,
    family: Family,
}

impl<'a> Writer<'a> {
    fn new(batch: &'a mut Batch, family: Family) -> Writer<'a> {
        Writer {
            batch,
            table: table(family),
            family,
        }
    }

    fn skeleton(&mut self) {
        let family = self.family;
        self.batch.add_table(&self.table);
        let pair = [Field::saddr(family), Field::daddr(family)];
        self.batch.add_set(&self.table, &Set::of(ITSELF, &pair));
        for direction in Direction::BOTH {
            let field = own_field(family, direction);
            let map = Set::verdict_map(isolated(direction), &[field]);
            self.batch.add_set(&self.table, &map);
        }
        // Accepting ends a chain of the hook, not the hook: what egress lets through comes to ingress.
        let chains = [
            ("forward-egress", Hook::Forward, FILTER, Direction::Egress),
            (
                "forward-ingress",
                Hook::Forward,
                FILTER + 1,
                Direction::Ingress,
            ),
            ("input-egress", Hook::Input, FILTER, Direction::Egress),
        ];
        for (name, hook, priority, direction) in chains {
            let chain = Chain::base(name, ChainKind::Filter, hook, priority);
            self.batch.add_chain(&self.table, &chain);
            for rule in entry_rules(family, direction) {
                self.batch.add_rule(&self.table, name, &rule);
            }
        }
    }

    fn add_policy(&mut self, model: &Model, number: u32, facts: &PolicyFacts) {
        for direction in Direction::BOTH {
            if facts.rules(direction).is_none() {
                continue;
            }
            let compiled = compile(model, number, facts, self.family, direction);
            for FixedSet { set, elements } in &compiled.sets {
                self.batch.add_set(&self.table, set);
                for (key, key_end, interval_end) in elements {
                    let element = Element {
                        key_end: key_end.as_deref(),
                        interval_end: *interval_end,
                        ..Element::key(key)
                    };
                    self.batch.add_element(&self.table, &set.name, &element);
                }
            }
            let chain = policy_chain(number, direction);
            self.batch.add_chain(&self.table, &Chain::regular(&chain));
            for rule in &compiled.rules {
                self.batch.add_rule(&self.table, &chain, rule);
            }
        }
    }

    fn delete_policy(&mut self, number: u32, facts: &PolicyFacts) {
        for direction in Direction::BOTH {
            if facts.rules(direction).is_none() {
                continue;
            }
            let chain = policy_chain(number, direction);
            self.batch.flush_chain(&self.table, &chain);
            self.batch.delete_chain(&self.table, &chain);
            for set in fixed_sets(number, facts, self.family, direction) {
                self.batch.delete_set(&self.table, &set);
            }
        }
    }

    /// Brings an address's chains from one isolation to another.
    fn set_address(&mut self, model: &Model, address: IpAddr, before: &Isolation, now: &Isolation) {
        if Family::of(address) != self.family {
            return;
        }
        let nothing = Isolation::default();
        if (*before == nothing) != (*now == nothing) {
            let pair = [address_bytes(address), address_bytes(address)].concat();
            self.put(ITSELF, &Element::key(&pair), *before == nothing);
        }
        for direction in Direction::BOTH {
            let (was, is) = (before.of(direction), now.of(direction));
            if was == is {
                continue;
            }
            let chain = address_chain(address, direction);
            let leads = Verdict::Goto(chain.clone());
            let key = address_bytes(address);
            let element = Element {
                value: Some(ElementValue::Verdict(&leads)),
                ..Element::key(&key)
            };
            match (was, is) {
                (None, _) => self.batch.add_chain(&self.table, &Chain::regular(&chain)),
                (Some(_), Some(_)) => self.batch.flush_chain(&self.table, &chain),
                (Some(_), None) => {
                    self.put(isolated(direction), &Element::key(&key), false);
                    self.batch.flush_chain(&self.table, &chain);
                    self.batch.delete_chain(&self.table, &chain);
                    continue;
                }
            }
            for rule in address_rules(model, address, now, direction) {
                self.batch.add_rule(&self.table, &chain, &rule);
            }
            if was.is_none() {
                self.put(isolated(direction), &element, true);
            }
        }
    }

    fn element(&mut self, set: PodSet, (address, port): &PodElement, added: bool) {
        if Family::of(*address) != self.family {
            return;
        }
        let mut key = address_bytes(*address);
        if let Some((protocol, number)) = port {
            key.extend(port_key(*protocol, *number));
        }
        self.put(&set_name(set), &Element::key(&key), added);
    }

    fn put(&mut self, set: &str, element: &Element<'_>, added: bool) {
        if added {
            self.batch.add_element(&self.table, set, element);
        } else {
            self.batch.delete_element(&self.table, set, element);
        }
    }
}

/// The way to the isolated addresses' chains.
fn entry_rules(family: Family, direction: Direction) -> Vec<Rule> {
    let known = ct_state::ESTABLISHED | ct_state::RELATED;
    let mut rules = vec![Rule::new().has_any(Field::CtState, known).accept()];
    if family == Family::Ip6 {
        let types: Vec<&[u8]> = DISCOVERY.iter().map(|number| &number[..]).collect();
        rules.push(
            Rule::new()
                .matches(Field::L4Proto, &[ICMPV6])
                .is_one_of(Field::Icmp6Type, &types)
                .accept(),
        );
    }
    let pair = [Field::saddr(family), Field::daddr(family)];
    rules.push(Rule::new().is_in(&pair, ITSELF).accept());
    let own = own_field(family, direction);
    rules.push(Rule::new().verdict_from(&[own], isolated(direction)));
    rules
}
