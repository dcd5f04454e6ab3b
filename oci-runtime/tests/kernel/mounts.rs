//! Mounts that depend on those of the host.

use crate::bundle::Bundle;
use serde_json::json;

#[test]
fn a_read_only_dev_and_tmpfs_have_what_is_made_in_them() {
    let mut bundle =
        Bundle::new("echo >/dev/null; cat /ro/below/x; touch /dev/new; touch /ro/new; true");
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/dev" {
            mount["options"].as_array_mut().unwrap().push(json!("ro"));
        }
    }
    std::fs::write(bundle.path("x"), "content\n").unwrap();
    bundle.add_mount(
        json!({"destination": "/ro", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}),
    );
    let source = bundle.path("x");
    bundle.add_mount(json!({"destination": "/ro/below/x", "type": "bind", "source": source, "options": ["bind"]}));
    let ran = bundle.run();
    assert_eq!(ran.stdout, "content\n", "{}", ran.stderr);
    assert!(ran.stderr.contains("/dev/new: Read-only"), "{}", ran.stderr);
    assert!(ran.stderr.contains("/ro/new: Read-only"), "{}", ran.stderr);
}

#[test]
fn a_bind_mount_has_the_flags_that_are_asked_for_and_in_a_user_namespace_keeps_locked_ones() {
    let flags = |source: &str, options: &[&str], user_namespace: bool| {
        let mut bundle = Bundle::new("grep ' /data ' /proc/self/mountinfo");
        if user_namespace {
            bundle = bundle.with_user_namespace();
        }
        std::fs::create_dir(bundle.path("source")).unwrap();
        let path = bundle.path("source");
        bundle.add_mount(
            json!({"destination": "/data", "type": "bind", "source": path, "options": options}),
        );
        std::fs::create_dir(bundle.path("rootfs/data")).unwrap();
        let setup = format!(
            "mount -t tmpfs -o strictatime tmpfs source; mount --bind -o remount,{source} source"
        );
        let ran = bundle.run_beside("--mount", &setup);
        if ran.code != 0 {
            return Err(ran.stderr);
        }
        Ok(ran
            .stdout
            .split(' ')
            .nth(5)
            .unwrap_or_default()
            .split(',')
            .map(str::to_owned)
            .collect::<Vec<_>>())
    };
    assert_eq!(
        flags("ro,noexec,nodiratime", &["bind"], false).unwrap(),
        flags("ro,noexec,nodiratime", &["bind"], true).unwrap(),
        "without flags the source's stay"
    );
    let cleared = flags("ro,noexec,noatime", &["bind", "dev"], false).unwrap();
    assert_eq!(cleared, ["rw", "noatime"]);
    let kept = flags("ro,noexec,noatime", &["bind", "dev"], true).unwrap();
    assert_eq!(kept, ["ro", "noexec", "noatime"]);
    assert_eq!(
        flags("noatime", &["bind", "relatime", "nosuid"], false).unwrap(),
        ["rw", "nosuid", "relatime"]
    );
    for times in ["relatime", "noatime"] {
        for options in [["bind", "norelatime"], ["rbind", "rnorelatime"]] {
            assert_eq!(flags(times, &options, false).unwrap(), ["rw", times]);
        }
    }
    for (source, option) in [("ro", "rw"), ("nosuid", "suid"), ("noatime", "relatime")] {
        let refused = flags(source, &["bind", option], true).unwrap_err();
        assert!(refused.contains("mount /data"), "{refused}");
        assert!(refused.contains("peration not permitted"), "{refused}");
    }
}

#[test]
fn a_slave_root_follows_the_hosts_mounts_and_no_other_does() {
    for (propagation, sees) in [
        ("slave", true),
        ("rslave", true),
        ("private", false),
        ("shared", false),
    ] {
        let mut bundle = Bundle::new(
            "mkdir /ready; while [ ! -e /go ]; do sleep 0.02; done; grep -c ' /sub ' /proc/self/mountinfo; head -n 1 /proc/self/mountinfo",
        );
        std::fs::create_dir(bundle.path("rootfs/sub")).unwrap();
        bundle.linux()["rootfsPropagation"] = json!(propagation);
        let setup = "mount --bind rootfs rootfs; mount --make-shared rootfs; \"$@\" & child=$!
            while [ ! -e rootfs/ready ]; do sleep 0.02; kill -0 $child; done
            mount -t tmpfs tmpfs rootfs/sub; mkdir rootfs/go; wait $child; exit";
        let ran = bundle.run_beside("--mount", setup);
        let count = ran.stdout.lines().next().unwrap_or_default();
        let wanted = if sees { "1" } else { "0" };
        assert_eq!(count, wanted, "{propagation}: {}", ran.stderr);
        assert_eq!(
            ran.stdout.contains(" shared:"),
            propagation == "shared",
            "{}",
            ran.stdout
        );
    }
}

#[test]
fn a_source_may_be_what_an_earlier_mount_brought() {
    for user_namespace in [false, true] {
        let mut bundle =
            Bundle::new("cat /second/file /third && grep -c ' /second ro' /proc/self/mountinfo");
        if user_namespace {
            bundle = bundle.with_user_namespace();
        }
        std::fs::create_dir_all(bundle.path("source/deep")).unwrap();
        std::fs::write(bundle.path("source/deep/file"), "content\n").unwrap();
        for (name, kind) in [("first", true), ("second", true), ("third", false)] {
            let path = bundle.path("rootfs").join(name);
            match kind {
                true => std::fs::create_dir(path).unwrap(),
                false => std::fs::write(path, "").unwrap(),
            }
        }
        let inside = bundle.path("rootfs/first/deep").canonicalize();
        assert!(inside.is_err(), "it is there only in the container");
        let rootfs = bundle.path("rootfs").canonicalize().unwrap();
        for (source, destination, options) in [
            (bundle.path("source"), "/first", json!(["bind"])),
            (rootfs.join("first/deep"), "/second", json!(["bind", "ro"])),
            // Some callers repeat the root's directory.
            (
                rootfs.join("second/file"),
                rootfs.join("third").to_str().unwrap(),
                json!(["bind"]),
            ),
        ] {
            bundle.add_mount(json!({"destination": destination, "type": "bind", "source": source, "options": options}));
        }
        assert_eq!(bundle.run().ok(), "content\ncontent\n1\n");
    }
}
