//! A policy as rules and fixed sets, for one family.

use super::facts::{Direction, Name, PolicyFacts, Ports, RuleFacts};
use super::model::{Isolation, Model, PodSet};
use linux::nftables::{Family, Field, Rule, Set};
use std::net::IpAddr;

/// The name of a pods' set.
pub fn set_name(set: PodSet) -> String {
    match set {
        PodSet::Selector(number) => format!("pods-{number}"),
        PodSet::Port(number) => format!("port-{number}"),
    }
}

/// A pods' set, as it is declared.
pub fn declaration(set: PodSet, family: Family) -> Set {
    let address = Field::daddr(family);
    match set {
        PodSet::Selector(_) => Set::of(set_name(set), &[address]),
        PodSet::Port(_) => Set::of(set_name(set), &[address, Field::L4Proto, Field::ThDport]),
    }
}

/// The chain of a policy's rules in a direction.
pub fn policy_chain(number: u32, direction: Direction) -> String {
    format!("policy-{number}-{}", direction.name())
}

/// The chain of an isolated address; a colon can't be in a name that `nft` reads.
pub fn address_chain(address: IpAddr, direction: Direction) -> String {
    format!("{}-{address}", direction.name()).replace(':', "_")
}

/// A set that says what a rule says, and never changes.
pub struct FixedSet {
    /// How it is declared.
    pub set: Set,
    /// Key, last key of a range or nothing, whether the key is past a range's end.
    pub elements: Vec<(Vec<u8>, Option<Vec<u8>>, bool)>,
}

/// A direction of a policy.
pub struct Compiled {
    /// Its sets.
    pub sets: Vec<FixedSet>,
    /// Its chain's rules: each accepts.
    pub rules: Vec<Rule>,
}

/// The names of the sets that [`compile`] makes for a policy.
pub fn fixed_sets(
    number: u32,
    facts: &PolicyFacts,
    family: Family,
    direction: Direction,
) -> Vec<String> {
    let rules = facts.rules(direction).unwrap_or_default();
    let names = rules.iter().enumerate().flat_map(|(index, rule)| {
        let blocks = has_blocks(rule, family).then(|| blocks_name(number, direction, index));
        let ports = has_port_set(rule).then(|| ports_name(number, direction, index));
        blocks.into_iter().chain(ports)
    });
    names.collect()
}

fn blocks_name(number: u32, direction: Direction, index: usize) -> String {
    format!("blocks-{number}-{}-{index}", direction.name())
}

fn ports_name(number: u32, direction: Direction, index: usize) -> String {
    format!("ports-{number}-{}-{index}", direction.name())
}

fn has_blocks(rule: &RuleFacts, family: Family) -> bool {
    let peers = rule.peers.as_ref();
    peers.is_some_and(|peers| !peers.blocks.is_empty(family))
}

/// One port is compared, more are looked up.
fn has_port_set(rule: &RuleFacts) -> bool {
    let ports = rule.ports.as_ref();
    ports.is_some_and(|ports| match ports.numbers.as_slice() {
        [] => false,
        [(_, first, last)] => first != last,
        _ => true,
    })
}

/// The rules of a policy in a direction. The model has the sets that it refers to.
pub fn compile(
    model: &Model,
    number: u32,
    facts: &PolicyFacts,
    family: Family,
    direction: Direction,
) -> Compiled {
    let mut compiled = Compiled {
        sets: Vec::new(),
        rules: Vec::new(),
    };
    let peer = match direction {
        Direction::Ingress => Field::saddr(family),
        Direction::Egress => Field::daddr(family),
    };
    for (index, rule) in facts
        .rules(direction)
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        let mut peers = vec![Rule::new()];
        if let Some(wanted) = &rule.peers {
            let sets = wanted.selectors.iter();
            let sets = sets.filter_map(|selector| model.selector(&selector.key));
            let mut names: Vec<String> = sets
                .map(|number| set_name(PodSet::Selector(number)))
                .collect();
            if has_blocks(rule, family) {
                let set = Set::of(blocks_name(number, direction, index), &[peer]).of_intervals();
                names.push(set.name.clone());
                let ends = wanted.blocks.ends(family).into_iter();
                let elements = ends.map(|(key, end)| (key, None, end)).collect();
                compiled.sets.push(FixedSet { set, elements });
            }
            peers = names
                .iter()
                .map(|name| Rule::new().is_in(&[peer], name))
                .collect();
        }
        let mut ports = vec![Box::new(|rule: Rule| rule) as Box<dyn Fn(Rule) -> Rule>];
        if let Some(wanted) = &rule.ports {
            if has_port_set(rule) {
                let name = ports_name(number, direction, index);
                compiled.sets.push(port_set(&name, wanted));
            }
            ports = port_matches(
                model,
                wanted,
                family,
                ports_name(number, direction, index),
                has_port_set(rule),
            );
        }
        let pairs = peers
            .iter()
            .flat_map(|peer| ports.iter().map(move |port| port(peer.clone()).accept()));
        compiled.rules.extend(pairs);
    }
    compiled
}

type Match = Box<dyn Fn(Rule) -> Rule>;

fn port_matches(
    model: &Model,
    ports: &Ports,
    family: Family,
    set: String,
    has_set: bool,
) -> Vec<Match> {
    let mut matches: Vec<Match> = Vec::new();
    if has_set {
        matches.push(Box::new(move |rule| {
            rule.is_in(&[Field::L4Proto, Field::ThDport], &set)
        }));
    } else if let [(protocol, port, _)] = *ports.numbers.as_slice() {
        matches.push(Box::new(move |rule| {
            rule.matches(Field::L4Proto, &[protocol.0])
                .matches(Field::ThDport, &port.to_be_bytes())
        }));
    }
    let fields = [Field::daddr(family), Field::L4Proto, Field::ThDport];
    for number in ports.named.iter().filter_map(|port| model.port(port)) {
        let name = set_name(PodSet::Port(number));
        matches.push(Box::new(move |rule| rule.is_in(&fields, &name)));
    }
    matches
}

fn port_set(name: &str, ports: &Ports) -> FixedSet {
    let key = |protocol: u8, port: u16| port_key(protocol, port).to_vec();
    let set = Set::of(name, &[Field::L4Proto, Field::ThDport]);
    let ranges = ports.numbers.iter().any(|(_, first, last)| first != last);
    let elements = ports.numbers.iter().map(|(protocol, first, last)| {
        let end = ranges.then(|| key(protocol.0, *last));
        (key(protocol.0, *first), end, false)
    });
    FixedSet {
        elements: elements.collect(),
        set: if ranges { set.of_intervals() } else { set },
    }
}

/// `protocol . port`, each padded to four bytes.
pub fn port_key(protocol: u8, port: u16) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [protocol, 0, 0, 0, high, low, 0, 0]
}

/// The chain of an isolated address: what no policy allows is dropped.
pub fn address_rules(
    model: &Model,
    address: IpAddr,
    isolation: &Isolation,
    direction: Direction,
) -> Vec<Rule> {
    let numbers = isolation.of(direction).into_iter().flatten();
    let named = numbers.filter_map(|number| Some((number, model.policy(*number)?.0)));
    let mut rules: Vec<Rule> = named
        .map(|(number, name)| {
            Rule::new()
                .jump(&policy_chain(*number, direction))
                .comment(name.to_string())
        })
        .collect();
    let owner = model.owner(address).map(Name::to_string);
    let drop = Rule::new().counter().drop();
    rules.push(match owner {
        Some(owner) => drop.comment(owner),
        None => drop,
    });
    rules
}
