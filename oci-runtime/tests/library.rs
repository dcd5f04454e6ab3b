//! The library as the keeper uses it: from a process with one thread, hence without the standard harness.
//! Needs root and busybox-static.

use linux::cgroup::{Cgroup, Hierarchies};
use linux::mount::{Overlay, overlay};
use linux::namespace::{self, NamespaceKind};
use linux::pidfd::{self, Exit};
use linux::process::{CloneOptions, clone_child};
use oci_runtime::{
    CgroupPlan, ExecTarget, LaunchResources, Launched, Rootfs, Stdio, apply_resources, exec,
    launch, launch_pod_init, plan_exec, plan_launch, read_status,
};
use oci_spec::runtime::{Process, Spec};
use serde_json::json;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const TESTS: [(&str, fn()); 7] = [
    (
        "an_overlay_is_launched_from_descriptors_alone",
        an_overlay_is_launched_from_descriptors_alone,
    ),
    (
        "a_plan_survives_serialization",
        a_plan_survives_serialization,
    ),
    (
        "a_failure_reaches_the_status_descriptor_whole",
        a_failure_reaches_the_status_descriptor_whole,
    ),
    (
        "a_pod_init_reaps_and_its_end_ends_the_pod",
        a_pod_init_reaps_and_its_end_ends_the_pod,
    ),
    (
        "containers_of_a_pod_share_its_user_namespace",
        containers_of_a_pod_share_its_user_namespace,
    ),
    ("a_terminal_is_there_at_once", a_terminal_is_there_at_once),
    ("a_threaded_caller_is_refused", a_threaded_caller_is_refused),
];

/// The part of the standard harness's command line that test runners use.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let filters: Vec<&String> = args
        .iter()
        .filter(|arg| !arg.starts_with('-') && *arg != "terse")
        .collect();
    if has("--list") {
        if !has("--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return;
    }
    for (name, test) in TESTS {
        let chosen = |filter: &&&String| {
            if has("--exact") {
                filter.as_str() == name
            } else {
                name.contains(filter.as_str())
            }
        };
        if filters.is_empty() || filters.iter().any(|filter| chosen(&filter)) {
            test();
            println!("test {name} ... ok");
        }
    }
}

/// A cgroup, and layers in a temporary directory.
struct Fixture {
    dir: tempfile::TempDir,
    cgroup: Cgroup,
    id: String,
}

impl Fixture {
    fn new(name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "kernel tests run as root");
        let dir = tempfile::tempdir().unwrap();
        for sub in [
            "lower/bin",
            "lower/proc",
            "lower/dev",
            "lower/sys",
            "lower/tmp",
            "upper",
            "work",
        ] {
            std::fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let bin = dir.path().join("lower/bin");
        std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for applet in [
            "sh", "sleep", "cat", "echo", "id", "readlink", "true", "tty",
        ] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        let id = format!("orlop-test-{}-{name}", std::process::id());
        let cgroup = Cgroup::at(
            Arc::new(Hierarchies::discover().unwrap()),
            &format!("/{id}"),
        )
        .unwrap();
        cgroup.ensure().unwrap();
        Fixture { dir, cgroup, id }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn rootfs(&self) -> OwnedFd {
        let (lower, upper, work) = (self.path("lower"), self.path("upper"), self.path("work"));
        overlay(Overlay {
            lowers: &[&lower],
            upper: Some((&upper, &work)),
            volatile: false,
        })
        .unwrap()
    }

    fn resources(&self) -> LaunchResources {
        let mut resources = LaunchResources::new(&self.id, Rootfs::Detached(self.rootfs()));
        resources.cgroup = Some(self.cgroup.clone());
        resources
    }

    fn start(&self, spec: &Spec, resources: LaunchResources) -> (Launched, std::fs::File) {
        apply_resources(&self.cgroup, spec).unwrap();
        let (plan, fds) = plan_launch(spec, resources).unwrap();
        let (reader, stdio) = stdio();
        (launch(&plan, fds, stdio).unwrap(), reader)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.cgroup.kill();
        let _ = self.cgroup.wait_empty(Duration::from_secs(10));
        let removed = self.cgroup.delete();
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

fn stdio() -> (std::fs::File, Stdio) {
    let (reader, writer) = std::io::pipe().unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let stdout = OwnedFd::from(writer);
    let stderr = stdout.try_clone().unwrap();
    (
        std::fs::File::from(OwnedFd::from(reader)),
        Stdio::Fds {
            stdin: null.into(),
            stdout,
            stderr,
        },
    )
}

fn spec(script: &str, namespaces: &[&str]) -> Spec {
    let namespaces: Vec<_> = namespaces
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    serde_json::from_value(json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", script],
            "capabilities": {}, "noNewPrivileges": true,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        ],
        "linux": {"namespaces": namespaces},
    }))
    .unwrap()
}

fn finish(launched: &Launched) -> Exit {
    let mut bytes = Vec::new();
    std::fs::File::from(launched.status.try_clone().unwrap())
        .read_to_end(&mut bytes)
        .unwrap();
    read_status(&bytes).unwrap();
    pidfd::reap(&launched.pidfd, true).unwrap().unwrap()
}

fn text(mut from: std::fs::File) -> String {
    let mut out = String::new();
    from.read_to_string(&mut out).unwrap();
    out
}

fn an_overlay_is_launched_from_descriptors_alone() {
    let fixture = Fixture::new("overlay");
    let (launched, output) = fixture.start(
        &spec("echo hi >/made; cat /made; exit 4", &["pid", "mount"]),
        fixture.resources(),
    );
    assert_eq!(finish(&launched), Exit::Code(4));
    assert_eq!(text(output), "hi\n");
    assert!(fixture.path("upper/made").exists());
}

fn a_plan_survives_serialization() {
    let fixture = Fixture::new("serial");
    let mut config = spec("true", &["pid", "mount", "ipc"]);
    let mut linux = config.linux().clone().unwrap();
    linux.set_seccomp(Some(
        oci_runtime::seccomp::default_profile(linux::capability::Set::default()).unwrap(),
    ));
    config.set_linux(Some(linux));
    let (plan, fds) = plan_launch(&config, fixture.resources()).unwrap();
    let text = serde_json::to_vec(&plan).unwrap();
    let back: oci_runtime::LaunchPlan = serde_json::from_slice(&text).unwrap();
    assert_eq!(back, plan);
    assert!(text.len() < 64 * 1024, "{} bytes fit a message", text.len());
    let (_reader, stdio) = stdio();
    assert_eq!(finish(&launch(&back, fds, stdio).unwrap()), Exit::Code(0));
}

fn a_failure_reaches_the_status_descriptor_whole() {
    let fixture = Fixture::new("failure");
    let mut config = spec("", &["pid", "mount"]);
    let mut process = config.process().clone().unwrap();
    process.set_args(Some(vec!["nothing-here".to_owned()]));
    config.set_process(Some(process));
    let (launched, _output) = fixture.start(&config, fixture.resources());
    let mut bytes = Vec::new();
    std::fs::File::from(launched.status)
        .read_to_end(&mut bytes)
        .unwrap();
    let error = read_status(&bytes).unwrap_err();
    assert_eq!((error.exit_code, error.errno), (127, libc::ENOENT));
    assert_eq!(
        error.to_string(),
        "exec nothing-here: executable file not found in $PATH"
    );
    assert_eq!(
        pidfd::reap(&launched.pidfd, true).unwrap(),
        Some(Exit::Code(127))
    );
}

fn a_pod_init_reaps_and_its_end_ends_the_pod() {
    let fixture = Fixture::new("podinit");
    let (plan, fds) = CgroupPlan::open(&fixture.cgroup).unwrap();
    let init = launch_pod_init(&plan, fds, None).unwrap();
    let mut end = Vec::new();
    std::fs::File::from(init.status)
        .read_to_end(&mut end)
        .unwrap();
    assert_eq!(read_status(&end), Ok(()));
    assert_eq!(
        std::fs::read_dir(format!("/proc/{}/fd", init.pid))
            .unwrap()
            .count(),
        0,
        "it holds no descriptor"
    );

    let own = namespace::open_own(NamespaceKind::Pid).unwrap();
    let mut resources = fixture.resources();
    resources.namespaces = vec![(
        NamespaceKind::Pid,
        namespace::open_of(init.pid, NamespaceKind::Pid).unwrap(),
    )];
    // An orphan of the container's is the init's to reap.
    let script = "echo $$; (sh -c 'sleep 0' &); cat /proc/1/comm; sleep 100";
    let (launched, mut output) = fixture.start(&spec(script, &["pid", "mount"]), resources);
    assert!(namespace::same(&own, namespace::open_own(NamespaceKind::Pid).unwrap()).unwrap());
    let child = clone_child(CloneOptions::default(), || 0).unwrap();
    assert_eq!(
        pidfd::reap(&child.pidfd, true).unwrap(),
        Some(Exit::Code(0)),
        "own children are outside again"
    );

    let mut bytes = [0; 64];
    let mut out = String::new();
    while !out.ends_with("orlop-pod-init\n") {
        let count = output.read(&mut bytes).unwrap();
        assert!(count > 0, "{out}");
        out.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(out.starts_with("2\n"), "{out}");
    pidfd::send_signal(&init.pidfd, libc::SIGTERM).unwrap();
    // In this order: an init ends only when all of its namespace has been reaped, by whomever.
    assert_eq!(finish(&launched), Exit::Signal(libc::SIGKILL));
    assert_eq!(pidfd::reap(&init.pidfd, true).unwrap(), Some(Exit::Code(0)));
}

fn containers_of_a_pod_share_its_user_namespace() {
    let fixture = Fixture::new("userns");
    for path in ["", "upper", "work", "lower"] {
        std::os::unix::fs::chown(fixture.path(path), Some(200_000), Some(200_000)).unwrap();
    }
    // The pod's namespace, and in it its network: held by a process until they are open.
    let holder = clone_child(
        CloneOptions {
            namespaces: NamespaceKind::User.clone_flag() | NamespaceKind::Network.clone_flag(),
            ..Default::default()
        },
        || {
            std::thread::sleep(Duration::from_secs(5));
            0
        },
    )
    .unwrap();
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", holder.pid), "0 200000 65536").unwrap();
    }
    let open = |kind| namespace::open_of(holder.pid, kind).unwrap();
    let (user, network) = (open(NamespaceKind::User), open(NamespaceKind::Network));
    pidfd::kill(&holder.pidfd).unwrap();
    pidfd::reap(&holder.pidfd, true).unwrap();

    let (plan, fds) = CgroupPlan::open(&fixture.cgroup).unwrap();
    let init = launch_pod_init(&plan, fds, Some(user.try_clone().unwrap())).unwrap();
    let mut resources = fixture.resources();
    resources.namespaces = vec![
        (NamespaceKind::User, user.try_clone().unwrap()),
        (NamespaceKind::Network, network),
        (
            NamespaceKind::Pid,
            namespace::open_of(init.pid, NamespaceKind::Pid).unwrap(),
        ),
    ];
    let mut config = spec(
        "id -u; cat /proc/self/uid_map; echo >/dev/null && echo made >/tmp/x; sleep 100",
        &["pid", "mount", "ipc", "uts"],
    );
    config.set_hostname(Some("pod".to_owned()));
    let (launched, mut output) = fixture.start(&config, resources);
    assert!(
        namespace::same(
            &user,
            namespace::open_of(launched.pid, NamespaceKind::User).unwrap()
        )
        .unwrap()
    );
    let mut bytes = [0; 256];
    let count = output.read(&mut bytes).unwrap();
    assert!(String::from_utf8_lossy(&bytes[..count]).starts_with("0\n"));

    let process: Process = serde_json::from_value(json!({
        "user": {"uid": 7, "gid": 7}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", "id -u; readlink /proc/1/exe || echo hidden"],
    }))
    .unwrap();
    let target = ExecTarget {
        pid: launched.pid,
        pidfd: launched.pidfd.try_clone().unwrap(),
        cgroup: Some(fixture.cgroup.clone()),
        linux: None,
        keyring: None,
        preserve_fds: 0,
        resctrl: None,
    };
    let (plan, fds) = plan_exec(&process, target).unwrap();
    let (reader, stdio) = stdio();
    let second = exec(&plan, fds, stdio).unwrap();
    assert_eq!(finish(&second), Exit::Code(0));
    assert_eq!(text(reader), "7\nhidden\n");
    pidfd::kill(&init.pidfd).unwrap();
    assert_eq!(
        pidfd::reap(&launched.pidfd, true).unwrap(),
        Some(Exit::Signal(libc::SIGKILL))
    );
    pidfd::reap(&init.pidfd, true).unwrap();
}

fn a_terminal_is_there_at_once() {
    let fixture = Fixture::new("terminal");
    let mut config = spec("tty; cat", &["pid", "mount"]);
    let mut process = config.process().clone().unwrap();
    process.set_terminal(Some(true));
    config.set_process(Some(process));
    let (plan, fds) = plan_launch(&config, fixture.resources()).unwrap();
    let launched = launch(
        &plan,
        fds,
        Stdio::Terminal {
            relayed: false,
            size: Some((80, 25)),
        },
    )
    .unwrap();
    let master = launched.terminal.unwrap();
    rustix::io::write(&master, b"ping\n\x04").unwrap();
    let mut out = String::new();
    let mut bytes = [0; 256];
    while let Ok(count @ 1..) = rustix::io::read(&master, &mut bytes) {
        out.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(out.contains("/dev/pts/0"), "{out}");
    assert_eq!(
        out.matches("ping").count(),
        2,
        "echoed, and from cat: {out}"
    );
    assert_eq!(
        pidfd::reap(&launched.pidfd, true).unwrap(),
        Some(Exit::Code(0))
    );
    assert!(Path::new("/dev/pts").exists());
}

fn a_threaded_caller_is_refused() {
    let fixture = Fixture::new("threads");
    let (plan, fds) = plan_launch(&spec("true", &["mount"]), fixture.resources()).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv().is_ok());
    let (_reader, stdio) = stdio();
    let error = launch(&plan, fds, stdio).unwrap_err();
    assert_eq!(error.errno, libc::EDEADLK, "{error}");
    drop(stop);
    thread.join().unwrap();
}
