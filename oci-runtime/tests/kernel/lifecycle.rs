//! The states of a container, and what is refused in each.

use crate::bundle::{Bundle, Ran, cgroups_named, runtime};
use serde_json::json;

#[test]
fn create_waits_start_runs_kill_stops_delete_removes() {
    let bundle = Bundle::new("touch /tmp/started; sleep 100");
    let created = bundle
        .command(&["create", "--pid-file", "pid", &bundle.id])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(created.unwrap().success());
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(
        std::fs::read_to_string(bundle.path("pid")).unwrap(),
        state["pid"].to_string()
    );
    assert!(!bundle.path("rootfs/tmp/started").exists());
    bundle.must(&["start", &bundle.id]);
    bundle.wait_status("running");
    let ran = Ran::from(bundle.output(&["start", &bundle.id]));
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("already running"), "{}", ran.stderr);
    let ran = Ran::from(bundle.output(&["delete", &bundle.id]));
    assert!(
        ran.stderr.contains("that is not stopped: running"),
        "{}",
        ran.stderr
    );
    bundle.must(&["kill", &bundle.id, "KILL"]);
    bundle.wait_status("stopped");
    let ran = Ran::from(bundle.output(&["kill", &bundle.id, "TERM"]));
    assert!(
        ran.stderr.contains("container not running"),
        "{}",
        ran.stderr
    );
    bundle.must(&["delete", &bundle.id]);
    assert_eq!(cgroups_named(&bundle.id).len(), 0);
    let ran = Ran::from(bundle.output(&["state", &bundle.id]));
    assert!(
        ran.stderr.starts_with("error: container does not exist"),
        "{}",
        ran.stderr
    );
}

#[test]
fn an_error_after_the_gate_reaches_start() {
    let mut bundle = Bundle::new("");
    // Found and executable, but no program: only execve can tell.
    std::fs::write(bundle.path("rootfs/bin/broken"), b"\x7fELFgarbage").unwrap();
    std::fs::set_permissions(
        bundle.path("rootfs/bin/broken"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    bundle.process()["args"] = json!(["broken"]);
    let created = bundle
        .command(&["create", &bundle.id])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(created.unwrap().success());
    let ran = Ran::from(bundle.output(&["start", &bundle.id]));
    assert_eq!(ran.code, 126);
    assert!(ran.stderr.contains("exec format error"), "{}", ran.stderr);
    bundle.wait_status("stopped");
}

#[test]
fn a_failed_create_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    bundle.add_mount(json!({"destination": "/x", "type": "no-such-file-system", "source": "x"}));
    let ran = Ran::from(bundle.output(&["create", &bundle.id]));
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .contains("mount no-such-file-system on /x: fsopen"),
        "{}",
        ran.stderr
    );
    assert_eq!(cgroups_named(&bundle.id).len(), 0);
    assert!(!bundle.state_root().join(&bundle.id).exists());
}

#[test]
fn an_id_is_taken_once() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    let ran = Ran::from(bundle.output(&["create", &bundle.id]));
    assert!(
        ran.stderr.contains("container with id exists"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        bundle.state()["status"],
        "running",
        "the first one is untouched"
    );
}

#[test]
fn of_two_starts_at_once_one_wins() {
    let bundle = Bundle::new("sleep 100");
    let created = bundle
        .command(&["create", &bundle.id])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(created.unwrap().success());
    let spawn = || {
        bundle
            .command(&["start", &bundle.id])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let codes: Vec<_> = [spawn(), spawn()]
        .into_iter()
        .map(|mut child| child.wait().unwrap().code().unwrap())
        .collect();
    assert_eq!(
        codes.iter().filter(|code| **code == 0).count(),
        1,
        "{codes:?}"
    );
    assert_eq!(bundle.state()["status"], "running");
}

#[test]
fn a_paused_container_is_paused_and_goes_on() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    bundle.must(&["pause", &bundle.id]);
    assert_eq!(bundle.state()["status"], "paused");
    let ran = Ran::from(bundle.output(&["exec", &bundle.id, "true"]));
    assert!(ran.stderr.contains("paused"), "{}", ran.stderr);
    bundle.must(&["resume", &bundle.id]);
    assert_eq!(bundle.state()["status"], "running");
    bundle.must(&["pause", &bundle.id]);
    bundle.must(&["kill", &bundle.id, "KILL"]);
    bundle.wait_status("stopped");
}

#[test]
fn list_and_ps_name_the_container_and_its_processes() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    bundle.wait_status("running");
    assert_eq!(bundle.must(&["list", "-q"]), format!("{}\n", bundle.id));
    let list: serde_json::Value =
        serde_json::from_str(&bundle.must(&["list", "--format", "json"])).unwrap();
    assert_eq!(list[0]["id"], bundle.id);
    let pids: Vec<i32> =
        serde_json::from_str(&bundle.must(&["ps", "--format", "json", &bundle.id])).unwrap();
    assert!(pids.contains(&(bundle.state()["pid"].as_i64().unwrap() as i32)));
}

#[test]
fn a_log_in_json_has_the_error_on_a_line() {
    let mut bundle = Bundle::new("");
    bundle.process()["args"] = json!(["nothing-here"]);
    let log = bundle.path("log.json");
    let log = log.to_str().unwrap();
    bundle.output(&["--log", log, "--log-format", "json", "create", &bundle.id]);
    let line: serde_json::Value =
        serde_json::from_str(std::fs::read_to_string(log).unwrap().trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("nothing-here"));
}

#[test]
fn the_words_are_runcs() {
    let help = std::process::Command::new(runtime())
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in [
        "create", "start", "run", "state", "kill", "delete", "exec", "ps", "list", "pause",
        "resume", "update", "spec", "features",
    ] {
        assert!(help.contains(word), "{word}");
    }
    let features = std::process::Command::new(runtime())
        .arg("features")
        .output()
        .unwrap();
    let features: serde_json::Value = serde_json::from_slice(&features.stdout).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
}

#[test]
fn hooks_run_in_order_with_the_state_on_their_input() {
    let mut bundle = Bundle::new("sleep 100");
    let log = bundle.path("hooks.log");
    let hook = |name: &str, shell: &str| {
        let script = format!(
            "echo {name} $(cat) $(readlink /proc/self/ns/mnt) >> {}",
            log.display()
        );
        json!([{"path": shell, "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    bundle.config["hooks"] = json!({
        "prestart": hook("prestart", "/bin/sh"),
        "createRuntime": hook("createRuntime", "/bin/sh"),
        "createContainer": hook("createContainer", "/bin/sh"),
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state"]}],
        "poststart": hook("poststart", "/bin/sh"),
        "poststop": hook("poststop", "/bin/sh"),
    });
    bundle.start();
    let pid = bundle.state()["pid"].to_string();
    let inside = std::fs::read_to_string(bundle.path("rootfs/tmp/state")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&inside).unwrap();
    assert_eq!(
        (state["status"].as_str(), state["pid"].to_string()),
        (Some("created"), pid.clone())
    );
    bundle.must(&["delete", "--force", &bundle.id]);
    let log = std::fs::read_to_string(log).unwrap();
    let names: Vec<_> = log
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop"
        ]
    );
    assert!(
        log.lines()
            .take(4)
            .all(|line| line.contains(&format!("\"pid\":{pid}"))),
        "{log}"
    );
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let in_ours: Vec<_> = log
        .lines()
        .map(|line| line.ends_with(own.to_str().unwrap()))
        .collect();
    assert_eq!(in_ours, [true, true, false, true, true]);
}

#[test]
fn hooks_of_a_creation_find_the_mounts_at_the_bundles_root_and_may_add_to_them() {
    let mut bundle = Bundle::new("cat /data/runtime /data/container /data/bound");
    bundle.add_mount(json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs"}));
    let root = bundle.path("rootfs");
    let root = root.display();
    let hook = |script: String| json!([{"path": "/bin/sh", "args": ["sh", "-ec", script], "env": ["PATH=/bin:/usr/bin"]}]);
    bundle.config["hooks"] = json!({
        "createRuntime": hook(format!(
            "pid=$(grep -o '\"pid\":[0-9]*' | cut -d: -f2)
            nsenter --target $pid --mount sh -c 'echo createRuntime > {root}/data/runtime'"
        )),
        "createContainer": hook(format!(
            "cat {root}/data/runtime >/dev/null
            echo createContainer > {root}/data/container; echo bound > {root}/source
            : > {root}/data/bound; mount --bind {root}/source {root}/data/bound"
        )),
    });
    assert_eq!(bundle.run().ok(), "createRuntime\ncreateContainer\nbound\n");
}

#[test]
fn a_container_among_the_hosts_mounts_takes_its_own_away_again() {
    let mut bundle =
        Bundle::new("mkdir -p /tmp/made && readlink /proc/self/ns/mnt && ls /dev/null");
    let namespaces = bundle.linux()["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "mount");
    let ran = bundle.run();
    assert!(
        ran.stderr.contains("without a private MNT namespace"),
        "{ran:?}"
    );
    for list in ["maskedPaths", "readonlyPaths"] {
        bundle.linux()[list] = json!([]);
    }
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let inside = bundle.run().ok();
    assert_eq!(inside, format!("{}\n/dev/null\n", own.display()));
    assert_eq!(mounts(), before);
    bundle.process()["args"] = json!(["no-such-program"]);
    assert_ne!(bundle.run().code, 0);
    assert_eq!(mounts(), before, "after a launch that failed");
}

#[test]
fn a_hook_that_fails_or_hangs_ends_the_creation() {
    for (hook, words) in [
        (
            json!([{"path": "/bin/false"}]),
            "error running createRuntime hook #0: /bin/false: exit status 1",
        ),
        (
            json!([{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]),
            "no end after 1 s",
        ),
    ] {
        let mut bundle = Bundle::new("true");
        bundle.config["hooks"] = json!({"createRuntime": hook});
        let ran = Ran::from(bundle.output(&["create", &bundle.id]));
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
        assert_eq!(cgroups_named(&bundle.id).len(), 0);
    }
}

#[test]
fn inside_a_user_namespace_containers_go_without_a_cgroup() {
    // As rootless podman calls it: root of a user namespace, and nobody to the host.
    let mut bundle = Bundle::new("id -u; echo x >/dev/null && echo fine");
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/sys"));
    bundle.command(&[]);
    let script = format!(
        "mkdir {0} && exec {1} --root {0} run {2}",
        bundle.path("rootless").display(),
        runtime(),
        bundle.id
    );
    for path in ["", "rootfs"] {
        std::os::unix::fs::chown(bundle.path(path), Some(100_000), Some(100_000)).unwrap();
    }
    let user = linux::namespace::user_with_mapping("0 100000 65536", "0 100000 65536").unwrap();
    let user = format!(
        "--user=/proc/{}/fd/{}",
        std::process::id(),
        std::os::fd::AsRawFd::as_raw_fd(&user)
    );
    let output = std::process::Command::new("nsenter")
        .args([&user, "--setuid=0", "--setgid=0"])
        .args(["unshare", "--mount", "--pid", "--fork", "sh", "-c", &script])
        .current_dir(bundle.path(""))
        .output()
        .unwrap();
    let ran = Ran::from(output);
    assert_eq!(ran.stdout, "0\nfine\n", "{}", ran.stderr);
    assert_eq!(ran.code, 0);
}
