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
    bundle.add_mount(json!({"destination": "/volume/../../../../../../tmp/up", "type": "tmpfs", "source": "tmpfs"}));
    bundle.run().ok();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/tmp/up").exists());
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
