//! `config.json` from somebody else: mutated at random, it is refused or planned, and nothing panics.
//!
//! Structure-aware and without coverage feedback, so that it runs with the stable compiler in every run of the tests;
//! `PROPTEST_CASES` makes it longer, and `fuzz/` has a target with it. Planning takes root, since it opens mounts, and changes nothing on the host.

use super::config as plan;
use oci_spec::runtime::Spec;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A spec with something in most of its parts, so that mutations reach them.
fn example() -> Value {
    json!({
        "ociVersion": "1.3.0", "hostname": "web", "domainname": "example",
        "root": {"path": "rootfs", "readonly": true},
        "process": {"terminal": false, "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [5]}, "args": ["true"], "env": ["PATH=/bin", "A=b"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"], "inheritable": [], "ambient": []},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}], "noNewPrivileges": true, "oomScoreAdj": 10,
            "scheduler": {"policy": "SCHED_OTHER", "nice": 1}, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4}, "execCPUAffinity": {"initial": "0", "final": "0-1"}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind", "ro", "rprivate"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        ],
        "hooks": {"createContainer": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 3}]},
        "annotations": {"a": "b"},
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"}, {"type": "cgroup"}, {"type": "user"}, {"type": "time"}],
            "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65_536}], "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65_536}],
            "timeOffsets": {"monotonic": {"secs": 5, "nanosecs": 0}},
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}],
            "cgroupsPath": "/a/b", "sysctl": {"net.ipv4.ip_forward": "1"},
            "resources": {"memory": {"limit": 1_000_000, "swap": 2_000_000, "reservation": 5}, "cpu": {"shares": 1024, "quota": 5000, "period": 10_000, "cpus": "0"}, "pids": {"limit": 5},
                "blockIO": {"weight": 100, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]}, "hugepageLimits": [{"pageSize": "2MB", "limit": 5}],
                "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}]},
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}, {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}]},
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"], "rootfsPropagation": "private", "personality": {"domain": "LINUX"},
        },
    })
}

/// What takes the place of something.
fn replacement() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "",
        "/",
        "..",
        "/..",
        "a\0b",
        "\n",
        "cgroup",
        "bind",
        "user",
        "-1",
        "SCMP_ACT_ALLOW",
        "CAP_ALL",
        "0-",
        "0-4294967295",
        "rbind",
        "idmap",
        "size=-1",
        "mode=9",
    ]);
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![
            0i64,
            1,
            -1,
            63,
            64,
            65_535,
            4_294_967_295,
            i64::MAX,
            i64::MIN
        ])
        .prop_map(Value::from),
        Just(json!(u64::MAX)),
        Just(json!(1.5)),
        words.prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!(["x".repeat(5000)])),
    ]
}

#[derive(Debug, Clone)]
enum Change {
    Replace(Value),
    Remove,
    Double,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => replacement().prop_map(Change::Replace),
        1 => Just(Change::Remove),
        1 => Just(Change::Double),
    ]
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// Changes the `at`th value below this one, counted in depth first; false if there are fewer.
fn mutate(value: &mut Value, at: &mut usize, change: &Change) -> bool {
    let keys: Vec<Value> = match value {
        Value::Array(items) => (0..items.len()).map(Value::from).collect(),
        Value::Object(fields) => fields.keys().cloned().map(Value::from).collect(),
        _ => return false,
    };
    for key in keys {
        if *at == 0 {
            apply(value, &key, change);
            return true;
        }
        *at -= 1;
        let child = match (&mut *value, &key) {
            (Value::Array(items), Value::Number(index)) => {
                items.get_mut(index.as_u64().unwrap() as usize)
            }
            (Value::Object(fields), Value::String(name)) => fields.get_mut(name),
            _ => None,
        };
        if mutate(child.unwrap(), at, change) {
            return true;
        }
    }
    false
}

fn apply(value: &mut Value, key: &Value, change: &Change) {
    match (value, key, change) {
        (Value::Array(items), Value::Number(index), change) => {
            let index = index.as_u64().unwrap() as usize;
            match change {
                Change::Replace(new) => items[index] = new.clone(),
                Change::Remove => drop(items.remove(index)),
                Change::Double => items.push(items[index].clone()),
            }
        }
        (Value::Object(fields), Value::String(name), Change::Replace(new)) => {
            drop(fields.insert(name.clone(), new.clone()))
        }
        (Value::Object(fields), Value::String(name), Change::Remove) => drop(fields.remove(name)),
        (Value::Object(fields), Value::String(name), Change::Double) => {
            let copy = fields[name].clone();
            fields.insert(format!("{name}2"), copy);
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1500)))]

    #[test]
    fn a_mutated_config_is_planned_or_refused_in_words(changes in prop::collection::vec((any::<prop::sample::Index>(), change()), 1..4)) {
        let rootfs = tempfile::tempdir().unwrap();
        let mut config = example();
        for (index, change) in &changes {
            let mut at = index.index(count(&config));
            mutate(&mut config, &mut at, change);
        }
        if let Err(words) = plan(config.to_string().as_bytes(), rootfs.path()) {
            prop_assert!(!words.trim().is_empty());
        }
    }

    #[test]
    fn a_config_with_broken_bytes_is_refused_or_planned(at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..8), length in 0usize..8) {
        let rootfs = tempfile::tempdir().unwrap();
        let mut text = example().to_string().into_bytes();
        let at = at.index(text.len());
        let end = (at + length).min(text.len());
        text.splice(at..end, bytes);
        let _ = plan(&text, rootfs.path());
    }

    #[test]
    fn a_config_that_is_written_again_is_the_same(changes in prop::collection::vec((any::<prop::sample::Index>(), change()), 0..3)) {
        let mut config = example();
        for (index, change) in &changes {
            let mut at = index.index(count(&config));
            mutate(&mut config, &mut at, change);
        }
        if let Ok(spec) = serde_json::from_value::<Spec>(config) {
            let again: Spec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
            prop_assert_eq!(spec, again);
        }
    }
}

#[test]
fn the_example_is_planned() {
    let rootfs = tempfile::tempdir().unwrap();
    let mut config = example();
    // A cgroup mount binds the caller's where the container has none; all else is taken as it is.
    config["linux"]["seccomp"]["flags"] = json!([]);
    plan(config.to_string().as_bytes(), rootfs.path()).unwrap();
}
