//! Behaviour that upstream's integration suite asks for, and that callers rely on.

use crate::bundle::{Bundle, Ran};
use serde_json::{Value, json};
use std::io::Read;
use std::os::unix::net::UnixListener;

#[test]
fn the_last_entry_of_a_variable_counts_and_an_empty_home_is_looked_up() {
    let mut bundle = Bundle::new("env");
    bundle.process()["env"] = json!(["PATH=/bin", "ONE=1", "HOME=", "ONE=2"]);
    let out = bundle.run().ok();
    let ones: Vec<&str> = out
        .lines()
        .filter(|line| line.starts_with("ONE="))
        .collect();
    assert_eq!(ones, ["ONE=2"], "{out}");
    assert!(out.lines().any(|line| line == "HOME=/root"), "{out}");
}

#[test]
fn a_terminals_lines_end_as_the_program_wrote_them() {
    let mut bundle = Bundle::new("echo one");
    bundle.process()["terminal"] = json!(true);
    assert_eq!(bundle.run().ok(), "one\n");
}

#[test]
fn a_failed_hook_says_what_it_said() {
    let mut bundle = Bundle::new("true");
    bundle.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]});
    let ran = Ran::from(bundle.output(&["create", &bundle.id]));
    assert!(
        ran.stderr
            .contains("error running createRuntime hook #0: /bin/sh: exit status 3, stderr: why"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_start_container_hook_without_an_environment_has_the_programs() {
    let mut bundle = Bundle::new("true");
    bundle.process()["env"] = json!(["PATH=/bin", "OF_THE=program"]);
    bundle.config["hooks"] = json!({"startContainer": [
        {"path": "/bin/sh", "args": ["sh", "-c", "test \"$OF_THE\" = program"]}
    ]});
    bundle.run().ok();
}

#[test]
fn the_path_masked_twice_is_covered_once() {
    let mut bundle = Bundle::new("grep -c ' /tmp ' /proc/self/mountinfo");
    bundle.linux()["maskedPaths"] = json!(["/tmp", "/tmp"]);
    assert_eq!(bundle.run().ok(), "1\n");
}

#[test]
fn an_exec_has_the_containers_personality_and_memory_policy() {
    let mut bundle = Bundle::new("sleep 100");
    bundle.linux()["personality"] = json!({"domain": "LINUX32"});
    bundle.linux()["memoryPolicy"] =
        json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]});
    bundle.start();
    let script = "cat /proc/self/personality; head -n 1 /proc/self/numa_maps";
    let out = Ran::from(bundle.output(&["exec", &bundle.id, "sh", "-c", script])).ok();
    assert!(out.starts_with("00000008\n"), "{out}");
    assert!(out.contains("prefer") && out.contains("relative"), "{out}");
}

#[test]
fn a_process_document_needs_no_user_and_what_exec_itself_fails_in_is_255() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    let process = json!({"cwd": "/", "args": ["id", "-u"], "env": ["PATH=/bin"]});
    std::fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    let ran = bundle.output(&["exec", "--process", "process.json", &bundle.id]);
    assert_eq!(Ran::from(ran).ok(), "0\n");
    let missing = bundle.output(&["exec", "no-such-container", "true"]);
    assert_eq!(missing.status.code(), Some(255));
    let unwritable = bundle.output(&["exec", "--pid-file", "/no/such/file", &bundle.id, "true"]);
    assert_eq!(unwritable.status.code(), Some(255));
}

#[test]
fn a_pidfd_of_the_first_process_is_sent_to_the_socket() {
    let bundle = Bundle::new("sleep 100");
    let listener = UnixListener::bind(bundle.path("pidfd.sock")).unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut name = String::new();
        stream.read_to_string(&mut name).unwrap();
        name
    });
    // Its streams are the container's: nobody may wait for their end.
    let status = bundle
        .command(&["run", "-d", "--pidfd-socket", "pidfd.sock", &bundle.id])
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(receiver.join().unwrap(), "pidfd");
}

#[test]
fn a_list_is_one_line_of_json_and_a_given_root_must_exist() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    let out = Ran::from(bundle.output(&["list", "--format", "json"])).ok();
    assert_eq!(out.lines().count(), 1, "{out}");
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listed[0]["id"], json!(bundle.id));
    let nowhere = std::process::Command::new(crate::bundle::runtime())
        .args(["--root", "/no/such/root", "list"])
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn an_unknown_capability_is_left_out() {
    let mut bundle = Bundle::new("true");
    for set in ["bounding", "effective", "permitted"] {
        bundle.process()["capabilities"][set] = json!(["CAP_CHOWN", "CAP_FLYING"]);
    }
    bundle.run().ok();
}

#[test]
fn a_cgroup_with_another_container_is_refused_and_that_one_goes_on() {
    let mut first = Bundle::new("sleep 100");
    let path = format!("/{}-shared", first.id);
    first.linux()["cgroupsPath"] = json!(path);
    first.start();
    let mut second = Bundle::new("true");
    second.linux()["cgroupsPath"] = json!(path);
    let ran = Ran::from(second.output(&["run", &second.id]));
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("container's cgroup is not empty"),
        "{}",
        ran.stderr
    );
    assert_eq!(first.state()["status"], json!("running"));
}

#[test]
fn a_signal_ends_a_container_that_waits_for_start() {
    let bundle = Bundle::new("true");
    bundle.create();
    Ran::from(bundle.output(&["kill", &bundle.id, "TERM"])).ok();
    bundle.wait_status("stopped");
}

#[test]
fn a_tmpfs_without_a_mode_has_that_of_what_it_covers() {
    let mut bundle = Bundle::new("stat -c %a /covered /fresh /own");
    std::fs::create_dir(bundle.path("rootfs/covered")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o710);
    std::fs::set_permissions(bundle.path("rootfs/covered"), mode).unwrap();
    for (destination, options) in [
        ("/covered", json!([])),
        ("/fresh", json!([])),
        ("/own", json!(["mode=1500"])),
    ] {
        bundle.add_mount(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}));
    }
    assert_eq!(bundle.run().ok(), "710\n1777\n1500\n");
}

#[test]
fn the_launching_processs_affinity_is_not_the_containers() {
    let bundle = Bundle::new("grep Cpus_allowed_list /proc/self/status");
    let free = bundle.run().ok();
    let words = ["-c", "0", crate::bundle::runtime(), "--root"];
    let output = std::process::Command::new("taskset")
        .args(words)
        .arg(bundle.state_root())
        .args(["run", "-b"])
        .arg(bundle.path(""))
        .arg(&bundle.id)
        .output()
        .unwrap();
    assert_eq!(Ran::from(output).ok(), free);
}

#[test]
fn a_kill_ends_all_of_a_container_without_a_pid_namespace() {
    let mut bundle = Bundle::new("sleep 100 & sleep 100");
    let namespaces = bundle.linux()["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|entry| entry["type"] != "pid");
    bundle.start();
    Ran::from(bundle.output(&["kill", &bundle.id, "KILL"])).ok();
    bundle.wait_status("stopped");
    let left = Ran::from(bundle.output(&["ps", "--format", "json", &bundle.id])).ok();
    assert_eq!(left, "[]\n");
}

#[test]
fn a_default_memory_policy_needs_no_nodes() {
    let mut bundle = Bundle::new("true");
    bundle.linux()["memoryPolicy"] = json!({"mode": "MPOL_DEFAULT"});
    bundle.run().ok();
}

#[test]
fn a_profile_that_does_not_know_close_range_keeps_no_container_from_running() {
    let mut bundle = Bundle::new("true");
    bundle.process()["noNewPrivileges"] = json!(false);
    bundle.linux()["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["close_range"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}
    ]});
    bundle.run().ok();
}

#[test]
fn a_cgroup_below_one_that_somebody_else_made_takes_a_container() {
    let v1 = std::path::Path::new("/sys/fs/cgroup/cpuset");
    let hierarchy = if v1.exists() {
        v1
    } else {
        std::path::Path::new("/sys/fs/cgroup")
    };
    let mut bundle = Bundle::new("true");
    let parent = format!("{}-pod", bundle.id);
    std::fs::create_dir(hierarchy.join(&parent)).unwrap();
    bundle.linux()["cgroupsPath"] = json!(format!("/{parent}/{}", bundle.id));
    let ran = bundle.run();
    drop(bundle);
    let _ = std::fs::remove_dir(hierarchy.join(&parent));
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(controller.path().join(&parent));
    }
    ran.ok();
}

#[test]
fn a_cgroup_that_somebody_froze_is_refused() {
    let mut bundle = Bundle::new("true");
    let name = format!("{}-frozen", bundle.id);
    let v1 = std::path::Path::new("/sys/fs/cgroup/freezer");
    let (hierarchy, file, frozen, thawed) = if v1.exists() {
        (v1, "freezer.state", "FROZEN", "THAWED")
    } else {
        let v2 = std::path::Path::new("/sys/fs/cgroup");
        (v2, "cgroup.freeze", "1", "0")
    };
    let dir = hierarchy.join(&name);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join(file), frozen).unwrap();
    bundle.linux()["cgroupsPath"] = json!(format!("/{name}"));
    let ran = Ran::from(bundle.output(&["run", &bundle.id]));
    std::fs::write(dir.join(file), thawed).unwrap();
    drop(bundle);
    let _ = std::fs::remove_dir(&dir);
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(controller.path().join(&name));
    }
    assert_eq!(ran.code, 1);
    let told = "container's cgroup unexpectedly frozen";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
}

#[test]
fn a_hook_in_the_container_is_under_its_filter_and_has_its_home() {
    let mut bundle = Bundle::new("true");
    bundle.process()["env"] = json!(["PATH=/bin"]);
    bundle.config["hooks"] = json!({"startContainer": [
        {"path": "/bin/sh", "args": ["sh", "-c", "test \"$HOME\" = /root && ! mkdir /made"]}
    ]});
    bundle.linux()["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat", "memfd_create"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}
    ]});
    bundle.run().ok();
    assert!(!bundle.path("rootfs/made").exists());
}

#[test]
fn a_poststart_hook_that_fails_ends_the_container() {
    let mut bundle = Bundle::new("sleep 100");
    bundle.config["hooks"] = json!({"poststart": [{"path": "/bin/true"}, {"path": "/bin/false"}]});
    bundle.create();
    let started = Ran::from(bundle.output(&["start", &bundle.id]));
    assert_eq!(started.code, 1);
    let told = "error running poststart hook #1: /bin/false";
    assert!(started.stderr.contains(told), "{}", started.stderr);
    bundle.wait_status("stopped");
    bundle.must(&["delete", &bundle.id]);
    let ran = bundle.run();
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    assert_eq!(bundle.must(&["list", "--quiet"]), "");
}

#[test]
fn warnings_and_debugging_go_to_the_log_in_its_format() {
    let mut bundle = Bundle::new("true");
    bundle.process()["capabilities"]["bounding"] = json!(["CAP_FLYING"]);
    let log = bundle.path("log");
    let words = [
        "--debug",
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "run",
        &bundle.id,
    ];
    let ran = Ran::from(bundle.output(&words));
    assert_eq!(ran.stderr, "");
    ran.ok();
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told = |level: &str, part: &str| {
        lines.iter().any(|line| {
            line["level"] == level
                && line["msg"].as_str().unwrap().contains(part)
                && line["time"].is_string()
        })
    };
    assert!(told("warning", "CAP_FLYING"), "{text}");
    assert!(told("debug", "started container"), "{text}");
    let plain = Ran::from(bundle.output(&["run", &bundle.id]));
    assert!(
        plain.stderr.contains("level=warning msg=\"ignoring"),
        "{}",
        plain.stderr
    );
    assert!(!plain.stderr.contains("level=debug"), "{}", plain.stderr);
}

#[test]
fn a_manager_of_cgroups_that_is_not_used_is_refused_with_what_to_do() {
    let bundle = Bundle::new("true");
    let ran = Ran::from(bundle.output(&["--systemd-cgroup", "run", &bundle.id]));
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("leave it out"), "{}", ran.stderr);
}

#[test]
fn an_exec_goes_into_a_cgroup_below_by_controller() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    let exec = |words: &[&str]| {
        let all: Vec<&str> = ["exec"]
            .iter()
            .chain(words)
            .chain(&[bundle.id.as_str(), "cat", "/proc/self/cgroup"])
            .copied()
            .collect();
        Ran::from(bundle.output(&all))
    };
    let v1 = std::path::Path::new("/sys/fs/cgroup/memory");
    let hierarchy = if v1.exists() {
        v1
    } else {
        std::path::Path::new("/sys/fs/cgroup")
    };
    let whole = exec(&["--cgroup", "/"]).ok();
    assert!(!whole.contains("below"), "{whole}");
    let missing = exec(&["--cgroup", "absent"]);
    assert_eq!(missing.code, 255);
    let unknown = exec(&["--cgroup", "flying:/"]);
    assert!(
        unknown.stderr.contains("unknown controller flying"),
        "{}",
        unknown.stderr
    );
    let below = hierarchy.join(bundle.id.as_str()).join("below");
    std::fs::create_dir(&below).unwrap();
    let word = if v1.exists() { "memory:below" } else { "below" };
    let entered = exec(&["--cgroup", word]).ok();
    std::fs::remove_dir(&below).unwrap();
    assert_eq!(
        entered
            .lines()
            .filter(|line| line.ends_with("/below"))
            .count(),
        1,
        "{entered}"
    );
}
