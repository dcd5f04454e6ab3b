//! nf_tables and conntrack in a network namespace of each test's own. Needs root.

use linux::namespace::{NamespaceKind, unshare};
use linux::nftables::{
    Batch, BatchError, Chain, ChainKind, Compare, Element, ElementValue, Family, Field, Hook, Rule,
    Set, SetOperation, Socket, Table, Verdict, ct_state, ct_status,
};
use std::process::Command;
use std::time::Duration;

/// Runs a test on a thread of its own, in a network namespace of its own; both end with it.
fn in_network_namespace(test: impl FnOnce(&mut Socket) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(&[NamespaceKind::Network]).expect("a network namespace (needs root)");
        test(&mut Socket::open().expect("netlink socket"));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft")
        .args(arguments)
        .output()
        .expect("nft is installed");
    assert!(
        output.status.success(),
        "nft {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn endpoints(family: Family) -> Set {
    Set::map(
        "endpoints",
        &[Field::Priority, Field::random(2)],
        &[Field::daddr(family), Field::ThDport],
    )
}

fn sample_rules(family: Family) -> Vec<Rule> {
    let client = [
        Field::saddr(family),
        Field::daddr(family),
        Field::L4Proto,
        Field::ThDport,
    ];
    let protocols: [&[u8]; 3] = [&[6], &[17], &[132]];
    vec![
        Rule::new()
            .has_any(Field::CtState, ct_state::NEW)
            .has_any(Field::CtStatus, ct_status::DNAT)
            .return_(),
        Rule::new()
            .is_not_in(&[Field::saddr(family)], "pods")
            .jump("mark-it"),
        Rule::new()
            .matches(Field::FibDaddrType, &2u32.to_ne_bytes())
            .accept()
            .comment("to this host"),
        Rule::new()
            .interface(Field::IifName, Compare::NotEqual, "orlop*")
            .reject(family),
        Rule::new().reject_tcp(),
        Rule::new()
            .masked(Field::Priority, 0xf000_0000, 0x1000_0000)
            .accept(),
        Rule::new().verdict_from_masked(Field::Priority, 0xf000_0000, "classes"),
        Rule::new().clear_priority().counter(),
        Rule::new()
            .mark_has(0x4000)
            .flip_mark_bits(0x4000)
            .masquerade_fully_random(),
        Rule::new().change_set(
            SetOperation::Update,
            "affinity",
            &client,
            Some(Duration::from_secs(10_800)),
            &[Field::Priority],
        ),
        Rule::new().change_set(
            SetOperation::Delete,
            "affinity",
            &client,
            None,
            &[Field::Priority],
        ),
        Rule::new().is_one_of(Field::L4Proto, &protocols).dnat_from(
            family,
            &[Field::Priority, Field::random(4)],
            "endpoints",
        ),
    ]
}

fn build(family: Family, table: &Table) -> Batch {
    let mut batch = Batch::new();
    let client = [
        Field::saddr(family),
        Field::daddr(family),
        Field::L4Proto,
        Field::ThDport,
    ];
    batch.add_table(table);
    batch.add_chain(table, &Chain::regular("mark-it"));
    batch.add_chain(
        table,
        &Chain::base("nat", ChainKind::Nat, Hook::Postrouting, 100),
    );
    batch.add_set(table, &endpoints(family));
    batch.add_set(
        table,
        &Set::of("pods", &[Field::saddr(family)]).of_intervals(),
    );
    batch.add_set(table, &Set::verdict_map("classes", &[Field::Priority]));
    batch.add_set(
        table,
        &Set::map("affinity", &client, &[Field::Priority]).dynamic(1000),
    );
    batch.add_rule(table, "mark-it", &Rule::new().set_mark_bits(0x4000));
    for rule in sample_rules(family) {
        // What can't stand in postrouting stands in a chain of its own.
        let chain = Chain::regular(format!("chain-{}", batch.len()));
        batch.add_chain(table, &chain);
        batch.add_rule(table, &chain.name, &rule);
    }
    let class = 0x1000_0000u32.to_ne_bytes();
    let verdict = Verdict::Goto("mark-it".into());
    let value = Some(ElementValue::Verdict(&verdict));
    batch.add_element(
        table,
        "classes",
        &Element {
            key: &class,
            value,
            ..Element::default()
        },
    );
    batch
}

fn rules_are_printed_and_read_back(family: Family) {
    in_network_namespace(move |socket| {
        let table = Table::new(family, "sample");
        build(family, &table).commit(socket).expect("commit");
        let text = nft(&["list", "table", &family.to_string(), "sample"]);
        for rule in sample_rules(family) {
            assert!(
                text.contains(&format!("\t{}\n", rule.text())),
                "{} in {text}",
                rule.text()
            );
        }
        let dumped = socket.rules(&table).expect("rules");
        for rule in sample_rules(family) {
            assert_eq!(
                dumped.iter().filter(|dump| dump.is_like(&rule)).count(),
                1,
                "{}",
                rule.text()
            );
        }
        // nft 1.0.6 prints a dynamic map's change with a key of more than 16 bytes, but aborts when it reads it.
        let unreadable = |line: &str| family == Family::Ip6 && line.contains("@affinity {");
        let readable: Vec<&str> = text.lines().filter(|line| !unreadable(line)).collect();
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), readable.join("\n") + "\n").expect("write");
        nft(&["delete", "table", &family.to_string(), "sample"]);
        nft(&["-f", &file.path().display().to_string()]);
        let sets = socket.sets(&table).expect("sets");
        assert!(
            sets.iter()
                .any(|set| set.name == "endpoints" && set.is_like(&endpoints(family)))
        );
        assert_eq!(
            socket.chains(&table).expect("chains").len(),
            2 + sample_rules(family).len()
        );
    });
}

#[test]
fn rules_of_ip_are_printed_and_read_back() {
    rules_are_printed_and_read_back(Family::Ip);
}

#[test]
fn rules_of_ip6_are_printed_and_read_back() {
    rules_are_printed_and_read_back(Family::Ip6);
}

#[test]
fn a_refused_element_is_named_by_its_tag_and_nothing_is_applied() {
    in_network_namespace(|socket| {
        let table = Table::new(Family::Ip, "sample");
        build(Family::Ip, &table).commit(socket).expect("commit");
        let mut batch = Batch::new();
        for index in 0..10_000u32 {
            batch.tag(index);
            let key = [0x2000_0000 | index, 0].map(u32::to_ne_bytes).concat();
            // One element's key has the wrong length.
            let key = if index == 7_654 { &key[..3] } else { &key };
            batch.add_element(
                &table,
                "endpoints",
                &Element::pair(key, &[10, 0, 0, 1, 0, 80, 0, 0]),
            );
        }
        let Err(BatchError::Refused(refusals)) = batch.commit(socket) else {
            panic!("it was not refused")
        };
        assert_eq!(refusals.len(), 1, "{refusals:?}");
        assert_eq!(
            (refusals[0].tag, refusals[0].errno),
            (Some(7_654), libc::EINVAL)
        );
        assert!(
            socket
                .elements(&table, "endpoints")
                .expect("dump")
                .is_empty()
        );
    });
}

#[test]
fn deleting_an_absent_element_is_refused_by_tag() {
    in_network_namespace(|socket| {
        let table = Table::new(Family::Ip, "sample");
        build(Family::Ip, &table).commit(socket).expect("commit");
        let mut batch = Batch::new();
        batch.tag(3);
        batch.add_element(
            &table,
            "endpoints",
            &Element::pair(&[1; 8], &[10, 0, 0, 1, 0, 80, 0, 0]),
        );
        batch.tag(4);
        batch.delete_element(&table, "endpoints", &Element::key(&[2; 8]));
        let Err(BatchError::Refused(refusals)) = batch.commit(socket) else {
            panic!("it was not refused")
        };
        assert_eq!(
            (refusals[0].tag, refusals[0].errno),
            (Some(4), libc::ENOENT)
        );
    });
}

#[test]
fn elements_are_read_back_with_comments() {
    in_network_namespace(|socket| {
        let table = Table::new(Family::Ip, "sample");
        build(Family::Ip, &table).commit(socket).expect("commit");
        let value = [10, 0, 0, 1, 0, 80, 0, 0];
        let mut batch = Batch::new();
        let element = Element {
            comment: Some("default/web:http"),
            ..Element::pair(&[1; 8], &value)
        };
        batch.add_element(&table, "endpoints", &element);
        batch.commit(socket).expect("commit");
        let elements = socket.elements(&table, "endpoints").expect("dump");
        assert_eq!(elements.len(), 1);
        assert_eq!(
            (&elements[0].key[..], &elements[0].value[..]),
            (&[1u8; 8][..], &value[..])
        );
        assert_eq!(elements[0].comment.as_deref(), Some("default/web:http"));
    });
}

#[test]
fn deleting_a_table_that_is_not_there_is_no_error() {
    in_network_namespace(|socket| {
        let mut batch = Batch::new();
        batch.delete_table(&Table::new(Family::Ip6, "absent"));
        batch.commit(socket).expect("commit");
        assert!(socket.tables().expect("tables").is_empty());
    });
}

#[test]
fn a_connection_is_found_by_protocol_and_deleted_alone() {
    in_network_namespace(|socket| {
        assert!(
            Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()
                .expect("ip")
                .success()
        );
        // Tracking begins with the first rule that asks for it.
        let table = Table::new(Family::Ip, "sample");
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(
            &table,
            &Chain::base("filter-output", ChainKind::Filter, Hook::Output, 0),
        );
        let rule = Rule::new().has_any(Field::CtState, ct_state::NEW).accept();
        batch.add_rule(&table, "filter-output", &rule);
        batch.commit(socket).expect("commit");
        let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        for port in [5_001, 5_002] {
            client.send_to(b"x", ("127.0.0.1", port)).expect("send");
        }
        let all = |socket: &mut Socket| {
            socket
                .connections(Family::Ip, libc::IPPROTO_UDP as u8, |_| true)
                .expect("connections")
        };
        let found = all(socket);
        assert_eq!(found.len(), 2, "{found:?}");
        let one = found
            .iter()
            .find(|entry| entry.original.destination.port() == 5_001)
            .expect("the entry");
        assert_eq!(one.reply.source, one.original.destination);
        socket.delete_connection(one).expect("delete");
        socket.delete_connection(one).expect("delete what is gone");
        let left = all(socket);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].original.destination.port(), 5_002);
        assert!(
            socket
                .connections(Family::Ip, libc::IPPROTO_TCP as u8, |_| true)
                .expect("tcp")
                .is_empty()
        );
    });
}
