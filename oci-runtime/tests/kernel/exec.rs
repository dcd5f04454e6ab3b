//! Other programs in a running container.

use crate::bundle::{Bundle, Ran};
use serde_json::json;

fn exec(bundle: &Bundle, words: &[&str]) -> Ran {
    let mut all = vec!["exec"];
    all.extend(words);
    Ran::from(bundle.output(&all))
}

fn same_namespaces(bundle: &Bundle) {
    let pid = bundle.state()["pid"].to_string();
    let script = "for n in pid mnt net ipc uts cgroup user; do readlink /proc/self/ns/$n; done";
    let inside = exec(bundle, &[&bundle.id, "sh", "-c", script]).ok();
    for (line, name) in inside
        .lines()
        .zip(["pid", "mnt", "net", "ipc", "uts", "cgroup", "user"])
    {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(line, theirs.to_str().unwrap(), "{name}");
    }
    assert_eq!(inside.lines().count(), 7);
}

#[test]
fn exec_is_in_all_of_the_containers_namespaces_and_its_cgroup() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    same_namespaces(&bundle);
    let out = exec(&bundle, &[&bundle.id, "cat", "/proc/self/cgroup"]).ok();
    assert!(
        out.lines()
            .filter(|line| line.contains("::") || line.contains(":pids:"))
            .all(|line| line.ends_with(":/")),
        "{out}"
    );
    assert_eq!(exec(&bundle, &[&bundle.id, "sh", "-c", "exit 9"]).code, 9);
}

#[test]
fn exec_in_a_user_namespace() {
    let bundle = Bundle::new("sleep 100").with_user_namespace();
    std::os::unix::fs::chown(bundle.path(""), Some(100_000), None).unwrap();
    bundle.start();
    same_namespaces(&bundle);
    assert!(
        exec(&bundle, &[&bundle.id, "id"])
            .ok()
            .contains("uid=0(root)")
    );
    assert!(
        exec(&bundle, &["--user", "1000:1000", &bundle.id, "id"])
            .ok()
            .contains("uid=1000")
    );
}

#[test]
fn exec_takes_user_directory_environment_and_capabilities() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    let out = exec(
        &bundle,
        &[
            "--user",
            "1000:1000",
            "--cwd",
            "/tmp",
            "--env",
            "A=b",
            "--cap",
            "CAP_SYS_TIME",
            &bundle.id,
            "sh",
            "-c",
            "id -u; pwd; echo $A; grep CapBnd /proc/self/status",
        ],
    )
    .ok();
    assert!(out.starts_with("1000\n/tmp\nb\n"), "{out}");
    assert!(out.contains("0000000022000420"), "{out}");
}

#[test]
fn a_capability_added_for_an_exec_is_ambient_only_if_the_containers_processes_could_inherit_it() {
    const CHOWN: u64 = 1;
    const SYSLOG: u64 = 1 << 34;
    for (inheritable, ambient) in [
        (json!([]), 0),
        (json!(["CAP_CHOWN"]), CHOWN),
        (json!(["CAP_CHOWN", "CAP_SYSLOG"]), CHOWN | SYSLOG),
    ] {
        let mut bundle = Bundle::new("sleep 100");
        bundle.process()["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_SYSLOG"], "permitted": ["CAP_CHOWN"],
            "effective": ["CAP_CHOWN"], "inheritable": inheritable, "ambient": ["CAP_CHOWN"],
        });
        bundle.start();
        let words = [
            "--cap",
            "CAP_SYSLOG",
            &bundle.id,
            "cat",
            "/proc/self/status",
        ];
        let out = exec(&bundle, &words).ok();
        let set = |name: &str| {
            let line = out.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        let inherited = match inheritable.as_array().unwrap().len() {
            0 => 0,
            1 => CHOWN,
            _ => CHOWN | SYSLOG,
        };
        assert_eq!(set("CapInh:"), inherited, "{inheritable}");
        assert_eq!(set("CapAmb:"), ambient, "{inheritable}");
        assert_eq!(set("CapPrm:"), CHOWN | SYSLOG, "{inheritable}");
    }
}

#[test]
fn exec_reads_a_process_file_and_detaches() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    let process = json!({"args": ["sh", "-c", "touch /tmp/done; sleep 50"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]});
    std::fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    let status = bundle
        .command(&[
            "exec",
            "--detach",
            "--process",
            "process.json",
            "--pid-file",
            "exec.pid",
            &bundle.id,
        ])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let pid: i32 = std::fs::read_to_string(bundle.path("exec.pid"))
        .unwrap()
        .parse()
        .unwrap();
    let pids: Vec<i32> =
        serde_json::from_str(&bundle.must(&["ps", "--format", "json", &bundle.id])).unwrap();
    assert!(pids.contains(&pid));
}

#[test]
fn exec_that_fails_says_why() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    let ran = exec(&bundle, &[&bundle.id, "nothing-here"]);
    assert_eq!(ran.code, 127);
    assert!(ran.stderr.contains("not found"), "{}", ran.stderr);
    bundle.must(&["kill", &bundle.id, "KILL"]);
    bundle.wait_status("stopped");
    let ran = exec(&bundle, &[&bundle.id, "true"]);
    assert!(ran.stderr.contains("stopped"), "{}", ran.stderr);
}
