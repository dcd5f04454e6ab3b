//! `status.containerStatuses` and `status.initContainerStatuses`.

use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, LinuxContainerUser,
};

use super::{Facts, time};
use crate::plan::backoff;
use crate::pod::{ContainerExt, PodExt};
use crate::runtime::view::{Container, Exit, State};

pub fn statuses(facts: &Facts, specs: &[Spec], init: bool) -> Vec<ContainerStatus> {
    specs.iter().map(|spec| status(facts, spec, init)).collect()
}

fn status(facts: &Facts, spec: &Spec, init: bool) -> ContainerStatus {
    let mut instances = facts.runtime.instances(&spec.name);
    let Some(latest) = instances.next() else {
        return without_instance(facts, spec, init);
    };
    let previous = instances.next();
    let state = state(facts, spec, latest);
    // What isn't shown as the state is shown as the last one.
    let last = match latest.exit() {
        Some(exit) if state.terminated.is_none() => Some(terminated(facts, latest, exit)),
        _ => previous.and_then(|p| p.exit().map(|e| terminated(facts, p, e))),
    };
    let last = last.or_else(|| {
        let before = before(facts, &spec.name, init)?;
        before.last_state.as_ref()?.terminated.clone()
    });
    let started = latest.is_running() && has_started(facts, spec, latest);
    let ready = match (init && !spec.is_sidecar(), &state.terminated) {
        (true, ended) => ended.as_ref().is_some_and(|t| t.exit_code == 0),
        (false, _) => started && passes_readiness(facts, spec, latest),
    };
    ContainerStatus {
        name: spec.name.clone(),
        image: if latest.image.is_empty() {
            spec.image.clone().unwrap_or_default()
        } else {
            latest.image.clone()
        },
        image_id: latest.image_ref.clone(),
        container_id: Some(container_id(facts, latest)),
        restart_count: i32::try_from(latest.restart_count).unwrap_or(i32::MAX),
        ready,
        started: Some(started),
        last_state: Some(ContainerState {
            terminated: last,
            ..ContainerState::default()
        }),
        state: Some(state),
        resources: spec.resources.clone(),
        allocated_resources: spec.resources.as_ref().and_then(|r| r.requests.clone()),
        user: latest.user.as_ref().map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: Some(user.supplemental_groups.clone()),
            }),
        }),
        stop_signal: latest.stop_signal.clone(),
        ..ContainerStatus::default()
    }
}

/// A container that the runtime doesn't have: not yet, or not any more.
fn without_instance(facts: &Facts, spec: &Spec, init: bool) -> ContainerStatus {
    let before = before(facts, &spec.name, init);
    if facts.ended
        && let Some(before) = before
        && before.container_id.is_some()
    {
        // It ran and is gone without a trace: what was known is kept, but it doesn't run.
        let mut kept = before.clone();
        kept.ready = init && !spec.is_sidecar() && kept.ready;
        kept.started = Some(false);
        if kept.state.as_ref().is_none_or(|s| s.terminated.is_none()) {
            kept.state = Some(ContainerState {
                terminated: Some(lost()),
                ..ContainerState::default()
            });
        }
        return kept;
    }
    let waiting = facts.memory.failed_starts.get(&spec.name).map_or_else(
        || ContainerStateWaiting {
            reason: Some(default_reason(facts).into()),
            message: None,
        },
        |failed| ContainerStateWaiting {
            reason: Some(failed.reason.into()),
            message: Some(failed.message.clone()).filter(|m| !m.is_empty()),
        },
    );
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        restart_count: before.map_or(0, |b| b.restart_count),
        last_state: Some(ContainerState {
            terminated: before.and_then(last_end),
            ..ContainerState::default()
        }),
        state: Some(ContainerState {
            waiting: Some(waiting),
            ..ContainerState::default()
        }),
        started: Some(false),
        resources: spec.resources.clone(),
        allocated_resources: spec.resources.as_ref().and_then(|r| r.requests.clone()),
        ..ContainerStatus::default()
    }
}

fn default_reason(facts: &Facts) -> &'static str {
    if facts.pod.init_containers().is_empty() {
        "ContainerCreating"
    } else {
        "PodInitializing"
    }
}

/// How a container of which nothing is left ended last, as far as the API remembers.
fn last_end(before: &ContainerStatus) -> Option<ContainerStateTerminated> {
    let state = before.state.as_ref()?;
    if state.running.is_some() {
        return Some(lost());
    }
    let shown = state.terminated.clone();
    shown.or_else(|| before.last_state.as_ref()?.terminated.clone())
}

fn lost() -> ContainerStateTerminated {
    ContainerStateTerminated {
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        exit_code: 137,
        ..ContainerStateTerminated::default()
    }
}

fn before<'a>(facts: &'a Facts, name: &str, init: bool) -> Option<&'a ContainerStatus> {
    let list = if init {
        &facts.before.init_container_statuses
    } else {
        &facts.before.container_statuses
    };
    list.iter().flatten().find(|s| s.name == name)
}

fn state(facts: &Facts, spec: &Spec, latest: &Container) -> ContainerState {
    let mut state = ContainerState::default();
    match &latest.state {
        State::Running { started_at } => {
            state.running = Some(ContainerStateRunning {
                started_at: time(*started_at),
            });
        }
        State::Exited(exit) => match waiting_for_restart(facts, spec) {
            Some(waiting) => state.waiting = Some(waiting),
            None => state.terminated = Some(terminated(facts, latest, exit)),
        },
        State::Created => {
            state.waiting = Some(waiting_for_restart(facts, spec).unwrap_or(
                ContainerStateWaiting {
                    reason: Some("ContainerCreating".into()),
                    message: None,
                },
            ));
        }
        State::Unknown if facts.ended => state.terminated = Some(lost()),
        State::Unknown => {
            state.waiting = Some(ContainerStateWaiting {
                reason: Some("ContainerStatusUnknown".into()),
                message: None,
            });
        }
    }
    state
}

fn waiting_for_restart(facts: &Facts, spec: &Spec) -> Option<ContainerStateWaiting> {
    if facts.ended {
        return None;
    }
    if let Some(failed) = facts.memory.failed_starts.get(&spec.name) {
        return Some(ContainerStateWaiting {
            reason: Some(failed.reason.into()),
            message: Some(failed.message.clone()).filter(|m| !m.is_empty()),
        });
    }
    facts.backing_off.get(&spec.name)?;
    Some(ContainerStateWaiting {
        reason: Some("CrashLoopBackOff".into()),
        message: Some(format!(
            "back-off {} restarting failed container={} pod={}",
            backoff::printed(facts.memory.backoff.wait(&spec.name)),
            spec.name,
            facts.pod.described()
        )),
    })
}

fn terminated(facts: &Facts, instance: &Container, exit: &Exit) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(container_id(facts, instance)),
        exit_code: exit.code,
        reason: Some(exit.reason.clone()),
        message: Some(exit.message.clone()).filter(|m| !m.is_empty()),
        started_at: time(exit.started_at),
        finished_at: time(exit.finished_at),
        signal: None,
    }
}

fn container_id(facts: &Facts, instance: &Container) -> String {
    format!("{}://{}", facts.runtime_name, instance.id)
}

fn has_started(facts: &Facts, spec: &Spec, latest: &Container) -> bool {
    let startup = facts.memory.probes.get(&latest.id).and_then(|r| r.startup);
    !facts.memory.starting.contains(&latest.id)
        && (spec.startup_probe.is_none() || startup == Some(true))
}

fn passes_readiness(facts: &Facts, spec: &Spec, latest: &Container) -> bool {
    let readiness = facts
        .memory
        .probes
        .get(&latest.id)
        .and_then(|r| r.readiness);
    spec.readiness_probe.is_none() || readiness == Some(true)
}
