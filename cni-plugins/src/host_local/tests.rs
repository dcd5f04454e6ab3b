use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Calls the plugin as it is called from outside.
fn call(
    dir: &Path,
    command: &str,
    id: &str,
    change: impl FnOnce(&mut Value),
) -> Result<Value, Value> {
    let mut config = json!({
        "cniVersion": "1.1.0",
        "name": "net",
        "ipam": { "type": "host-local", "dataDir": dir, "ranges": [[{ "subnet": "10.1.0.0/29" }]] },
    });
    change(&mut config);
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", id),
        ("CNI_NETNS", "/none"),
        ("CNI_IFNAME", "eth0"),
    ];
    let env: BTreeMap<String, String> = env
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let output = crate::run("host-local", &env, config.to_string().as_bytes()).expect("plugin");
    let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if output.code == 0 {
        Ok(value)
    } else {
        Err(value)
    }
}

fn add(dir: &Path, id: &str) -> Result<String, Value> {
    call(dir, "ADD", id, |_| {}).map(|result| address(&result, 0))
}

fn address(result: &Value, index: usize) -> String {
    result["ips"][index]["address"]
        .as_str()
        .expect("address")
        .to_owned()
}

fn leases(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir.join("net")).expect("folder");
    let mut names: Vec<_> = names
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("name")
        })
        .collect();
    names.retain(|name| name.parse::<std::net::IpAddr>().is_ok());
    names.sort();
    names
}

#[test]
fn addresses_go_round_and_a_freed_one_comes_last() {
    let dir = tempfile::tempdir().expect("tempdir");
    let dir = dir.path();
    assert_eq!(add(dir, "a").expect("add"), "10.1.0.2/29");
    assert_eq!(add(dir, "b").expect("add"), "10.1.0.3/29");
    call(dir, "DEL", "a", |_| {}).expect("del");
    call(dir, "DEL", "a", |_| {}).expect("del again");
    for (id, expected) in [
        ("c", "10.1.0.4/29"),
        ("d", "10.1.0.5/29"),
        ("e", "10.1.0.6/29"),
        ("f", "10.1.0.2/29"),
    ] {
        assert_eq!(add(dir, id).expect("add"), expected);
    }
    let exhausted = add(dir, "g").expect_err("all are taken");
    assert_eq!(
        exhausted["msg"],
        "no IP addresses available in range set: 10.1.0.1-10.1.0.6"
    );
    assert_eq!(leases(dir).len(), 5);
}

#[test]
fn the_files_are_upstreams() {
    let dir = tempfile::tempdir().expect("tempdir");
    add(dir.path(), "abc").expect("add");
    let net = dir.path().join("net");
    assert_eq!(
        fs::read_to_string(net.join("10.1.0.2")).expect("lease"),
        "abc\r\neth0"
    );
    assert_eq!(
        fs::read_to_string(net.join("last_reserved_ip.0")).expect("last"),
        "10.1.0.2"
    );
    assert!(net.join("lock").exists());
    let mut names: Vec<_> = fs::read_dir(&net)
        .expect("dir")
        .map(|e| e.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["10.1.0.2", "last_reserved_ip.0", "lock", "owners"]);
}

#[test]
fn a_second_add_of_one_attachment_fails_and_keeps_its_lease() {
    let dir = tempfile::tempdir().expect("tempdir");
    add(dir.path(), "a").expect("add");
    let error = add(dir.path(), "a").expect_err("duplicate");
    assert!(
        error["msg"]
            .as_str()
            .expect("msg")
            .contains("duplicate allocation is not allowed"),
        "{error}"
    );
    assert_eq!(leases(dir.path()), ["10.1.0.2"]);
}

#[test]
fn one_address_comes_from_each_set_or_none_at_all() {
    let dir = tempfile::tempdir().expect("tempdir");
    let dual = |config: &mut Value| {
        config["ipam"]["ranges"] =
            json!([[{ "subnet": "10.1.0.0/29" }], [{ "subnet": "fd00:1::/126" }]]);
    };
    let result = call(dir.path(), "ADD", "a", dual).expect("add");
    assert_eq!(
        (address(&result, 0), address(&result, 1)),
        ("10.1.0.2/29".to_owned(), "fd00:1::2/126".to_owned())
    );
    assert_eq!(result["ips"][1]["gateway"], "fd00:1::1");
    call(dir.path(), "ADD", "b", dual).expect("add");
    call(dir.path(), "ADD", "c", dual).expect_err("the second set is exhausted");
    assert_eq!(leases(dir.path()).len(), 4);
}

#[test]
fn requested_addresses_are_given_or_the_add_fails() {
    let dir = tempfile::tempdir().expect("tempdir");
    let ask = |ip: &'static str| {
        move |config: &mut Value| config["runtimeConfig"] = json!({ "ips": [ip] })
    };
    let result = call(dir.path(), "ADD", "a", ask("10.1.0.6/29")).expect("add");
    assert_eq!(address(&result, 0), "10.1.0.6/29");
    for taken in ["10.1.0.6", "10.1.0.1", "10.2.0.1"] {
        call(dir.path(), "ADD", "b", ask(taken)).expect_err(taken);
    }
    assert_eq!(leases(dir.path()), ["10.1.0.6"]);
}

#[test]
fn gc_frees_what_belongs_to_nobody_even_a_lease_that_a_crash_left_empty() {
    let dir = tempfile::tempdir().expect("tempdir");
    add(dir.path(), "a").expect("add");
    add(dir.path(), "b").expect("add");
    fs::write(dir.path().join("net/10.1.0.6"), "").expect("write");
    let valid = |config: &mut Value| {
        config["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    };
    call(dir.path(), "GC", "", valid).expect("gc");
    assert_eq!(leases(dir.path()), ["10.1.0.3"]);
}

#[test]
fn leases_of_older_releases_without_an_interface_are_found() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::create_dir_all(dir.path().join("net")).expect("mkdir");
    fs::write(dir.path().join("net/10.1.0.3"), "a").expect("write");
    call(dir.path(), "CHECK", "a", |_| {}).expect("check");
    call(dir.path(), "DEL", "a", |_| {}).expect("del");
    assert!(leases(dir.path()).is_empty());
    let missing = call(dir.path(), "CHECK", "a", |_| {}).expect_err("gone");
    assert_eq!(
        missing["msg"],
        "host-local: Failed to find address added by container a"
    );
}

#[test]
fn a_configuration_that_cannot_work_is_refused_by_key() {
    let dir = tempfile::tempdir().expect("tempdir");
    let cases = [
        (json!([[{ "subnet": "10.1.0.7/24" }]]), "host bits"),
        (json!([[{ "subnet": "10.1.0.0/31" }]]), "too small"),
        (
            json!([[{ "subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1" }]]),
            "rangeStart",
        ),
        (
            json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.1.0.0/25" }]]),
            "overlaps",
        ),
        (
            json!([[{ "subnet": "10.1.0.0/24" }, { "subnet": "fd00::/64" }]]),
            "mixed",
        ),
        (json!([]), "no IP ranges"),
        (json!([[]]), "empty"),
    ];
    for (ranges, word) in cases {
        let error = call(dir.path(), "ADD", "a", |config| {
            config["ipam"]["ranges"] = ranges
        })
        .expect_err(word);
        assert_eq!(error["code"], 7, "{error}");
        let msg = error["msg"].as_str().expect("msg");
        assert!(msg.contains("ipam.ranges") && msg.contains(word), "{msg}");
    }
}

#[test]
fn parallel_adds_get_different_addresses() {
    let dir = tempfile::tempdir().expect("tempdir");
    let wide =
        |config: &mut Value| config["ipam"]["ranges"] = json!([[{ "subnet": "10.1.0.0/24" }]]);
    let mut all: Vec<String> = std::thread::scope(|scope| {
        let add = |n: usize| {
            let dir = dir.path();
            scope.spawn(move || address(&call(dir, "ADD", &format!("c{n}"), wide).expect("add"), 0))
        };
        let workers: Vec<_> = (0..50).map(add).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("join"))
            .collect()
    });
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 50);
}

#[test]
fn a_release_does_not_trust_what_was_noted_for_an_owner() {
    let dir = tempfile::tempdir().expect("tempdir");
    add(dir.path(), "a").expect("add");
    add(dir.path(), "b").expect("add");
    let note = dir.path().join("net/owners/a_eth0");
    assert_eq!(fs::read_to_string(&note).expect("note"), "10.1.0.2\n");
    fs::write(&note, "10.1.0.3\n").expect("write");
    call(dir.path(), "DEL", "a", |_| {}).expect("del");
    assert_eq!(leases(dir.path()), ["10.1.0.3"]);
    assert!(!note.exists());
}
