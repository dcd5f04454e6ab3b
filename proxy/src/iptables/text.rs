//! What `iptables-restore` reads, and what `iptables-save` prints.

use super::model::{Chains, Patch};
use super::names::{JUMPS, KUBELET_FIREWALL, Table, is_ours};

/// The input of `iptables-restore --noflush`. A chain that is named with a colon is made, or emptied.
pub fn format_patch(patch: &Patch) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let before = text.len();
        text.push_str(&format!("*{table}\n"));
        let start = text.len();
        let chains = || patch.write.iter().filter(|((of, _), _)| *of == table);
        let stale = || patch.delete.iter().filter(|_| table == Table::Nat);
        for chain in chains().map(|((_, chain), _)| chain).chain(stale()) {
            text.push_str(&format!(":{chain} - [0:0]\n"));
        }
        for ((_, chain), rules) in chains() {
            for rule in rules {
                text.push_str(&format!("-A {chain} {rule}\n"));
            }
        }
        for jump in patch.jumps.iter().filter(|jump| jump.table == table) {
            text.push_str(&format!("-I {} {}\n", jump.from, jump.rule()));
        }
        for chain in stale() {
            text.push_str(&format!("-X {chain}\n"));
        }
        if text.len() == start {
            text.truncate(before);
        } else {
            text.push_str("COMMIT\n");
        }
    }
    text
}

/// Our chains and the built-in ones that lead to them, out of what `iptables-save` prints.
pub fn parse_saved(text: &str) -> Chains {
    let mut chains = Chains::new();
    let mut table = None;
    let is_wanted = |table: Table, chain: &str| {
        is_ours(table, chain)
            || (table, chain) == (Table::Filter, KUBELET_FIREWALL)
            || JUMPS
                .iter()
                .any(|jump| (jump.table, jump.from) == (table, chain))
    };
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name);
            continue;
        }
        let Some(table) = table else { continue };
        let (chain, rule) = if let Some(chain) = line.strip_prefix(':') {
            (chain.split(' ').next().unwrap_or_default(), None)
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").map(split_word) {
            (chain, Some(rule.to_owned()))
        } else {
            continue;
        };
        if is_wanted(table, chain) {
            let rules = chains.entry((table, chain.to_owned())).or_default();
            rules.extend(rule);
        }
    }
    chains
}

fn split_word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// What deletes all our chains, and the rules that lead to them.
pub fn format_deletion(kernel: &Chains) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let of_table = || kernel.iter().filter(move |((of, _), _)| *of == table);
        let ours = || of_table().filter(|((table, chain), _)| is_ours(*table, chain));
        if ours().next().is_none() {
            continue;
        }
        text.push_str(&format!("*{table}\n"));
        for ((_, chain), _) in ours() {
            text.push_str(&format!(":{chain} - [0:0]\n"));
        }
        let built_in = of_table().filter(|((table, chain), _)| !is_ours(*table, chain));
        for ((_, chain), rules) in built_in {
            let target = |rule: &str| rule.rsplit_once("-j ").map(|(_, target)| target.to_owned());
            let leads = |rule: &&String| target(rule).is_some_and(|to| is_ours(table, &to));
            for rule in rules.iter().filter(leads) {
                text.push_str(&format!("-D {chain} {rule}\n"));
            }
        }
        for ((_, chain), _) in ours() {
            text.push_str(&format!("-X {chain}\n"));
        }
        text.push_str("COMMIT\n");
    }
    text
}
