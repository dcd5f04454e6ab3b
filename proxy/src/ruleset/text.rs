//! The table as `nft list table` prints it, from the model.

use super::TABLE;
use super::element::{Entry, SetName};
use super::model::Labelled;
use super::skeleton::{POD_NETWORKS, Skeleton};
use linux::nftables::{Field, MapValue, Set, format_values};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Writes a family's table.
pub fn format_table(skeleton: &Skeleton, entries: impl Iterator<Item = Labelled>) -> String {
    let mut by_set: BTreeMap<SetName, Vec<Labelled>> = BTreeMap::new();
    for labelled in entries {
        by_set.entry(labelled.entry.set).or_default().push(labelled);
    }
    for elements in by_set.values_mut() {
        elements.sort_unstable_by_key(|labelled| labelled.entry);
    }
    let mut out = format!("table {} {TABLE} {{\n", skeleton.family);
    for set in &skeleton.sets {
        let name = by_set
            .keys()
            .copied()
            .find(|name| name.name() == set.name.as_str());
        let elements = name
            .and_then(|name| by_set.get(&name))
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut lines: Vec<String> = elements
            .iter()
            .map(|labelled| format_element(set, labelled))
            .collect();
        if set.name == POD_NETWORKS {
            lines.extend(skeleton.pod_networks.iter().map(ToString::to_string));
        }
        format_set(&mut out, set, &lines);
    }
    for map in &skeleton.verdict_maps {
        let key = |key: &u32| Field::Priority.format_value(&key.to_ne_bytes());
        let lines: Vec<String> = map
            .elements
            .iter()
            .map(|(number, verdict)| format!("{} : {verdict}", key(number)))
            .collect();
        format_set(&mut out, &map.set, &lines);
    }
    for chain in &skeleton.chains {
        let _ = writeln!(out, "\tchain {} {{", chain.chain.name);
        if let Some(base) = &chain.chain.base {
            let _ = writeln!(out, "\t\t{base}");
        }
        for rule in &chain.rules {
            let _ = writeln!(out, "\t\t{}", rule.text());
        }
        out.push_str("\t}\n\n");
    }
    out.truncate(out.trim_end().len());
    out.push_str("\n}\n");
    out
}

fn format_set(out: &mut String, set: &Set, elements: &[String]) {
    let _ = write!(out, "{set}");
    if !elements.is_empty() {
        let _ = writeln!(
            out,
            "\t\telements = {{ {} }}",
            elements.join(",\n\t\t\t     ")
        );
    }
    out.push_str("\t}\n\n");
}

fn format_element(set: &Set, labelled: &Labelled) -> String {
    let Entry { key, value, .. } = &labelled.entry;
    let mut text = match key {
        super::Key::Source(range, _) => {
            let rest = format_values(&set.key[1..], &key.bytes().as_slice()[set.key[0].size()..]);
            format!("{range} . {rest}")
        }
        _ => format_values(&set.key, key.bytes().as_slice()),
    };
    let _ = write!(text, " comment \"{}\"", labelled.label);
    if let Some(MapValue::Fields(fields)) = &set.value {
        let _ = write!(
            text,
            " : {}",
            format_values(fields, value.bytes().as_slice())
        );
    }
    text
}
