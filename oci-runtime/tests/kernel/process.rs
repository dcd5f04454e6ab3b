//! What the program starts from.

use crate::bundle::Bundle;
use serde_json::json;

fn status_line<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_default()
        .trim()
}

#[test]
fn the_programs_exit_status_is_the_commands() {
    assert_eq!(Bundle::new("exit 7").run().code, 7);
    assert_eq!(
        Bundle::new("kill -9 $$; sleep 5").run().code,
        0,
        "an init is immune to its own SIGKILL"
    );
}

#[test]
fn the_baseline_is_clean() {
    let mut bundle = Bundle::new("");
    bundle.process()["args"] = json!(["cat", "/proc/self/status"]);
    let status = bundle.run().ok();
    for set in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(status_line(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(status_line(&status, "NoNewPrivs"), "1");
    assert_eq!(status_line(&status, "Umask"), "0022");
    assert_eq!(status_line(&status, "CapEff"), "0000000020000420");
    assert_eq!(status_line(&status, "CapBnd"), "0000000020000420");
    assert_eq!(status_line(&status, "CapInh"), "0000000000000000");
}

#[test]
fn the_baseline_is_cruns() {
    let mut bundle = Bundle::new(
        "cat /proc/self/status; cat /proc/self/limits; env; pwd; readlink /proc/self/cwd",
    );
    bundle.config["ociVersion"] = json!("1.0.0");
    let mut crun = bundle.command(&[]);
    // It refuses the hybrid hierarchy, which is hidden from it in a mount namespace of its own.
    let script = format!(
        "mount -t tmpfs none /sys/fs/cgroup/unified 2>/dev/null; exec crun --root {}/crun run {}-crun",
        bundle.state_root().display(),
        bundle.id
    );
    crun = {
        let mut command = std::process::Command::new("unshare");
        command
            .args(["-m", "sh", "-c", &script])
            .current_dir(crun.get_current_dir().unwrap());
        command.stdin(std::process::Stdio::null());
        command
    };
    let theirs = crun.output().expect("crun and unshare are installed");
    let theirs = String::from_utf8_lossy(&theirs.stdout).into_owned();
    assert!(theirs.contains("SigBlk"), "crun ran");
    let ours = bundle.run().ok();
    // Not SigIgn: crun leaves signal 32 ignored, which its C library keeps from its loop over all signals.
    for key in [
        "SigBlk",
        "CapEff",
        "CapPrm",
        "CapBnd",
        "CapInh",
        "CapAmb",
        "NoNewPrivs",
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "Seccomp",
    ] {
        assert_eq!(status_line(&ours, key), status_line(&theirs, key), "{key}");
    }
    let limits = |text: &str| {
        text.lines()
            .filter(|line| line.starts_with("Max "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(limits(&ours), limits(&theirs));
}

#[test]
fn ids_groups_umask_and_home_are_the_specs() {
    let mut bundle = Bundle::new(
        "id; env; grep -E 'Umask|Groups' /proc/self/status; stat -c %u /proc/self/fd/1",
    );
    bundle.process()["user"] =
        json!({"uid": 1000, "gid": 1000, "additionalGids": [7, 8], "umask": 0o077});
    let out = bundle.run().ok();
    assert!(out.contains("uid=1000"), "{out}");
    assert!(out.contains("HOME=/home/u"), "{out}");
    assert_eq!(status_line(&out, "Umask"), "0077");
    assert_eq!(status_line(&out, "Groups"), "7 8");
}

#[test]
fn a_user_keeps_ambient_capabilities() {
    let mut bundle = Bundle::new("grep Cap /proc/self/status");
    bundle.process()["user"] = json!({"uid": 1000, "gid": 1000});
    for set in [
        "bounding",
        "effective",
        "permitted",
        "inheritable",
        "ambient",
    ] {
        bundle.process()["capabilities"][set] = json!(["CAP_NET_BIND_SERVICE"]);
    }
    let out = bundle.run().ok();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_line(&out, set), "0000000000000400", "{set}");
    }
}

#[test]
fn a_program_that_is_not_there_is_127_and_one_that_cannot_run_126() {
    let mut bundle = Bundle::new("");
    bundle.process()["args"] = json!(["no-such-program"]);
    let ran = bundle.run();
    assert_eq!(ran.code, 127);
    assert!(
        ran.stderr.contains("executable file not found in $PATH"),
        "{}",
        ran.stderr
    );
    bundle.process()["args"] = json!(["/etc/passwd"]);
    let ran = bundle.run();
    assert_eq!(ran.code, 126);
    assert!(ran.stderr.contains("permission denied"), "{}", ran.stderr);
}

#[test]
fn descriptors_of_the_caller_are_not_inherited() {
    let out = Bundle::new("ls /proc/self/fd").run().ok();
    // 3 is ls's own.
    assert_eq!(
        out.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
}

#[test]
fn a_terminal_is_the_containers_own() {
    let mut bundle = Bundle::new("tty; stat -c '%t:%T %u' /dev/console; exit 5");
    bundle.process()["terminal"] = json!(true);
    bundle.process()["user"] = json!({"uid": 1000, "gid": 1000});
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = bundle.command(&["run", &bundle.id]);
    let slave = || std::process::Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = command
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .unwrap();
    drop(command);
    drop(pty.slave);
    let mut out = String::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = nix::unistd::read(&pty.master, &mut buffer) {
        out.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert_eq!(child.wait().unwrap().code(), Some(5), "{out}");
    assert!(out.contains("/dev/pts/0"), "{out}");
    assert!(out.contains("88:0 1000"), "{out}");
}

#[test]
fn sysctls_and_names_belong_to_the_container() {
    let mut bundle = Bundle::new(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax; hostname",
    );
    bundle.config["hostname"] = json!("web");
    bundle.linux()["sysctl"] =
        json!({"net.ipv4.ip_unprivileged_port_start": "81", "kernel.msgmax": "5000"});
    assert_eq!(bundle.run().ok(), "81\n5000\nweb\n");
    bundle.linux()["sysctl"] = json!({"vm.swappiness": "1"});
    let ran = bundle.run();
    assert!(
        ran.stderr.contains("linux.sysctl[vm.swappiness]"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_seccomp_profile_decides() {
    let mut bundle = Bundle::new("mkdir /tmp/a; echo $?; chown 1 /tmp; echo $?");
    bundle.linux()["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    let ran = bundle.run();
    assert!(ran.stderr.contains("not supported"), "{}", ran.stderr);
    assert!(ran.stdout.starts_with('1'), "{}", ran.stdout);
    // The same without no_new_privs, where the filter is loaded while privileges are still there.
    bundle.process()["noNewPrivileges"] = json!(false);
    assert!(bundle.run().stderr.contains("not supported"));
}

#[test]
fn the_seccomp_profile_does_not_hold_for_the_change_of_user_and_directory() {
    for (uid, no_new_privs) in [(0, true), (0, false), (1000, true), (1000, false)] {
        let mut bundle = Bundle::new("id -u; grep -E 'CapEff|Seccomp:' /proc/self/status");
        bundle.process()["user"]["uid"] = json!(uid);
        bundle.process()["noNewPrivileges"] = json!(no_new_privs);
        bundle.process()["capabilities"] = json!({});
        bundle.linux()["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["getcwd", "chdir", "setuid"], "action": "SCMP_ACT_ERRNO"}],
        });
        let out = bundle.run().ok();
        assert_eq!(
            out.split_whitespace().collect::<Vec<_>>(),
            [
                &uid.to_string(),
                "CapEff:",
                "0000000000000000",
                "Seccomp:",
                "2"
            ],
            "no_new_privs {no_new_privs}"
        );
    }
}

#[test]
fn in_a_user_namespace_root_is_nobody_outside() {
    let bundle = Bundle::new("id; cat /proc/self/uid_map; touch /tmp/x; grep -E 'CapEff|NoNew' /proc/self/status; echo x >/dev/null")
        .with_user_namespace();
    std::os::unix::fs::chown(bundle.path("rootfs/tmp"), Some(100_000), Some(100_000)).unwrap();
    std::os::unix::fs::chown(bundle.path(""), Some(100_000), None).unwrap();
    let out = bundle.run().ok();
    assert!(out.contains("uid=0(root)"), "{out}");
    assert!(out.contains("100000"), "{out}");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(bundle.path("rootfs/tmp/x"))
            .unwrap()
            .uid(),
        100_000
    );
}

#[test]
fn a_time_namespace_has_its_offset() {
    let mut bundle = Bundle::new("cat /proc/uptime; cat /proc/self/timens_offsets");
    bundle.linux()["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "time"}));
    bundle.linux()["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 0}});
    let out = bundle.run().ok();
    let uptime: f64 = out.split('.').next().unwrap().parse().unwrap();
    assert!(uptime >= 1e9, "{out}");
}

#[test]
fn scheduler_and_io_priority_are_the_specs() {
    let mut bundle =
        Bundle::new("head -c 200 /proc/self/sched >/dev/null 2>&1; cat /proc/self/stat");
    bundle.process()["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    bundle.process()["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    let out = bundle.run().ok();
    let fields: Vec<&str> = out.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[16], "5", "nice: {out}");
    assert_eq!(fields[38], "3", "policy: {out}");
}

#[test]
fn a_seccomp_listener_gets_its_descriptor_and_the_containers_state() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut bundle = Bundle::new("mkdir /tmp/a; echo done");
    let path = bundle.path("agent.sock");
    let agent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    bundle.linux()["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "listenerPath": path,
        "listenerMetadata": "words",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let id = bundle.id.clone();
    let answer = std::thread::spawn(move || {
        let (connection, _) = agent.accept().unwrap();
        let mut bytes = vec![0; 65536];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let count = rustix::net::recvmsg(
            &connection,
            &mut parts,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap()
        .bytes;
        let fds: Vec<_> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
                _ => None,
            })
            .flatten()
            .collect();
        let state: serde_json::Value = serde_json::from_slice(&bytes[..count]).unwrap();
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "words");
        assert_eq!(state["state"]["id"], id);
        assert!(state["pid"].as_i64().unwrap() > 1);
        assert_eq!(fds.len(), 1);
        // Dropped unanswered: the kernel then fails what waits with ENOSYS.
    });
    let ran = bundle.run();
    answer.join().unwrap();
    assert!(ran.stderr.contains("not implemented"), "{}", ran.stderr);
    assert_eq!(ran.stdout, "done\n");
    bundle.linux()["seccomp"]["syscalls"][0]["names"] = json!(["sendmsg"]);
    assert!(bundle.run().stderr.contains("SCMP_ACT_NOTIFY for sendmsg"));
}
