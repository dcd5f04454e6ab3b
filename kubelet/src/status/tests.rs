use serde_json::{Value, json};

use super::*;
use crate::ids::PodUid;
use crate::plan::ProbeResults;
use crate::runtime::view::{Container, Exit, Sandbox, State};

const NOW_S: i64 = 1_700_000_000;
const SECOND: i64 = 1_000_000_000;

struct World {
    pod: Pod,
    before: PodStatus,
    runtime: PodRuntime,
    memory: Memory,
    backing_off: BTreeMap<String, i64>,
    ended: bool,
}

impl World {
    fn new(spec: Value) -> Self {
        let pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 2}, "spec": spec}),
        );
        let mut runtime = PodRuntime::new(PodUid::new("u"), "n", "p");
        runtime.merge_sandbox(Sandbox {
            id: "s0".into(),
            attempt: 0,
            ready: true,
            created_at: 1,
            ips: vec![
                "fd00::2".parse().expect("an address"),
                "10.0.0.2".parse().expect("an address"),
            ],
            host_network: false,
        });
        Self {
            pod: pod.expect("a pod"),
            before: PodStatus::default(),
            runtime,
            memory: Memory::default(),
            backing_off: BTreeMap::new(),
            ended: false,
        }
    }

    fn with(mut self, name: &str, restart_count: u32, state: State) -> Self {
        self.runtime.merge_container(Container {
            id: format!("{name}{restart_count}"),
            sandbox_id: "s0".into(),
            name: name.into(),
            restart_count,
            state,
            created_at: 0,
            image: "i:1".into(),
            image_ref: "sha256:1".into(),
            hash: String::new(),
            log_path: String::new(),
            user: None,
            stop_signal: None,
        });
        self
    }

    fn status(&self) -> PodStatus {
        let now = Timestamp::from_second(NOW_S).expect("a time");
        pod_status(&Facts {
            pod: &self.pod,
            before: &self.before,
            runtime: &self.runtime,
            memory: &self.memory,
            backing_off: &self.backing_off,
            runtime_name: "orlop",
            node_ips: &["192.0.2.1".parse().expect("an address")],
            seen_at: now,
            ended: self.ended,
            verdict: None,
            now,
        })
    }
}

fn exited(code: i32) -> State {
    State::Exited(Exit {
        code,
        started_at: NOW_S * SECOND,
        finished_at: NOW_S * SECOND,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: String::new(),
    })
}

const RUNNING: State = State::Running { started_at: SECOND };

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a str {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == kind);
    found.map(|c| c.status.as_str()).expect("a condition")
}

fn waiting(status: &PodStatus, at: usize) -> Option<String> {
    let state = status
        .container_statuses
        .as_ref()?
        .get(at)?
        .state
        .as_ref()?;
    state.waiting.as_ref()?.reason.clone()
}

#[test]
fn a_running_pod_is_ready_with_its_addresses_in_the_nodes_order() {
    let status = World::new(json!({"containers": [{"name": "a"}]}))
        .with("a", 0, RUNNING)
        .status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.2"));
    for kind in [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ] {
        assert_eq!(condition(&status, kind), "True", "{kind}");
    }
    let container = &status.container_statuses.as_ref().expect("statuses")[0];
    assert_eq!(container.container_id.as_deref(), Some("orlop://a0"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(status.observed_generation, Some(2));
}

#[test]
fn a_container_not_made_yet_is_creating() {
    let status = World::new(json!({"containers": [{"name": "a"}]})).status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting(&status, 0).as_deref(), Some("ContainerCreating"));
    assert_eq!(condition(&status, "Ready"), "False");
}

#[test]
fn apps_wait_for_init_containers() {
    let world =
        World::new(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let status = world.with("i", 0, RUNNING).status();
    assert_eq!(waiting(&status, 0).as_deref(), Some("PodInitializing"));
    assert_eq!(condition(&status, "Initialized"), "False");
    assert_eq!(status.phase.as_deref(), Some("Pending"));
}

#[test]
fn a_crash_loop_shows_the_last_end_and_the_wait() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]})).with("a", 1, exited(1));
    world
        .memory
        .backoff
        .next("a", NOW_S * SECOND, NOW_S * SECOND);
    world.backing_off.insert("a".into(), (NOW_S + 10) * SECOND);
    let status = world.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let container = &status.container_statuses.as_ref().expect("statuses")[0];
    let waiting = container
        .state
        .as_ref()
        .and_then(|s| s.waiting.as_ref())
        .expect("waiting");
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=a pod=p_n(u)")
    );
    let last = container
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref())
        .expect("an end");
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    assert_eq!(container.restart_count, 1);
}

#[test]
fn readiness_waits_for_its_probe() {
    let spec = json!({"containers": [{"name": "a", "readinessProbe": {}}]});
    let mut world = World::new(spec).with("a", 0, RUNNING);
    assert_eq!(condition(&world.status(), "Ready"), "False");
    world.memory.probes.insert(
        "a0".into(),
        ProbeResults {
            readiness: Some(true),
            ..Default::default()
        },
    );
    assert_eq!(condition(&world.status(), "Ready"), "True");
}

#[test]
fn pods_end_by_their_policy() {
    let phase = |policy: &str, code: i32| {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        World::new(spec).with("a", 0, exited(code)).status().phase
    };
    assert_eq!(phase("Never", 0).as_deref(), Some("Succeeded"));
    assert_eq!(phase("Never", 1).as_deref(), Some("Failed"));
    assert_eq!(phase("OnFailure", 1).as_deref(), Some("Running"));
    assert_eq!(phase("OnFailure", 0).as_deref(), Some("Succeeded"));
    assert_eq!(phase("Always", 0).as_deref(), Some("Running"));
}

#[test]
fn how_a_sidecar_ended_says_nothing_of_its_pod() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}],
        "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    let mut world = World::new(spec)
        .with("s", 0, exited(137))
        .with("a", 0, exited(0));
    assert_eq!(world.status().phase.as_deref(), Some("Succeeded"));
    world.ended = true;
    assert_eq!(world.status().phase.as_deref(), Some("Succeeded"));
}

#[test]
fn a_deleted_pod_ends_as_its_containers_did() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]})).with("a", 0, exited(143));
    world.ended = true;
    assert_eq!(world.status().phase.as_deref(), Some("Failed"));
}

#[test]
fn a_container_that_the_runtime_lost_is_said_to_be_lost_and_the_pod_goes_on() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]})).with("a", 2, RUNNING);
    world.before = world.status();
    world.runtime.remove_container("a2");
    let status = world.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let last = status.container_statuses.as_ref().expect("statuses")[0]
        .last_state
        .clone();
    let last = last.and_then(|s| s.terminated).expect("an end");
    assert_eq!(last.reason.as_deref(), Some("ContainerStatusUnknown"));
    world.before = status;
    let again = world.status();
    assert_eq!(again.phase.as_deref(), Some("Running"));
}

#[test]
fn an_unchanged_status_needs_no_patch() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]})).with("a", 0, RUNNING);
    let status = world.status();
    assert!(status_patch("u", &PodStatus::default(), &status).is_some());
    world.before = status.clone();
    assert_eq!(status_patch("u", &status, &world.status()), None);
}

#[test]
fn a_patch_has_what_changed_and_says_what_went() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]})).with("a", 0, RUNNING);
    world.before = world.status();
    let before = world.before.clone();
    let after = world.with("a", 0, exited(0)).status();
    let patch = status_patch("u", &before, &after).expect("a change");
    assert_eq!(patch["metadata"]["uid"], "u");
    assert!(patch["status"].get("podIPs").is_none());
    let conditions = patch["status"]["conditions"]
        .as_array()
        .expect("conditions");
    assert_eq!(conditions.len(), 2);
    let back = status_patch("u", &after, &before).expect("a change");
    assert_eq!(back["status"]["conditions"][0]["reason"], Value::Null);
}
