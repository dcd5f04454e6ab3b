//! What is to be done for a pod now: a pure function of what is wanted, what the runtime has, what the worker
//! remembers and the time (upstream's `computePodActions`).
//!
//! ```text
//! no sandbox ──create──▶ init 1 ▶ init 2 (sidecar: until started) ▶ … ▶ app containers, all
//!     ▲                     │ failed, never restarted                       │ all ended for good
//!     └──sandbox died       ▼                                               ▼
//!                        end the pod                                    end the pod
//! ```

pub mod backoff;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use crate::pod::{ContainerExt, PodExt, RestartPolicy};
use crate::runtime::view::{Container, Exit, PodRuntime, State};
use backoff::Backoffs;

/// What a worker remembers of its pod that neither the API nor the runtime keeps.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Waits between restarts.
    pub backoff: Backoffs,
    /// Containers whose last start failed, by name.
    pub failed_starts: HashMap<String, FailedStart>,
    /// What probes found, by container id.
    pub probes: HashMap<String, ProbeResults>,
    /// Ids of containers that are killed in order to be started again, whatever their exit code.
    pub restarting: HashSet<String>,
    /// Ids of containers that are being stopped.
    pub killing: HashSet<String>,
    /// Ids of containers whose postStart hook has not ended.
    pub starting: HashSet<String>,
}

/// Why a container isn't there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedStart {
    /// `ErrImagePull`, `CreateContainerConfigError` and so on.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When to try again, nanoseconds since the epoch.
    pub retry_at: i64,
    /// Whether any wake is a reason to try again at once, since what was missing may be there now.
    pub retry_on_wake: bool,
}

/// What the probes of one container instance found last; none: nothing yet, or no such probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    /// Whether the container has started.
    pub startup: Option<bool>,
    /// Whether it is alive.
    pub liveness: Option<bool>,
    /// Whether it takes requests.
    pub readiness: Option<bool>,
}

/// What is to be done now. Without a sandbox, `start` happens after it was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The pod has ended: stop whatever still runs and the sandboxes.
    pub end: bool,
    /// Make a sandbox, for the n-th time.
    pub create_sandbox: Option<u32>,
    /// Sandboxes to stop.
    pub stop_sandboxes: Vec<String>,
    /// Containers to stop.
    pub kill: Vec<Kill>,
    /// Containers that were made and never started.
    pub remove: Vec<String>,
    /// Containers to start, in order.
    pub start: Vec<Start>,
    /// Containers that wait for their next start, and until when.
    pub backing_off: BTreeMap<String, i64>,
    /// When to look again if nothing happens, nanoseconds since the epoch.
    pub look_again_at: Option<i64>,
}

/// A container to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The runtime's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// For the event.
    pub message: String,
    /// A probe's own grace period, seconds.
    pub grace_seconds: Option<i64>,
}

/// A container to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The container's name.
    pub name: String,
    /// How often it was started before.
    pub restart_count: u32,
    /// When the instance before ended, nanoseconds since the epoch.
    pub previous_end: Option<i64>,
}

/// Makes the plan.
pub fn plan(pod: &Pod, runtime: &PodRuntime, memory: &Memory, now: i64) -> Plan {
    let active = runtime.ready_sandbox();
    let usable = active.filter(|s| s.host_network == pod.host_network());
    let mut planner = Planner {
        pod,
        runtime,
        memory,
        now,
        sandbox_id: usable.map(|s| s.id.as_str()),
        plan: Plan::default(),
    };
    for sandbox in &runtime.sandboxes {
        let wanted = usable.is_some_and(|s| s.id == sandbox.id);
        // A sandbox that died is stopped too, once: before its successor is made, to release what it holds.
        if !wanted && (sandbox.ready || usable.is_none()) {
            planner.plan.stop_sandboxes.push(sandbox.id.clone());
        }
    }
    if usable.is_none() {
        planner.plan_sandbox();
    } else {
        planner.plan_containers();
    }
    planner.plan
}

struct Planner<'a> {
    pod: &'a Pod,
    runtime: &'a PodRuntime,
    memory: &'a Memory,
    now: i64,
    sandbox_id: Option<&'a str>,
    plan: Plan,
}

/// How an init container stands.
enum Step {
    /// The next one may go on.
    Passed,
    /// The next one waits for this.
    Blocking,
    /// It failed for good.
    Failed,
}

impl Planner<'_> {
    /// The newest instance in the present sandbox.
    fn current(&self, name: &str) -> Option<Container> {
        let sandbox = self.sandbox_id?;
        let mut instances = self.runtime.instances(name);
        instances
            .find(|c| c.sandbox_id == sandbox || c.sandbox_id.is_empty())
            .cloned()
    }

    fn policy(&self) -> RestartPolicy {
        self.pod.restart_policy()
    }

    fn plan_sandbox(&mut self) {
        let (spec, runtime, policy) = (self.pod.pod_spec(), self.runtime, self.policy());
        let started_before = !runtime.containers.is_empty();
        let worth_it = |container: &Spec| match runtime.latest(&container.name) {
            None => !started_before || policy != RestartPolicy::Never,
            Some(Container {
                state: State::Exited(exit),
                ..
            }) => container.restarts(policy, exit.code),
            Some(_) => policy != RestartPolicy::Never,
        };
        if !spec.containers.iter().any(worth_it) {
            self.plan.end = true;
            return;
        }
        self.plan.create_sandbox = Some(
            self.runtime
                .sandboxes
                .iter()
                .map(|s| s.attempt + 1)
                .max()
                .unwrap_or(0),
        );
        for container in runtime.live() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.plan
                .kill
                .push(kill_of(container, message.into(), None));
        }
        match self.pod.init_containers().first() {
            Some(first) => self.start(first),
            None => {
                let wanted: Vec<&Spec> = spec.containers.iter().filter(|c| worth_it(c)).collect();
                for container in wanted {
                    self.start(container);
                }
            }
        }
    }

    fn plan_containers(&mut self) {
        let spec = self.pod.pod_spec();
        let initialized = spec
            .containers
            .iter()
            .any(|c| self.current(&c.name).is_some());
        for container in self.pod.init_containers() {
            let step = if container.is_sidecar() {
                self.plan_sidecar(container, initialized)
            } else if initialized {
                Step::Passed
            } else {
                self.plan_init(container)
            };
            match step {
                Step::Passed => {}
                Step::Blocking => return,
                Step::Failed => {
                    self.plan.end = true;
                    return;
                }
            }
        }
        let mut going_on = false;
        for container in &spec.containers {
            going_on |= self.plan_app(container);
        }
        if !going_on {
            self.plan.end = true;
            self.plan.start.clear();
        }
    }

    fn plan_init(&mut self, container: &Spec) -> Step {
        match self.current(&container.name) {
            None => self.start(container),
            Some(instance) => match &instance.state {
                State::Running { .. } => {}
                State::Exited(exit) if exit.code == 0 => return Step::Passed,
                State::Exited(exit) if container.restarts(self.policy(), exit.code) => {
                    self.restart(container, exit)
                }
                State::Exited(_) => return Step::Failed,
                State::Created => self.start_over(container, &instance),
                State::Unknown => self.kill(container, &instance, "is in an unknown state", None),
            },
        }
        Step::Blocking
    }

    fn plan_sidecar(&mut self, container: &Spec, initialized: bool) -> Step {
        let started = match self.current(&container.name) {
            None => {
                self.start(container);
                false
            }
            Some(instance) => match &instance.state {
                State::Running { .. } => {
                    self.check_running(container, &instance);
                    self.has_started(container, &instance)
                }
                State::Exited(exit) => {
                    self.restart(container, exit);
                    false
                }
                State::Created => {
                    self.start_over(container, &instance);
                    false
                }
                State::Unknown => {
                    self.kill(container, &instance, "is in an unknown state", None);
                    false
                }
            },
        };
        if started || initialized {
            Step::Passed
        } else {
            Step::Blocking
        }
    }

    /// Tells whether the container runs or will.
    fn plan_app(&mut self, container: &Spec) -> bool {
        let Some(instance) = self.current(&container.name) else {
            self.start(container);
            return true;
        };
        match &instance.state {
            State::Running { .. } => self.check_running(container, &instance),
            State::Created => self.start_over(container, &instance),
            State::Unknown => self.kill(container, &instance, "is in an unknown state", None),
            State::Exited(exit) => {
                let wanted = self.memory.restarting.contains(&instance.id)
                    || container.restarts(self.policy(), exit.code);
                if !wanted {
                    return false;
                }
                self.restart(container, exit);
            }
        }
        true
    }

    fn check_running(&mut self, container: &Spec, instance: &Container) {
        let results = self
            .memory
            .probes
            .get(&instance.id)
            .copied()
            .unwrap_or_default();
        let grace = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
            probe
                .as_ref()
                .and_then(|p| p.termination_grace_period_seconds)
        };
        if !instance.hash.is_empty() && instance.hash != container.spec_hash() {
            self.kill(container, instance, "definition changed", None);
        } else if results.liveness == Some(false) {
            self.kill(
                container,
                instance,
                "failed liveness probe",
                grace(&container.liveness_probe),
            );
        } else if results.startup == Some(false) {
            self.kill(
                container,
                instance,
                "failed startup probe",
                grace(&container.startup_probe),
            );
        }
    }

    /// Whether a running container has started, so that what waits for it may go on.
    fn has_started(&self, container: &Spec, instance: &Container) -> bool {
        let results = self
            .memory
            .probes
            .get(&instance.id)
            .copied()
            .unwrap_or_default();
        !self.memory.starting.contains(&instance.id)
            && (container.startup_probe.is_none() || results.startup == Some(true))
    }

    fn kill(&mut self, container: &Spec, instance: &Container, why: &str, grace: Option<i64>) {
        if self.memory.killing.contains(&instance.id) {
            return;
        }
        let again = container.is_sidecar() || self.policy() != RestartPolicy::Never;
        let consequence = if again { ", will be restarted" } else { "" };
        let message = format!("Container {} {why}{consequence}", container.name);
        self.plan.kill.push(kill_of(instance, message, grace));
    }

    /// A container that was made and not started: the kubelet ended in between, or its start failed.
    fn start_over(&mut self, container: &Spec, instance: &Container) {
        if self.may_try(&container.name) {
            self.plan.remove.push(instance.id.clone());
            self.plan.start.push(Start {
                name: container.name.clone(),
                restart_count: instance.restart_count,
                previous_end: None,
            });
        }
    }

    fn start(&mut self, container: &Spec) {
        if !self.may_try(&container.name) {
            return;
        }
        let latest = self.runtime.latest(&container.name);
        self.plan.start.push(Start {
            name: container.name.clone(),
            restart_count: latest.map_or_else(
                || self.reported_restarts(&container.name),
                |c| c.restart_count + 1,
            ),
            previous_end: latest.and_then(Container::exit).map(|e| e.finished_at),
        });
    }

    /// What the API remembers of a container that the runtime has forgotten altogether.
    fn reported_restarts(&self, name: &str) -> u32 {
        let status = self.pod.status.as_ref();
        let all = status.into_iter().flat_map(|s| {
            s.container_statuses
                .iter()
                .flatten()
                .chain(s.init_container_statuses.iter().flatten())
        });
        let reported = { all }.find(|s| s.name == name && s.container_id.is_some());
        reported.map_or(0, |s| u32::try_from(s.restart_count).unwrap_or(0) + 1)
    }

    fn restart(&mut self, container: &Spec, exit: &Exit) {
        if let Some(until) = self.memory.backoff.until(&container.name, exit.finished_at)
            && until > self.now
        {
            self.plan.backing_off.insert(container.name.clone(), until);
            self.look_again(until);
            return;
        }
        self.start(container);
    }

    fn may_try(&mut self, name: &str) -> bool {
        match self.memory.failed_starts.get(name) {
            Some(failed) if !failed.retry_on_wake && failed.retry_at > self.now => {
                self.look_again(failed.retry_at);
                false
            }
            _ => true,
        }
    }

    fn look_again(&mut self, at: i64) {
        let earliest = self.plan.look_again_at.map_or(at, |t| t.min(at));
        self.plan.look_again_at = Some(earliest);
    }
}

fn kill_of(container: &Container, message: String, grace_seconds: Option<i64>) -> Kill {
    Kill {
        id: container.id.clone(),
        name: container.name.clone(),
        message,
        grace_seconds,
    }
}
