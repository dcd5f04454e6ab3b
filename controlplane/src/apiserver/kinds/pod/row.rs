//! A pod as `kubectl get pods` shows it (`pkg/printers/internalversion/printers.go`).

use api::object::{is_terminating, list, name, number, text};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::strategy;
use super::{count, is_finished, is_sidecar};

pub fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let shown = Shown::of(object);
    let or_none = |pointer: &str| match text(object, pointer) {
        "" => "<none>".to_owned(),
        value => value.to_owned(),
    };
    let restarts = match &shown.last_restart {
        Some(at) if shown.restarts > 0 => {
            format!("{} ({} ago)", shown.restarts, api::time::age(Some(at), now))
        }
        _ => shown.restarts.to_string(),
    };
    vec![
        json!(name(object)),
        json!(format!("{}/{}", shown.ready, shown.total)),
        json!(shown.reason),
        json!(restarts),
        strategy::age(object, now),
        json!(or_none("/status/podIP")),
        json!(or_none("/spec/nodeName")),
        json!(or_none("/status/nominatedNodeName")),
        json!(readiness_gates(object)),
    ]
}

/// What the containers' states come down to.
struct Shown {
    ready: i64,
    total: usize,
    reason: String,
    restarts: i64,
    /// RFC 3339; texts of one form and zone order as times do.
    last_restart: Option<String>,
}

impl Shown {
    fn of(object: &Value) -> Self {
        let init = list(object, "/spec/initContainers");
        let sidecars = init.iter().filter(|c| is_sidecar(c)).count();
        let mut shown = Shown {
            ready: 0,
            total: list(object, "/spec/containers").len() + sidecars,
            reason: phase_reason(object),
            restarts: 0,
            last_restart: None,
        };
        let (initializing, of_sidecars) = shown.read_init(object, init);
        if !initializing || condition(object, "Initialized") {
            shown.restarts = of_sidecars.0;
            shown.last_restart = of_sidecars.1;
            shown.read_containers(object);
        }
        if is_terminating(object) {
            if text(object, "/status/reason") == "NodeLost" {
                shown.reason = "Unknown".into();
            } else if !is_finished(object) {
                shown.reason = "Terminating".into();
            }
        }
        shown
    }

    fn restarted(&mut self, status: &Value) {
        self.restarts += count(status, "/restartCount");
        later(&mut self.last_restart, status);
    }

    /// Reads init containers up to the first that isn't done. Returns whether there is one, and the restarts and last
    /// restart of the sidecars alone.
    fn read_init(&mut self, object: &Value, init: &[Value]) -> (bool, (i64, Option<String>)) {
        let mut of_sidecars = (0, None);
        for (index, status) in list(object, "/status/initContainerStatuses")
            .iter()
            .enumerate()
        {
            self.restarted(status);
            let sidecar = init
                .iter()
                .any(|c| c["name"] == status["name"] && is_sidecar(c));
            if sidecar {
                of_sidecars.0 += count(status, "/restartCount");
                later(&mut of_sidecars.1, status);
            }
            let terminated = &status["state"]["terminated"];
            let waiting = text(status, "/state/waiting/reason");
            if terminated.is_object() && count(terminated, "/exitCode") == 0 {
                continue;
            }
            if sidecar && status["started"] == true {
                self.ready += i64::from(status["ready"] == true);
                continue;
            }
            self.reason = if terminated.is_object() {
                format!("Init:{}", ended(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", init.len())
            };
            return (true, of_sidecars);
        }
        (false, of_sidecars)
    }

    fn read_containers(&mut self, object: &Value) {
        let mut running = false;
        for status in list(object, "/status/containerStatuses").iter().rev() {
            self.restarted(status);
            let terminated = &status["state"]["terminated"];
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if terminated.is_object() {
                self.reason = ended(terminated);
            } else if status["ready"] == true && status["state"]["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        // One container is done, another still runs.
        if self.reason == "Completed" && running {
            self.reason = if condition(object, "Ready") {
                "Running"
            } else {
                "NotReady"
            }
            .into();
        }
    }
}

fn phase_reason(object: &Value) -> String {
    let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if list(object, "/status/conditions").iter().any(gated) {
        return "SchedulingGated".into();
    }
    match text(object, "/status/reason") {
        "" => text(object, "/status/phase").to_owned(),
        reason => reason.to_owned(),
    }
}

fn ended(terminated: &Value) -> String {
    match (
        text(terminated, "/reason"),
        number(terminated, "/signal").unwrap_or_default(),
    ) {
        ("", 0) => format!("ExitCode:{}", count(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn later(last: &mut Option<String>, status: &Value) {
    let ended = text(status, "/lastState/terminated/finishedAt");
    if !ended.is_empty() && last.as_deref().is_none_or(|l| l < ended) {
        *last = Some(ended.to_owned());
    }
}

fn condition(object: &Value, kind: &str) -> bool {
    list(object, "/status/conditions")
        .iter()
        .any(|c| c["type"] == kind && c["status"] == "True")
}

fn readiness_gates(object: &Value) -> String {
    let gates = list(object, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates
        .iter()
        .filter(|gate| condition(object, text(gate, "/conditionType")))
        .count();
    format!("{met}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(status: Value, spec: Value) -> Vec<String> {
        let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
        let now = api::time::parse("2026-01-01T00:10:00Z").expect("a time");
        row(&pod, now)
            .into_iter()
            .map(|c| c.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    fn one(state: Value) -> Vec<String> {
        let status = json!({"phase": "Running", "containerStatuses": [state]});
        cells(status, json!({"containers": [{"name": "a"}]}))
    }

    #[test]
    fn status_and_restarts_read_as_upstream() {
        assert_eq!(
            cells(json!({"phase": "Pending"}), json!({"containers": [{}]}))[1..5],
            ["0/1", "Pending", "0", "10m"]
        );
        assert_eq!(
            one(json!({"state": {"waiting": {"reason": "ContainerCreating"}}}))[2],
            "ContainerCreating"
        );
        assert_eq!(
            one(json!({"ready": true, "state": {"running": {}}}))[1..3],
            ["1/1", "Running"]
        );
        let crashing = one(json!({
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 2,
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:07:00Z"}}
        }));
        assert_eq!(crashing[2..4], ["CrashLoopBackOff", "2 (3m ago)"]);
        assert_eq!(
            one(json!({"state": {"terminated": {"exitCode": 3}}}))[2],
            "ExitCode:3"
        );
        assert_eq!(
            one(json!({"state": {"terminated": {"reason": "OOMKilled"}}}))[2],
            "OOMKilled"
        );
    }

    #[test]
    fn a_pod_in_its_init_steps_says_so() {
        let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let init = |states: Value| {
            cells(
                json!({"phase": "Pending", "initContainerStatuses": states}),
                spec.clone(),
            )
        };
        assert_eq!(
            init(json!([{"name": "i", "state": {"running": {}}}]))[2],
            "Init:0/2"
        );
        let second = json!([{"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]);
        assert_eq!(init(second)[2], "Init:1/2");
        let failed =
            json!([{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]);
        assert_eq!(init(failed)[2], "Init:Error");
    }

    #[test]
    fn a_pod_being_deleted_is_terminating() {
        let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert_eq!(row(&pod, Timestamp::UNIX_EPOCH)[2], "Terminating");
    }
}
