//! Cgroup limits, resource limits.

use crate::bundle::{Bundle, Ran};
use linux::cgroup::{Cgroup, Hierarchies, Layout, StatsReader};
use serde_json::json;
use std::sync::Arc;

fn cgroup_of(bundle: &Bundle) -> Cgroup {
    Cgroup::at(
        Arc::new(Hierarchies::discover().unwrap()),
        &format!("/{}", bundle.id),
    )
    .unwrap()
}

#[test]
fn limits_are_in_the_cgroups_files() {
    let mut bundle = Bundle::new("sleep 100");
    bundle.linux()["cgroupsPath"] = json!(format!("/{}", bundle.id));
    bundle.linux()["resources"] = json!({
        "memory": {"limit": 64 << 20},
        "cpu": {"shares": 2048, "quota": 50_000, "period": 100_000},
        "pids": {"limit": 20},
    });
    bundle.start();
    let cgroup = cgroup_of(&bundle);
    let read = |controller: &str, v2: &str, v1: &str| {
        let unified = cgroup.hierarchies().layout() == Layout::Unified;
        let file = cgroup
            .controller_dir(controller)
            .unwrap()
            .join(if unified { v2 } else { v1 });
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    };
    assert_eq!(
        read("memory", "memory.max", "memory.limit_in_bytes"),
        (64 << 20).to_string()
    );
    assert_eq!(read("pids", "pids.max", "pids.max"), "20");
    assert!(
        ["50000 100000", "50000"].contains(&read("cpu", "cpu.max", "cpu.cfs_quota_us").as_str())
    );
    let stats = StatsReader::open(&cgroup).read().unwrap();
    assert_eq!(stats.memory_limit_bytes, Some(64 << 20));
    assert!(stats.pids >= Some(1), "{stats:?}");
    assert!(stats.cpu_usage_ns > Some(0), "{stats:?}");
    let event = bundle.must(&["events", "--stats", &bundle.id]);
    let event: serde_json::Value = serde_json::from_str(&event).unwrap();
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 64 << 20);
    bundle.must(&[
        "update",
        "--memory",
        "128M",
        "--pids-limit",
        "30",
        &bundle.id,
    ]);
    assert_eq!(
        read("memory", "memory.max", "memory.limit_in_bytes"),
        (128 << 20).to_string()
    );
    assert_eq!(read("pids", "pids.max", "pids.max"), "30");
}

#[test]
fn a_container_over_its_memory_is_killed_and_counted() {
    let mut bundle = Bundle::new("dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 100");
    bundle.linux()["cgroupsPath"] = json!(format!("/{}", bundle.id));
    bundle.linux()["resources"] = json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}});
    bundle.start();
    let counter = cgroup_of(&bundle).oom_counter().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while linux::cgroup::oom_kills(&counter).unwrap() == 0 {
        assert!(std::time::Instant::now() < deadline, "nothing was killed");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_process_limit_holds() {
    let mut bundle = Bundle::new("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait");
    bundle.linux()["resources"] = json!({"pids": {"limit": 4}});
    let ran = bundle.run();
    assert!(ran.stderr.contains("fork"), "{}", ran.stderr);
}

#[test]
fn rlimits_are_set_or_the_nearest_that_is_allowed() {
    let mut bundle = Bundle::new("grep -E 'open files|core file' /proc/self/limits");
    bundle.process()["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 600},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    let out = bundle.run().ok();
    assert!(out.contains("512                  600"), "{out}");
    bundle.process()["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": u64::from(u32::MAX), "hard": u64::from(u32::MAX)}]);
    bundle.run();
}

#[test]
fn oom_score_adj_is_set() {
    let mut bundle = Bundle::new("cat /proc/self/oom_score_adj");
    bundle.process()["oomScoreAdj"] = json!(500);
    assert_eq!(bundle.run().ok(), "500\n");
    let bundle = {
        let mut bundle = Bundle::new("cat /proc/self/oom_score_adj").with_user_namespace();
        bundle.process()["oomScoreAdj"] = json!(500);
        std::os::unix::fs::chown(bundle.path(""), Some(100_000), None).unwrap();
        bundle
    };
    assert_eq!(bundle.run().ok(), "500\n");
}

#[test]
fn the_cgroup_is_killed_whole() {
    let mut bundle = Bundle::new("sleep 100 & sleep 100 & wait");
    bundle.linux()["cgroupsPath"] = json!(format!("/{}", bundle.id));
    bundle.start();
    let cgroup = cgroup_of(&bundle);
    cgroup.kill().unwrap();
    cgroup
        .wait_empty(std::time::Duration::from_secs(10))
        .unwrap();
    bundle.wait_status("stopped");
}

#[test]
fn a_period_and_a_quota_change_together_below_a_parents_limit() {
    let v1 = std::path::Path::new("/sys/fs/cgroup/cpu");
    let mut bundle = Bundle::new("sleep 100");
    let parent = format!("{}-limited", bundle.id);
    let path = format!("/{parent}/{}", bundle.id);
    bundle.linux()["cgroupsPath"] = json!(path);
    bundle.linux()["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
    bundle.start();
    let write = |file: &str, value: &str| {
        std::fs::write(v1.join(&parent).join(file), value).unwrap();
    };
    if v1.exists() {
        write("cpu.cfs_period_us", "100000");
        write("cpu.cfs_quota_us", "50000");
    }
    // With the old quota the new period would be more than the parent has.
    let words = [
        "update",
        "--cpu-period",
        "50000",
        "--cpu-quota",
        "20000",
        &bundle.id,
    ];
    let updated = Ran::from(bundle.output(&words));
    let read = |dir: &std::path::Path, file: &str| {
        let path = dir.join(path.trim_start_matches('/')).join(file);
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let found = if v1.exists() {
        read(v1, "cpu.cfs_quota_us").trim().to_owned() + " " + read(v1, "cpu.cfs_period_us").trim()
    } else {
        read(std::path::Path::new("/sys/fs/cgroup"), "cpu.max")
            .trim()
            .to_owned()
    };
    drop(bundle);
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(controller.path().join(&parent));
    }
    let _ = std::fs::remove_dir(std::path::Path::new("/sys/fs/cgroup").join(&parent));
    updated.ok();
    assert_eq!(found, "20000 50000");
}

#[test]
fn a_host_without_resctrl_says_so_and_nothing_is_left() {
    let mut bundle = Bundle::new("true");
    bundle.linux()["intelRdt"] = json!({"schemata": ["L3:0=f"]});
    let ran = bundle.run();
    let mounted = std::fs::read_to_string("/proc/self/mounts").unwrap();
    if mounted.contains(" resctrl ") {
        return ran.ok().clear();
    }
    assert!(ran.stderr.contains("linux.intelRdt: "), "{ran:?}");
    assert!(ran.stderr.contains("resctrl"), "{ran:?}");
    assert_eq!(bundle.must(&["list", "--quiet"]), "");
}
