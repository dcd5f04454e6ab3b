//! The model's rules and elements as changes of a batch.

use crate::ruleset::Entry;
use crate::ruleset::model::Difference;
use crate::ruleset::skeleton::ChainRules;
use linux::nftables::{Batch, Element, ElementValue, Table, Verdict};
use std::sync::Arc;

pub(super) fn add_rules(batch: &mut Batch, table: &Table, chain: &ChainRules) {
    for rule in &chain.rules {
        batch.add_rule(table, &chain.chain.name, rule);
    }
}

pub(super) fn add_verdict(
    batch: &mut Batch,
    table: &Table,
    set: &str,
    key: u32,
    verdict: &Verdict,
) {
    let key = key.to_ne_bytes();
    let value = Some(ElementValue::Verdict(verdict));
    batch.add_element(
        table,
        set,
        &Element {
            key: &key,
            value,
            ..Element::default()
        },
    );
}

/// Deletions, then additions, each by set, so that they share messages.
pub(super) fn add_difference(batch: &mut Batch, table: &Table, mut difference: Difference) {
    difference.delete.sort_by_key(|labelled| labelled.entry.set);
    difference.add.sort_by_key(|labelled| labelled.entry.set);
    add_labelled(batch, table, difference, &mut Vec::new());
}

/// Adds a difference; each element's tag is its label's index in `labels`.
pub(super) fn add_labelled(
    batch: &mut Batch,
    table: &Table,
    difference: Difference,
    labels: &mut Vec<Arc<str>>,
) {
    for labelled in &difference.delete {
        add_entry(batch, table, &labelled.entry, None);
    }
    for labelled in &difference.add {
        if labels.last() != Some(&labelled.label) {
            labels.push(labelled.label.clone());
        }
        batch.tag(labels.len() as u32 - 1);
        add_entry(batch, table, &labelled.entry, Some(&labelled.label));
    }
}

/// Adds an entry with its owner's name, or deletes it if there is no name.
pub(super) fn add_entry(batch: &mut Batch, table: &Table, entry: &Entry, label: Option<&str>) {
    let (key, end, value) = (
        entry.key.bytes(),
        entry.key.end_bytes(),
        entry.value.bytes(),
    );
    let has_value = label.is_some() && !value.as_slice().is_empty();
    let element = Element {
        key: key.as_slice(),
        key_end: end.as_ref().map(|end| end.as_slice()),
        interval_end: false,
        value: has_value.then(|| ElementValue::Data(value.as_slice())),
        comment: label,
    };
    let name = entry.set.name();
    if label.is_some() {
        batch.add_element(table, &name, &element);
    } else {
        batch.delete_element(table, &name, &element);
    }
}
