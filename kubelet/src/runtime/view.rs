//! What the runtime has of each pod, as facts that only move forward.
//!
//! A sandbox goes from ready to not ready, a container from created to running to exited, and both to gone.
//! Merging therefore takes the later of two facts, and the order in which a reply and an event arrive is of no
//! consequence. An object that was removed stays removed: its id is never used again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use cri_api::v1;

use super::labels;
use crate::ids::PodUid;

/// One pod as the runtime has it.
#[derive(Clone, Debug)]
pub struct PodRuntime {
    /// Whose it is.
    pub uid: PodUid,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Newest first.
    pub containers: Vec<Container>,
    gone: BTreeSet<String>,
}

/// One sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Whether containers can run in it.
    pub ready: bool,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Empty on the node's network.
    pub ips: Vec<IpAddr>,
    /// Whether it uses the node's network.
    pub host_network: bool,
}

/// One instance of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Its sandbox; empty if the runtime has not said.
    pub sandbox_id: String,
    /// The name in the pod's specification.
    pub name: String,
    /// How often it was restarted before.
    pub restart_count: u32,
    /// How far it got.
    pub state: State,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// As the pod asked for it.
    pub image: String,
    /// As `imageID` shows it.
    pub image_ref: String,
    /// [`crate::pod::ContainerExt::spec_hash`] of the specification that it was made from.
    pub hash: String,
    /// The current log file.
    pub log_path: String,
    /// The first process's identity, if the runtime tells.
    pub user: Option<v1::LinuxContainerUser>,
    /// The signal that ends it, if the runtime tells.
    pub stop_signal: Option<String>,
}

/// How far a container got.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Made, and not started.
    Created,
    /// Its first process runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Its first process ended.
    Exited(Exit),
    /// The runtime lost it.
    Unknown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// The exit code; 128 + n after signal n.
    pub code: i32,
    /// Nanoseconds since the epoch; 0: it never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// `Completed`, `Error`, `OOMKilled` and so on.
    pub reason: String,
    /// The runtime's remark, or what the container wrote as its last words.
    pub message: String,
}

impl State {
    fn progress(&self) -> u8 {
        match self {
            Self::Created => 0,
            Self::Running { .. } => 1,
            Self::Unknown => 2,
            Self::Exited(_) => 3,
        }
    }
}

impl Container {
    /// Whether its first process runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Takes a CRI status. `last_words` are what the container left in its termination message file.
    pub fn from_cri(
        status: &v1::ContainerStatus,
        sandbox_id: &str,
        last_words: Option<String>,
    ) -> Self {
        let metadata = status.metadata.clone().unwrap_or_default();
        let requested = status.image.clone().unwrap_or_default();
        let restart_count = status
            .annotations
            .get(labels::RESTART_COUNT)
            .and_then(|n| n.parse().ok())
            .unwrap_or(metadata.attempt);
        let image = [&requested.user_specified_image, &requested.image]
            .into_iter()
            .find(|name| !name.is_empty())
            .cloned()
            .unwrap_or_default();
        Self {
            id: status.id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            name: metadata.name,
            restart_count,
            state: state(status, last_words),
            created_at: status.created_at,
            image,
            image_ref: if status.image_ref.is_empty() {
                status.image_id.clone()
            } else {
                status.image_ref.clone()
            },
            hash: status
                .annotations
                .get(labels::HASH)
                .cloned()
                .unwrap_or_default(),
            log_path: status.log_path.clone(),
            user: status.user.as_ref().and_then(|u| u.linux.clone()),
            stop_signal: stop_signal(status.stop_signal()),
        }
    }
}

fn state(status: &v1::ContainerStatus, last_words: Option<String>) -> State {
    match status.state() {
        v1::ContainerState::ContainerCreated => State::Created,
        v1::ContainerState::ContainerRunning => State::Running {
            started_at: status.started_at,
        },
        v1::ContainerState::ContainerUnknown => State::Unknown,
        v1::ContainerState::ContainerExited => {
            let reason = match status.reason.as_str() {
                "" if status.exit_code == 0 => "Completed",
                "" => "Error",
                reason => reason,
            };
            State::Exited(Exit {
                code: status.exit_code,
                started_at: status.started_at,
                finished_at: status.finished_at,
                reason: reason.to_owned(),
                message: last_words.unwrap_or_else(|| status.message.clone()),
            })
        }
    }
}

fn stop_signal(signal: v1::Signal) -> Option<String> {
    let name = signal.as_str_name();
    (signal != v1::Signal::RuntimeDefault).then(|| name.trim_start_matches("SIGNAL_").to_owned())
}

impl Sandbox {
    /// Takes a CRI status.
    pub fn from_cri(status: &v1::PodSandboxStatus) -> Self {
        let network = status.network.clone().unwrap_or_default();
        let ips = std::iter::once(network.ip.as_str())
            .chain(network.additional_ips.iter().map(|ip| ip.ip.as_str()))
            .filter_map(|ip| ip.parse().ok())
            .collect();
        let mode = status
            .linux
            .as_ref()
            .and_then(|l| l.namespaces.as_ref()?.options.as_ref().map(|o| o.network()));
        Self {
            id: status.id.clone(),
            attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
            ready: status.state() == v1::PodSandboxState::SandboxReady,
            created_at: status.created_at,
            ips,
            host_network: mode == Some(v1::NamespaceMode::Node),
        }
    }
}

impl PodRuntime {
    /// A pod of which the runtime has nothing.
    pub fn new(uid: PodUid, namespace: &str, name: &str) -> Self {
        Self {
            uid,
            namespace: namespace.into(),
            name: name.into(),
            sandboxes: Vec::new(),
            containers: Vec::new(),
            gone: BTreeSet::new(),
        }
    }

    /// Takes in a fact about a sandbox; tells whether it was news.
    pub fn merge_sandbox(&mut self, mut new: Sandbox) -> bool {
        if self.gone.contains(&new.id) {
            return false;
        }
        let Some(known) = self.sandboxes.iter_mut().find(|s| s.id == new.id) else {
            self.sandboxes.push(new);
            self.sandboxes
                .sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
            return true;
        };
        new.ready &= known.ready;
        if new.ips.is_empty() {
            new.ips.clone_from(&known.ips);
        }
        let news = *known != new;
        *known = new;
        news
    }

    /// Takes in a fact about a container; tells whether it was news.
    pub fn merge_container(&mut self, mut new: Container) -> bool {
        if self.gone.contains(&new.id) {
            return false;
        }
        let Some(known) = self.containers.iter_mut().find(|c| c.id == new.id) else {
            self.containers.push(new);
            self.containers
                .sort_by_key(|c| std::cmp::Reverse((c.restart_count, c.created_at)));
            return true;
        };
        if new.state.progress() < known.state.progress() {
            return false;
        }
        if new.sandbox_id.is_empty() {
            new.sandbox_id.clone_from(&known.sandbox_id);
        }
        let news = *known != new;
        *known = new;
        news
    }

    /// Forgets a container for good; tells whether it was known.
    pub fn remove_container(&mut self, id: &str) -> bool {
        let before = self.containers.len();
        self.containers.retain(|c| c.id != id);
        self.gone.insert(id.to_owned());
        before != self.containers.len()
    }

    /// Forgets a sandbox, and the containers in it, for good; tells whether it was known.
    pub fn remove_sandbox(&mut self, id: &str) -> bool {
        let before = self.sandboxes.len();
        self.sandboxes.retain(|s| s.id != id);
        self.containers.retain(|c| c.sandbox_id != id);
        self.gone.insert(id.to_owned());
        before != self.sandboxes.len()
    }

    /// The newest instance of a container.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// All instances of a container, newest first.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> + 'a {
        self.containers.iter().filter(move |c| c.name == name)
    }

    /// The sandbox in which containers can run.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().find(|s| s.ready)
    }

    /// Containers whose first process runs, or may run.
    pub fn live(&self) -> impl Iterator<Item = &Container> {
        self.containers
            .iter()
            .filter(|c| matches!(c.state, State::Running { .. } | State::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(state: State) -> Container {
        Container {
            id: "c".into(),
            sandbox_id: "s".into(),
            name: "app".into(),
            restart_count: 0,
            state,
            created_at: 1,
            image: String::new(),
            image_ref: String::new(),
            hash: String::new(),
            log_path: String::new(),
            user: None,
            stop_signal: None,
        }
    }

    fn exited() -> State {
        State::Exited(Exit {
            code: 3,
            started_at: 2,
            finished_at: 4,
            reason: "Error".into(),
            message: String::new(),
        })
    }

    #[test]
    fn a_late_reply_does_not_bring_a_dead_container_back() {
        let mut pod = PodRuntime::new(PodUid::new("u"), "ns", "p");
        assert!(pod.merge_container(container(exited())));
        assert!(!pod.merge_container(container(State::Running { started_at: 2 })));
        assert_eq!(
            pod.latest("app").and_then(|c| c.exit()).map(|e| e.code),
            Some(3)
        );
    }

    #[test]
    fn a_late_event_does_not_bring_a_removed_container_back() {
        let mut pod = PodRuntime::new(PodUid::new("u"), "ns", "p");
        pod.merge_container(container(exited()));
        assert!(pod.remove_container("c"));
        assert!(!pod.merge_container(container(exited())));
        assert!(pod.containers.is_empty());
    }
}
