//! What broke other runtimes, tried on this one.

use crate::bundle::{Bundle, Ran};
use serde_json::json;
use std::os::unix::fs::symlink;

#[test]
fn a_working_directory_through_a_descriptor_is_refused() {
    // CVE-2024-21626: a descriptor of the host's, kept open by the runtime.
    for number in 3..12 {
        let mut bundle = Bundle::new("cat /etc/hostname; ls -d ../../../etc/shadow");
        bundle.process()["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let ran = bundle.run();
        assert!(
            ran.code != 0 && ran.stdout.is_empty(),
            "descriptor {number}: {ran:?}"
        );
    }
}

#[test]
fn proc_is_not_mounted_through_a_link() {
    // CVE-2019-19921: /proc of the image is a link, so that masks and labels land elsewhere.
    let bundle = Bundle::new("true");
    std::fs::create_dir(bundle.path("rootfs/elsewhere")).unwrap();
    std::fs::remove_dir(bundle.path("rootfs/proc")).unwrap();
    symlink("/elsewhere", bundle.path("rootfs/proc")).unwrap();
    let ran = bundle.run();
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("mount proc on /proc"), "{}", ran.stderr);
}

#[test]
fn a_destination_stays_inside_the_root() {
    // CVE-2021-30465 and its like: a link that leads out by .. or from the top.
    let mut bundle = Bundle::new("ls /volume");
    let outside = bundle.path("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, bundle.path("rootfs/volume")).unwrap();
    bundle.add_mount(json!({"destination": "/volume", "type": "tmpfs", "source": "tmpfs"}));
    let up = format!("/tmp/up-{}", bundle.id);
    let destination = format!("/volume/../../../../../..{up}");
    bundle.add_mount(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
    bundle.run().ok();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new(&up).exists());
}

#[test]
fn masking_takes_only_the_null_device() {
    // CVE-2025-31133: /dev/null of the image is something else, which would then cover the masked file.
    let mut bundle = Bundle::new("true");
    symlink(
        "/proc/sys/kernel/core_pattern",
        bundle.path("rootfs/dev/null"),
    )
    .unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let ran = bundle.run();
    assert_ne!(ran.code, 0, "{ran:?}");
}

#[test]
fn release_agent_is_not_writable() {
    let script = "for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent; do echo /x > $f && echo WRITTEN; done; true";
    let ran = Bundle::new(script).run();
    assert!(!ran.stdout.contains("WRITTEN"), "{ran:?}");
}

#[test]
fn the_session_keyring_is_the_containers() {
    let host = std::fs::read_to_string("/proc/keys").unwrap_or_default();
    let out = Bundle::new("cat /proc/keys").run().ok();
    assert!(
        out.is_empty(),
        "masked: {out} (the host has {} keys)",
        host.lines().count()
    );
}

#[test]
fn an_exec_cannot_be_traced_before_its_program_runs() {
    // CVE-2016-9962: processes of the container look for descriptors of the runtime's that are joining it.
    let watch = "while true; do for p in /proc/[0-9]*; do readlink $p/cwd $p/exe; ls -l $p/fd; done; done 2>/dev/null | grep -E 'oci-runtime|/state/' | head -1 > /tmp/found";
    let bundle = Bundle::new(watch).with_capabilities(&["CAP_SYS_PTRACE"]);
    bundle.start();
    for _ in 0..20 {
        assert_eq!(
            Ran::from(bundle.output(&["exec", &bundle.id, "true"])).code,
            0
        );
    }
    assert_eq!(
        std::fs::read_to_string(bundle.path("rootfs/tmp/found")).unwrap(),
        ""
    );
}

#[test]
fn this_program_cannot_be_overwritten_from_a_container() {
    // CVE-2019-5736: the container's program is the runtime itself, whose file another process of it then writes to.
    let script = "(while true; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in *busybox*|'') ;; *) exec 9<$p/exe && { echo x >>/proc/self/fd/9 && echo WRITTEN >/tmp/found; exec 9<&-; }; echo seen >>/tmp/seen;; esac; done; done) 2>/tmp/errors";
    let bundle = Bundle::new(script).with_capabilities(&["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
    bundle.start();
    let size = std::fs::metadata(crate::bundle::runtime()).unwrap().len();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !bundle.path("rootfs/tmp/seen").exists() && std::time::Instant::now() < deadline {
        // Its own words make it stay a moment: waiting for a container that is being started.
        bundle.output(&["exec", &bundle.id, "/proc/self/exe", "--help"]);
    }
    assert!(
        bundle.path("rootfs/tmp/seen").exists(),
        "the attack had its chance"
    );
    assert!(!bundle.path("rootfs/tmp/found").exists());
    assert_eq!(
        std::fs::metadata(crate::bundle::runtime()).unwrap().len(),
        size
    );
}

#[test]
fn no_path_leads_through_the_runtimes_descriptors() {
    // CVE-2024-21626, its other doors: the program, its working directory and its PATH, looked up while the runtime's
    // directories on the host are open. Each would find or make something outside.
    for number in 3..40 {
        let up = format!("/proc/self/fd/{number}/../../../../../../../../../..");
        let mut bundle = Bundle::new("true");
        let outside = bundle.path("outside");
        bundle.process()["cwd"] = json!(format!("{up}{}/made", outside.display()));
        bundle.run();
        assert!(
            !outside.exists(),
            "descriptor {number}: a directory of the host was made"
        );

        let mut bundle = Bundle::new("true");
        let secret = bundle.path("only-on-the-host");
        std::fs::copy("/bin/busybox", &secret).unwrap();
        bundle.process()["args"] = json!([format!("{up}{}", secret.display()), "true"]);
        let ran = bundle.run();
        assert!(
            [126, 127].contains(&ran.code),
            "descriptor {number}: {ran:?}"
        );

        bundle.process()["args"] = json!(["only-on-the-host", "true"]);
        let dir = bundle.path("");
        bundle.process()["env"] = json!([format!("PATH={up}{}", dir.display())]);
        let ran = bundle.run();
        assert!(
            [126, 127].contains(&ran.code),
            "descriptor {number}: {ran:?}"
        );
    }
}

#[test]
fn an_exec_finds_nothing_through_the_runtimes_descriptors() {
    let bundle = Bundle::new("sleep 100");
    bundle.start();
    let outside = bundle.path("outside");
    let secret = bundle.path("only-on-the-host");
    std::fs::copy("/bin/busybox", &secret).unwrap();
    for number in 3..30 {
        let up = format!("/proc/self/fd/{number}/../../../../../../../../../..");
        let cwd = format!("{up}{}/made", outside.display());
        bundle.output(&["exec", "--cwd", &cwd, &bundle.id, "true"]);
        assert!(!outside.exists(), "descriptor {number}");
        let program = format!("{up}{}", secret.display());
        let ran = Ran::from(bundle.output(&["exec", &bundle.id, &program, "true"]));
        assert!(
            [126, 127].contains(&ran.code),
            "descriptor {number}: {ran:?}"
        );
    }
}

#[test]
fn an_image_whose_passwd_never_ends_does_not_hold_the_launch() {
    for (kind, path) in [("a pipe", ""), ("a device", "/dev/zero")] {
        let mut bundle = Bundle::new("echo $HOME");
        let passwd = bundle.path("rootfs/etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        match path {
            "" => nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            path => symlink(path, &passwd).unwrap(),
        }
        bundle.process()["env"] = json!(["PATH=/bin"]);
        assert_eq!(bundle.run().ok(), "/\n", "{kind}");
    }
}

#[test]
fn a_destination_that_changes_during_the_launch_stays_inside() {
    // CVE-2021-30465: a volume's directory, which the attacker's other container swaps for a link at every moment.
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    let outside = bundle.path("outside");
    let volume = bundle.path("volume");
    for dir in [&outside, &volume, &volume.join("sub")] {
        std::fs::create_dir_all(dir).unwrap();
    }
    symlink(outside.join("gone"), volume.join("link")).unwrap();
    symlink(
        "/../../../../../../../../../../../../",
        volume.join("link2"),
    )
    .unwrap();
    bundle.add_mount(
        json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"]}),
    );
    bundle.add_mount(
        json!({"destination": "/volume/sub/deeper", "type": "tmpfs", "source": "tmpfs"}),
    );
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, volume) = (stop.clone(), volume.clone());
        move || {
            let dir =
                rustix::fs::open(&volume, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())
                    .unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for link in ["link", "link2"] {
                    for _ in 0..2 {
                        let _ = rustix::fs::renameat_with(
                            &dir,
                            "sub",
                            &dir,
                            link,
                            rustix::fs::RenameFlags::EXCHANGE,
                        );
                    }
                }
            }
        }
    });
    let mut seen = 0;
    for _ in 0..30 {
        let ran = bundle.run();
        seen += usize::from(ran.code == 0);
        let covered = |line: &&str| {
            line.split(' ')
                .nth(4)
                .is_some_and(|at| at == "/" || at == "/proc")
        };
        let over: Vec<&str> = ran.stdout.lines().filter(covered).collect();
        assert!(over.len() <= 2, "{over:?}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(seen > 0, "some launches came through between the swaps");
}

#[test]
fn nothing_is_mounted_inside_procfs() {
    // CVE-2019-16884, CVE-2023-27561: what is mounted there takes the place of what the runtime writes to and masks.
    for destination in ["/proc/sys/kernel", "/proc/self/attr", "/data/sys", "/proc"] {
        let mut bundle = Bundle::new("true");
        symlink("/proc", bundle.path("rootfs/data")).unwrap();
        std::fs::create_dir(bundle.path("fake")).unwrap();
        let fake = bundle.path("fake");
        bundle.add_mount(json!({"destination": destination, "type": "bind", "source": fake, "options": ["rbind"]}));
        let ran = bundle.run();
        assert_ne!(ran.code, 0, "{destination}");
        assert!(
            ran.stderr.contains("procfs"),
            "{destination}: {}",
            ran.stderr
        );
    }
    let mut bundle = Bundle::new("cat /proc/uptime");
    std::fs::write(bundle.path("uptime"), "1 1\n").unwrap();
    let source = bundle.path("uptime");
    bundle.add_mount(json!({"destination": "/proc/uptime", "type": "bind", "source": source, "options": ["bind"]}));
    assert_eq!(
        bundle.run().ok(),
        "1 1\n",
        "what lxcfs replaces may be replaced"
    );
}

#[test]
fn a_sysctl_is_written_to_procfs_and_nowhere_else() {
    // CVE-2025-52881: the way to the sysctl leads through a file system of the attacker's.
    let mut bundle = Bundle::new("cat /proc/sys/net/ipv4/ip_forward");
    let fake = bundle.path("fake");
    std::fs::create_dir_all(fake.join("sys/net/ipv4")).unwrap();
    std::fs::write(fake.join("sys/net/ipv4/ip_forward"), "untouched").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/proc");
    bundle.add_mount(
        json!({"destination": "/proc", "type": "bind", "source": fake, "options": ["rbind"]}),
    );
    bundle.linux()["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    bundle.linux()["maskedPaths"] = json!([]);
    bundle.linux()["readonlyPaths"] = json!([]);
    bundle.run();
    let path = bundle.path("fake/sys/net/ipv4/ip_forward");
    assert_eq!(std::fs::read_to_string(path).unwrap(), "untouched");
}

#[test]
fn the_console_is_not_put_through_a_link() {
    // CVE-2025-52565: /dev/console of the image leads elsewhere, to where the terminal's mount would then be.
    let mut bundle =
        Bundle::new("ls -l /dev/console; cat /proc/sys/kernel/core_pattern | head -c 0");
    std::fs::remove_dir(bundle.path("rootfs/dev")).unwrap();
    std::fs::create_dir_all(bundle.path("rootfs/dev")).unwrap();
    symlink(
        "/proc/sys/kernel/core_pattern",
        bundle.path("rootfs/dev/console"),
    )
    .unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    bundle.process()["terminal"] = json!(true);
    bundle.process()["args"] = json!(["cat", "/proc/self/mountinfo"]);
    let ran = bundle.run();
    assert!(
        !ran.stdout.contains("core_pattern"),
        "the terminal covers a file of /proc: {ran:?}"
    );
}

#[test]
fn a_device_node_opens_nothing() {
    // With mknod allowed, the host's disk and memory can be named, and not used.
    let script = "mknod /d b $1 $2 && dd if=/d of=/out bs=512 count=1; mknod /m c 1 1 && cat /m >/out; test -s /out && echo READ; exit 0";
    let root = std::fs::metadata("/")
        .map(|meta| std::os::unix::fs::MetadataExt::dev(&meta))
        .unwrap();
    let (major, minor) = (rustix::fs::major(root), rustix::fs::minor(root));
    let mut bundle = Bundle::new("").with_capabilities(&["CAP_MKNOD"]);
    bundle.process()["args"] = json!([
        "sh",
        "-c",
        script,
        "sh",
        major.to_string(),
        minor.to_string()
    ]);
    let ran = bundle.run();
    assert_eq!(ran.stdout, "", "{ran:?}");
    assert!(ran.stderr.contains("not permitted"), "{ran:?}");
}

#[test]
fn a_writable_cgroup_mount_is_the_containers_own_and_has_no_release_agent() {
    let script = "find /sys/fs/cgroup -name release_agent; find /sys/fs/cgroup -name 'orlop-*'; for f in $(find /sys/fs/cgroup -name notify_on_release); do cat ${f%/*}/cgroup.procs; done";
    let mut bundle = Bundle::new(script).with_capabilities(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    std::os::unix::fs::symlink("busybox", bundle.path("rootfs/bin/find")).unwrap();
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["type"] != "cgroup");
    bundle.add_mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}));
    let ran = bundle.run();
    let others: Vec<&str> = ran
        .stdout
        .lines()
        .filter(|line| line.parse::<i32>().is_err() || *line == "0")
        .collect();
    assert_eq!(others, Vec::<&str>::new(), "{ran:?}");
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn keys_of_the_host_are_not_the_containers() {
    // Seen by a user to whom the kernel shows root's keyring only if it is the user's session's.
    let name = format!("orlop-secret-{}", std::process::id());
    linux::keyring::join_session(&name).unwrap();
    let mut bundle = Bundle::new("");
    bundle.linux()["maskedPaths"] = json!([]);
    bundle.process()["user"] = json!({"uid": 1000, "gid": 1000});
    bundle.process()["args"] = json!(["cat", "/proc/keys"]);
    let shared = Ran::from(bundle.output(&["run", "--no-new-keyring", &bundle.id])).ok();
    assert!(shared.contains(&name), "a keyring that is shared is seen");
    assert!(!bundle.run().ok().contains(&name));
    bundle.process()["args"] = json!(["sleep", "100"]);
    bundle.start();
    let keys = bundle.must(&["exec", &bundle.id, "cat", "/proc/keys"]);
    assert!(!keys.contains(&name), "{keys}");
    assert!(
        keys.contains("_ses"),
        "an exec has the container's keyring: {keys}"
    );
}
