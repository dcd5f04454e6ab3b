//! Against plugins that are shell scripts: they record what they are called with.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

struct Setup {
    dir: TempDir,
}

fn no_builtins(_: &str, _: &BTreeMap<String, String>, _: &[u8]) -> Option<PluginOutput> {
    None
}

/// Only `loopback` is in the program, as every ADD runs it first.
fn loopback_only(name: &str, _: &BTreeMap<String, String>, _: &[u8]) -> Option<PluginOutput> {
    (name == "loopback").then(|| PluginOutput {
        code: 0,
        stdout: br#"{"cniVersion":"1.0.0"}"#.to_vec(),
    })
}

impl Setup {
    fn new() -> Self {
        let setup = Self {
            dir: tempfile::tempdir().expect("tempdir"),
        };
        fs::create_dir(setup.path("conf")).expect("mkdir");
        fs::create_dir(setup.path("bin")).expect("mkdir");
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A plugin that writes its calls to `log` and then does `then`.
    fn plugin(&self, name: &str, then: &str) {
        let log = self.path("log");
        let script = format!(
            "#!/bin/sh\nconf=$(cat)\necho \"{name} $CNI_COMMAND netns=$CNI_NETNS $CNI_IFNAME $CNI_ARGS $conf\" >> {}\n{then}\n",
            log.display()
        );
        let path = self.path("bin").join(name);
        fs::write(&path, script).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    fn conflist(&self, name: &str, list: &Value) {
        fs::write(self.path("conf").join(name), list.to_string()).expect("write");
    }

    fn network(&self) -> Network {
        Network::load(self.path("conf"), vec![self.path("bin")], loopback_only)
    }

    /// One line a call.
    fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

fn attachment(netns: &Path) -> Attachment {
    let pod = PodIdentity {
        name: "web".into(),
        namespace: "shop".into(),
        uid: "u1".into(),
    };
    let mapping = PortMapping {
        host_port: 80,
        container_port: 8080,
        protocol: "TCP".into(),
        host_ip: None,
    };
    Attachment::new("box1", netns, "eth0", pod).with_port_mappings(&[mapping])
}

const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"veth1"},{"name":"eth0","sandbox":"/ns"}],"ips":[{"address":"fd00::5/64","interface":2},{"address":"10.1.0.5/24","interface":2},{"address":"192.0.2.9/24","interface":0}]}"#;

fn two_plugins(setup: &Setup) {
    setup.plugin(
        "first",
        &format!("[ $CNI_COMMAND = ADD ] && echo '{RESULT}'; exit 0"),
    );
    setup.plugin(
        "second",
        &format!("[ $CNI_COMMAND = ADD ] && echo '{RESULT}'; exit 0"),
    );
    let list = json!({
        "cniVersion": "1.1.0",
        "name": "net",
        "plugins": [
            { "type": "first", "own": 1 },
            { "type": "second", "capabilities": { "portMappings": true, "bandwidth": true } },
        ],
    });
    setup.conflist("10-net.conflist", &list);
}

#[tokio::test]
async fn add_runs_the_plugins_in_order_and_del_in_reverse_each_with_what_it_may_see() {
    let setup = Setup::new();
    two_plugins(&setup);
    let network = setup.network();
    let attachment = attachment(setup.dir.path());
    let result = network.add(&attachment).await.expect("add");
    assert_eq!(
        result.ips,
        [
            "10.1.0.5".parse::<std::net::IpAddr>().expect("ip"),
            "fd00::5".parse().expect("ip")
        ]
    );
    assert_eq!(
        (result.host_interface(), result.network.as_str()),
        (Some("veth1"), "net")
    );
    network.del(&attachment, Some(&result)).await.expect("del");

    let calls = setup.calls();
    let heads: Vec<String> = calls
        .iter()
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        heads,
        ["first ADD", "second ADD", "second DEL", "first DEL"]
    );
    assert!(calls[0].contains(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=box1"
    ));
    let sent = |call: &str| -> Value {
        serde_json::from_str(&call[call.find('{').expect("json")..]).expect("json")
    };
    let (first, second, del) = (sent(&calls[0]), sent(&calls[1]), sent(&calls[3]));
    assert_eq!(
        (&first["name"], &first["cniVersion"], &first["own"]),
        (&json!("net"), &json!("1.1.0"), &json!(1))
    );
    assert_eq!(
        (first.get("prevResult"), first.get("runtimeConfig")),
        (None, None)
    );
    assert_eq!(
        second["runtimeConfig"]["portMappings"][0],
        json!({ "hostPort": 80, "containerPort": 8080, "protocol": "tcp" })
    );
    assert_eq!(second["prevResult"]["ips"][1]["address"], "10.1.0.5/24");
    assert_eq!(second.get("capabilities"), None);
    assert_eq!(del["prevResult"]["ips"][1]["address"], "10.1.0.5/24");
}

#[tokio::test]
async fn a_failed_add_is_undone_and_its_reason_kept() {
    let setup = Setup::new();
    two_plugins(&setup);
    setup.plugin("second", r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":11,"msg":"busy","details":"try later"}'; exit 1; }; exit 0"#);
    let error = setup
        .network()
        .add(&attachment(setup.dir.path()))
        .await
        .expect_err("second fails");
    assert_eq!(
        error.to_string(),
        "ADD of plugin second in network net: busy: try later (code 11)"
    );
    let heads: Vec<_> = setup
        .calls()
        .iter()
        .map(|call| call.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        heads,
        ["first ADD", "second ADD", "second DEL", "first DEL"]
    );
}

#[tokio::test]
async fn del_goes_on_past_a_failure_with_the_recorded_configuration_and_without_a_namespace() {
    let setup = Setup::new();
    two_plugins(&setup);
    let network = setup.network();
    let gone = setup.path("netns");
    fs::write(&gone, "").expect("write");
    let attachment = attachment(&gone);
    let result = network.add(&attachment).await.expect("add");
    fs::remove_file(&gone).expect("remove");
    fs::remove_file(setup.path("conf/10-net.conflist")).expect("remove");
    setup.plugin("second", "echo broken >&2; exit 3");
    let error = network
        .del(&attachment, Some(&result))
        .await
        .expect_err("second fails");
    assert_eq!(
        error.to_string(),
        "DEL of plugin second in network net: exit status 3 without a reason: broken"
    );
    let last = setup.calls().pop().expect("a call");
    assert!(last.starts_with("first DEL netns= eth0"), "{last}");
}

#[tokio::test]
async fn the_first_configuration_by_name_counts_and_none_is_not_configured() {
    let setup = Setup::new();
    let network = Network::load(setup.path("conf"), vec![setup.path("bin")], no_builtins);
    assert!(matches!(
        network.status().await,
        Err(Error::NotConfigured { .. })
    ));
    setup.conflist(
        "20-b.conflist",
        &json!({ "cniVersion": "1.0.0", "name": "b", "plugins": [{ "type": "x" }] }),
    );
    setup.conflist(
        "10-a.conf",
        &json!({ "cniVersion": "0.4.0", "name": "a", "type": "x" }),
    );
    setup.conflist("00-ignored.txt", &json!({}));
    assert_eq!(network.conflist().expect("conflist").name, "a");
    let missing = network.status().await.expect_err("no plugin");
    assert!(
        matches!(&missing, Error::PluginMissing { plugin, .. } if plugin == "x"),
        "{missing}"
    );
    setup.plugin("x", "exit 0");
    network.status().await.expect("the plugin exists");
}

#[test]
fn a_bad_configuration_is_refused_by_key() {
    let cases = [
        (
            json!({ "cniVersion": "9.0.0", "name": "a", "plugins": [{ "type": "x" }] }),
            "cniVersion",
        ),
        (
            json!({ "cniVersion": "1.0.0", "name": "a b", "plugins": [{ "type": "x" }] }),
            "name",
        ),
        (
            json!({ "cniVersion": "1.0.0", "name": "a", "plugins": [] }),
            "plugins",
        ),
        (
            json!({ "cniVersion": "1.0.0", "name": "a", "plugins": [{ "type": "../x" }] }),
            "plugins[0].type",
        ),
        (
            json!({ "cniVersion": "1.0.0", "name": "a", "disableCheck": 3, "plugins": [{ "type": "x" }] }),
            "disableCheck",
        ),
    ];
    for (value, key) in cases {
        let error = ConfList::parse(&value, Path::new("f"))
            .expect_err(key)
            .to_string();
        assert!(
            error.starts_with(&format!("parse network config f: {key}")),
            "{error}"
        );
    }
    let several = json!({ "cniVersion": "0.4.0", "cniVersions": ["1.0.0", "7.0.0"], "name": "a", "plugins": [{ "type": "x" }] });
    assert_eq!(
        ConfList::parse(&several, Path::new("f"))
            .expect("list")
            .cni_version,
        "1.0.0"
    );
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children() {
    let setup = Setup::new();
    // Whoever holds the pipe's other end is alive: the shell and its child.
    setup.plugin("slow", "exec 9> $CNI_NETNS; sleep 60 & wait");
    let pipe = setup.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    let mut held = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(&pipe)
        .expect("open the pipe");
    let plugins = plugin::Plugins {
        bin_dirs: vec![setup.path("bin")],
        builtin: no_builtins,
        timeout: Duration::from_secs(1),
    };
    let env = BTreeMap::from([("CNI_NETNS".to_owned(), pipe.display().to_string())]);
    let begin = Instant::now();
    let error = plugins.run("slow", &env, b"{}").expect_err("too slow");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    rustix::io::ioctl_fionbio(&held, false).expect("wait for the end");
    held.read_to_end(&mut Vec::new()).expect("read to the end");
    assert!(
        begin.elapsed() < Duration::from_secs(50),
        "the child went on"
    );
}

#[test]
fn a_plugin_may_read_nothing_and_print_a_lot() {
    let setup = Setup::new();
    let path = setup.path("bin/loud");
    fs::write(&path, "#!/bin/sh\nexec <&-\nhead -c 300000 /dev/zero | tr '\\0' x\nhead -c 300000 /dev/zero >&2\n").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    let plugins = plugin::Plugins {
        bin_dirs: vec![setup.path("bin")],
        builtin: no_builtins,
        timeout: Duration::from_secs(20),
    };
    let input = vec![b'x'; 200_000];
    let output = plugins.run("loud", &BTreeMap::new(), &input).expect("run");
    assert_eq!((output.code, output.stdout.len()), (0, 300_000));
}

#[test]
fn the_default_configuration_is_valid_for_both_families() {
    let cidrs = ["10.244.0.0/24", "fd00:244::/64"].map(|cidr| cidr.parse().expect("net"));
    let text = default_conflist(&cidrs, Path::new("/leases"));
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let list = ConfList::parse(&value, Path::new("f")).expect("list");
    let names: Vec<_> = list
        .plugins
        .iter()
        .map(|plugin| plugin.plugin.as_str())
        .collect();
    assert_eq!(names, ["bridge", "portmap"]);
    assert_eq!(
        list.plugins[0].raw["ipam"]["ranges"][1][0]["subnet"],
        "fd00:244::/64"
    );
}
