use serde_json::{Value, json};

use super::*;
use crate::ids::PodUid;
use crate::runtime::view::Sandbox;

const SECOND: i64 = 1_000_000_000;
const NOW: i64 = 1_000 * SECOND;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}),
    )
    .expect("a pod")
}

fn runtime(containers: &[(&str, u32, State)]) -> PodRuntime {
    let mut runtime = PodRuntime::new(PodUid::new("u"), "n", "p");
    runtime.merge_sandbox(Sandbox {
        id: "s0".into(),
        attempt: 0,
        ready: true,
        created_at: 1,
        ips: vec!["10.0.0.2".parse().expect("an address")],
        host_network: false,
    });
    for (name, restart_count, state) in containers {
        runtime.merge_container(Container {
            id: format!("{name}-{restart_count}"),
            sandbox_id: "s0".into(),
            name: (*name).into(),
            restart_count: *restart_count,
            state: state.clone(),
            created_at: i64::from(*restart_count),
            image: String::new(),
            image_ref: String::new(),
            hash: String::new(),
            log_path: String::new(),
            user: None,
            stop_signal: None,
        });
    }
    runtime
}

fn exited(code: i32, seconds_ago: i64) -> State {
    State::Exited(Exit {
        code,
        started_at: NOW - 100 * SECOND,
        finished_at: NOW - seconds_ago * SECOND,
        reason: String::new(),
        message: String::new(),
    })
}

const RUNNING: State = State::Running { started_at: 1 };

fn starts(plan: &Plan) -> Vec<(&str, u32)> {
    plan.start
        .iter()
        .map(|s| (s.name.as_str(), s.restart_count))
        .collect()
}

#[test]
fn a_new_pod_gets_a_sandbox_and_its_first_init_container() {
    let pod = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let empty = PodRuntime::new(PodUid::new("u"), "n", "p");
    let plan = plan(&pod, &empty, &Memory::default(), NOW);
    assert_eq!(plan.create_sandbox, Some(0));
    assert_eq!(starts(&plan), [("i", 0)]);
}

#[test]
fn init_containers_run_one_after_the_other_and_then_all_apps() {
    let pod = pod(
        json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}, {"name": "b"}]}),
    );
    let memory = Memory::default();
    assert!(starts(&plan(&pod, &runtime(&[("i", 0, RUNNING)]), &memory, NOW)).is_empty());
    let second = plan(&pod, &runtime(&[("i", 0, exited(0, 1))]), &memory, NOW);
    assert_eq!(starts(&second), [("j", 0)]);
    let apps = plan(
        &pod,
        &runtime(&[("i", 0, exited(0, 1)), ("j", 0, exited(0, 1))]),
        &memory,
        NOW,
    );
    assert_eq!(starts(&apps), [("a", 0), ("b", 0)]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = pod(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}),
    );
    assert!(
        plan(
            &pod,
            &runtime(&[("i", 0, exited(1, 1))]),
            &Memory::default(),
            NOW
        )
        .end
    );
}

#[test]
fn a_sidecar_lets_the_next_one_go_once_it_has_started() {
    let pod = pod(
        json!({"initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}], "containers": [{"name": "a"}]}),
    );
    let runtime = runtime(&[("s", 0, RUNNING)]);
    let mut memory = Memory::default();
    assert!(starts(&plan(&pod, &runtime, &memory, NOW)).is_empty());
    memory.probes.insert(
        "s-0".into(),
        ProbeResults {
            startup: Some(true),
            ..Default::default()
        },
    );
    assert_eq!(starts(&plan(&pod, &runtime, &memory, NOW)), [("a", 0)]);
}

#[test]
fn a_crash_restarts_at_once_and_then_backs_off() {
    let pod = pod(json!({"containers": [{"name": "a"}]}));
    let mut memory = Memory::default();
    let first = runtime(&[("a", 0, exited(1, 0))]);
    assert_eq!(starts(&plan(&pod, &first, &memory, NOW)), [("a", 1)]);
    memory.backoff.next("a", NOW, NOW);
    let second = runtime(&[("a", 0, exited(1, 5)), ("a", 1, exited(1, 1))]);
    let waiting = plan(&pod, &second, &memory, NOW);
    assert!(starts(&waiting).is_empty() && !waiting.end);
    assert_eq!(waiting.look_again_at, Some(NOW + 9 * SECOND));
    assert_eq!(
        starts(&plan(&pod, &second, &memory, NOW + 9 * SECOND)),
        [("a", 2)]
    );
}

#[test]
fn a_completed_pod_ends_and_its_sandbox_is_not_made_again() {
    let pod = pod(json!({"restartPolicy": "OnFailure", "containers": [{"name": "a"}]}));
    let mut done = runtime(&[("a", 0, exited(0, 1))]);
    assert!(plan(&pod, &done, &Memory::default(), NOW).end);
    let sandbox = Sandbox {
        ready: false,
        ..done.sandboxes[0].clone()
    };
    done.merge_sandbox(sandbox);
    let plan = plan(&pod, &done, &Memory::default(), NOW);
    assert!(plan.end && plan.create_sandbox.is_none());
}

#[test]
fn a_dead_sandbox_is_replaced_and_its_containers_started_again() {
    let pod = pod(json!({"containers": [{"name": "a"}]}));
    let mut runtime = runtime(&[("a", 4, exited(255, 1))]);
    let sandbox = Sandbox {
        ready: false,
        ..runtime.sandboxes[0].clone()
    };
    runtime.merge_sandbox(sandbox);
    let plan = plan(&pod, &runtime, &Memory::default(), NOW);
    assert_eq!(plan.create_sandbox, Some(1));
    assert_eq!(plan.stop_sandboxes, ["s0"]);
    assert_eq!(starts(&plan), [("a", 5)]);
}

#[test]
fn a_failed_liveness_probe_kills_once_with_the_probes_grace() {
    let pod = pod(
        json!({"containers": [{"name": "a", "livenessProbe": {"terminationGracePeriodSeconds": 3}}]}),
    );
    let runtime = runtime(&[("a", 0, RUNNING)]);
    let mut memory = Memory::default();
    memory.probes.insert(
        "a-0".into(),
        ProbeResults {
            liveness: Some(false),
            ..Default::default()
        },
    );
    let first = plan(&pod, &runtime, &memory, NOW);
    assert_eq!(
        first.kill[0].message,
        "Container a failed liveness probe, will be restarted"
    );
    assert_eq!(first.kill[0].grace_seconds, Some(3));
    memory.killing.insert("a-0".into());
    assert!(plan(&pod, &runtime, &memory, NOW).kill.is_empty());
}

#[test]
fn a_container_killed_for_restart_starts_again_whatever_its_exit_code() {
    let pod = pod(json!({"restartPolicy": "OnFailure", "containers": [{"name": "a"}]}));
    let mut memory = Memory::default();
    memory.restarting.insert("a-0".into());
    assert_eq!(
        starts(&plan(
            &pod,
            &runtime(&[("a", 0, exited(0, 1))]),
            &memory,
            NOW
        )),
        [("a", 1)]
    );
}

#[test]
fn a_container_that_was_made_and_not_started_is_made_again() {
    let pod = pod(json!({"containers": [{"name": "a"}]}));
    let plan = plan(
        &pod,
        &runtime(&[("a", 2, State::Created)]),
        &Memory::default(),
        NOW,
    );
    assert_eq!(plan.remove, ["a-2"]);
    assert_eq!(starts(&plan), [("a", 2)]);
}

#[test]
fn a_running_pod_needs_nothing() {
    let pod = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let plan = plan(
        &pod,
        &runtime(&[("a", 0, RUNNING)]),
        &Memory::default(),
        NOW,
    );
    assert_eq!(plan, Plan::default());
}

#[test]
fn a_failed_start_waits_for_its_time() {
    let pod = pod(json!({"containers": [{"name": "a"}]}));
    let mut memory = Memory::default();
    let failed = FailedStart {
        reason: "ErrImagePull",
        message: String::new(),
        retry_at: NOW + 1,
        retry_on_wake: false,
    };
    memory.failed_starts.insert("a".into(), failed);
    let waiting = plan(&pod, &runtime(&[]), &memory, NOW);
    assert!(waiting.start.is_empty() && !waiting.end);
    assert_eq!(waiting.look_again_at, Some(NOW + 1));
}
