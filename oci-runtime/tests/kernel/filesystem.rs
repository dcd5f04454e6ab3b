//! What the container sees.

use crate::bundle::Bundle;
use serde_json::json;

#[test]
fn masked_paths_are_empty_and_readonly_ones_read_only() {
    let out = Bundle::new("cat /proc/keys | head -c 1; ls /sys/firmware; touch /proc/sys/kernel/x; echo >/proc/sys/kernel/hostname; true")
        .run();
    assert_eq!(out.stdout, "");
    assert!(
        out.stderr.contains("Read-only file system"),
        "{}",
        out.stderr
    );
}

#[test]
fn a_readonly_root_is_and_its_mounts_are_not() {
    let mut bundle = Bundle::new("touch /tmp/x; touch /dev/shm/y && echo fine");
    bundle.config["root"]["readonly"] = json!(true);
    let ran = bundle.run();
    assert_eq!(ran.stdout, "fine\n");
    assert!(
        ran.stderr.contains("Read-only file system"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_missing_destination_is_made_inside_the_root() {
    let mut bundle = Bundle::new("cat /data/deep/file /link/x");
    std::fs::write(bundle.path("source"), "content\n").unwrap();
    std::os::unix::fs::symlink("/../../outside", bundle.path("rootfs/link")).unwrap();
    for destination in ["/data/deep/file", "/link/x"] {
        let source = bundle.path("source");
        bundle.add_mount(json!({"destination": destination, "type": "bind", "source": source, "options": ["bind", "ro"]}));
    }
    assert_eq!(bundle.run().ok(), "content\ncontent\n");
    assert!(bundle.path("rootfs/outside/x").exists());
}

#[test]
fn bind_options_hold_recursively_where_they_say_so() {
    let mut bundle = Bundle::new("touch /a/x; touch /a/sub/x; touch /b/x; touch /b/sub/x; true");
    std::fs::create_dir(bundle.path("source")).unwrap();
    std::fs::create_dir(bundle.path("source/sub")).unwrap();
    let source = bundle.path("source");
    bundle.add_mount(
        json!({"destination": "/a", "type": "bind", "source": source, "options": ["rbind", "ro"]}),
    );
    bundle.add_mount(json!({"destination": "/a/sub", "type": "tmpfs", "source": "tmpfs"}));
    bundle.add_mount(
        json!({"destination": "/b", "type": "bind", "source": source, "options": ["rbind", "rro"]}),
    );
    let ran = bundle.run();
    assert!(ran.stderr.contains("/a/x: Read-only"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("/a/sub/x"), "{}", ran.stderr);
    assert!(ran.stderr.contains("/b/x: Read-only"), "{}", ran.stderr);
}

#[test]
fn what_the_container_mounts_stays_in_it() {
    let mut bundle = Bundle::new("mount -t tmpfs none /data && touch /data/inside && ls /data")
        .with_capabilities(&["CAP_SYS_ADMIN"]);
    std::fs::create_dir(bundle.path("source")).unwrap();
    let source = bundle.path("source");
    bundle.add_mount(
        json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]}),
    );
    assert_eq!(bundle.run().ok(), "inside\n");
    assert_eq!(std::fs::read_dir(bundle.path("source")).unwrap().count(), 0);
}

#[test]
fn devices_are_the_default_ones_and_the_listed() {
    let mut bundle = Bundle::new(
        "ls /dev; stat -c '%t:%T %a %u' /dev/mine; head -c 2 /dev/zero >/dev/null && echo zero",
    )
    .with_capabilities(&["CAP_MKNOD"]);
    bundle.linux()["devices"] = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8}]);
    let out = bundle.run().ok();
    for name in [
        "console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "tty",
        "zero",
    ] {
        if name != "console" {
            assert!(out.lines().any(|line| line == name), "{name} in {out}");
        }
    }
    assert!(out.contains("1:5 640 7"), "{out}");
    assert!(out.ends_with("zero\n"), "{out}");
}

#[test]
fn a_device_that_is_not_allowed_cannot_be_opened() {
    // A node may be made, and is of no use: this host's memory, read from inside.
    let bundle = Bundle::new("mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem")
        .with_capabilities(&["CAP_MKNOD", "CAP_SYS_RAWIO"]);
    let ran = bundle.run();
    assert_ne!(ran.code, 0);
    assert!(
        ran.stderr.contains("Operation not permitted"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_cgroup_mount_shows_the_containers_own_part() {
    let out = Bundle::new("cat /proc/self/cgroup; ls /sys/fs/cgroup")
        .run()
        .ok();
    for line in out
        .lines()
        .filter(|line| line.contains("::") || line.contains(":memory:"))
    {
        assert!(line.ends_with(":/"), "{line}");
    }
}

#[test]
fn nothing_is_left_mounted_on_the_host() {
    // In a mount namespace of this thread's: on the host, mounts of others come and go meanwhile.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let before = mounts().lines().count();
    Bundle::new("true").run().ok();
    assert_eq!(mounts().lines().count(), before);
}

#[test]
fn a_tmpfs_can_start_with_the_images_content() {
    let mut bundle = Bundle::new(
        "cat /var/data/sub/file; stat -c '%a %u' /var/data/sub/file /var/data; readlink /var/data/link; touch /var/data/new",
    );
    std::fs::create_dir_all(bundle.path("rootfs/var/data/sub")).unwrap();
    std::fs::write(bundle.path("rootfs/var/data/sub/file"), "from the image\n").unwrap();
    std::os::unix::fs::chown(
        bundle.path("rootfs/var/data/sub/file"),
        Some(1000),
        Some(1000),
    )
    .unwrap();
    std::os::unix::fs::symlink("/nowhere", bundle.path("rootfs/var/data/link")).unwrap();
    bundle.add_mount(json!({"destination": "/var/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
    assert_eq!(
        bundle.run().ok(),
        "from the image\n644 1000\n755 0\n/nowhere\n"
    );
    assert!(!bundle.path("rootfs/var/data/new").exists());
}

#[test]
fn an_id_mapped_mount_shows_its_files_as_the_containers() {
    let mut bundle =
        Bundle::new("stat -c %u /mapped/file; touch /mapped/made && stat -c %u /mapped/made")
            .with_user_namespace();
    std::os::unix::fs::chown(bundle.path(""), Some(100_000), None).unwrap();
    std::fs::create_dir(bundle.path("volume")).unwrap();
    std::fs::write(bundle.path("volume/file"), "").unwrap();
    let source = bundle.path("volume");
    bundle.add_mount(json!({"destination": "/mapped", "type": "bind", "source": source, "options": ["rbind", "idmap"]}));
    std::fs::create_dir(bundle.path("rootfs/mapped")).unwrap();
    assert_eq!(bundle.run().ok(), "0\n0\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(bundle.path("volume/made")).unwrap().uid(),
        0,
        "on disk it is the host's root's"
    );
}

/// A bind that is to be `rshared` stays in its source's peer group, so that what is mounted in it reaches the host.
#[test]
fn what_is_mounted_in_a_shared_volume_reaches_the_host_and_in_a_slave_does_not() {
    let script = "mount -t tmpfs inner /volume/inner && touch /volume/inner/file /volume/done; exec sleep 100";
    for (propagation, seen) in [("rshared", "1\n"), ("rslave", "0\n")] {
        let mut bundle = Bundle::new(script).with_capabilities(&["CAP_SYS_ADMIN"]);
        let volume = bundle.path("volume");
        std::fs::create_dir_all(volume.join("inner")).unwrap();
        bundle.add_mount(
            json!({"destination": "/volume", "type": "bind", "source": volume,
            "options": ["rbind", propagation]}),
        );
        bundle.linux()["rootfsPropagation"] = json!(propagation);
        let runtime = bundle.command(&["run", "--detach", &bundle.id]);
        let program = runtime.get_program().to_string_lossy();
        let (volume, root) = (volume.display(), bundle.state_root());
        let runtime = format!("{program} --root {}", root.display());
        let host = format!(
            "mount --make-rshared / && mount --bind {volume} {volume} && mount --make-shared {volume}
            {runtime} run --detach {id} </dev/null >/dev/null 2>&1
            for i in $(seq 1000); do [ -e {volume}/done ] && break; sleep 0.01; done
            ls {volume}/inner | grep -c file
            {runtime} delete --force {id}",
            id = bundle.id,
        );
        let output = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", &host])
            .current_dir(bundle.path(""))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let listed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(listed, seen, "{propagation}: {said}");
    }
}
