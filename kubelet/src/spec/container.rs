//! A container of a pod (CRI ContainerConfig).

use std::collections::HashMap;

use cri_api::v1;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::env;
use super::expand::expand;
use super::security::{self, ImageUser};
use crate::pod::{ContainerExt, PodExt};
use crate::resources;
use crate::runtime::labels;

/// What a container gets besides what its specification says.
pub struct Ingredients<'a> {
    /// How often it was restarted.
    pub restart_count: u32,
    /// The environment, complete.
    pub env: Vec<(String, Vec<u8>)>,
    /// Volumes, hosts file and termination log.
    pub mounts: Vec<v1::Mount>,
    /// What the pod's image name resolved to on this node.
    pub image_ref: String,
    /// The image's own user.
    pub image_user: &'a ImageUser,
    /// The pod's ids on the host, if it has a user namespace of its own.
    pub user: Option<v1::IdMapping>,
    /// Whether a container without a seccomp profile gets the runtime's own.
    pub seccomp_default: bool,
    /// The node's memory, bytes.
    pub node_memory: i64,
    /// Whether the node has cgroup v2 alone.
    pub cgroup_unified: bool,
}

/// The container's configuration.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    with: Ingredients,
) -> Result<v1::ContainerConfig, security::Error> {
    let security_context = security::container_context(
        pod,
        container,
        with.image_user,
        with.user,
        with.seccomp_default,
    )?;
    let value = env::lookup(&with.env);
    let words = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|word| expand(word, &value))
            .collect()
    };
    let (command, args) = (words(&container.command), words(&container.args));
    drop(value);
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: container.name.clone(),
            attempt: with.restart_count,
        }),
        image: Some(v1::ImageSpec {
            image: with.image_ref,
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..v1::ImageSpec::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: with
            .env
            .into_iter()
            .map(|(key, value)| v1::KeyValue { key, value })
            .collect(),
        mounts: mapped(with.mounts, with.user),
        labels: container_labels(pod, container),
        annotations: annotations(pod, container, with.restart_count),
        log_path: log_path(&container.name, with.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::container_resources(
                pod,
                container,
                with.node_memory,
                with.cgroup_unified,
            )),
            security_context: Some(security_context),
        }),
        stop_signal: stop_signal(container) as i32,
        ..v1::ContainerConfig::default()
    })
}

/// What is root's in a volume is the pod's root's.
fn mapped(mut mounts: Vec<v1::Mount>, user: Option<v1::IdMapping>) -> Vec<v1::Mount> {
    for mount in &mut mounts {
        mount.uid_mappings = user.into_iter().collect();
        mount.gid_mappings = user.into_iter().collect();
    }
    mounts
}

/// The log's path below the pod's log folder.
pub fn log_path(container: &str, restart_count: u32) -> String {
    format!("{container}/{restart_count}.log")
}

fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    HashMap::from([
        (labels::POD_NAME.into(), pod.name().into()),
        (labels::POD_NAMESPACE.into(), pod.namespace().into()),
        (labels::POD_UID.into(), pod.uid().as_str().into()),
        (labels::CONTAINER_NAME.into(), container.name.clone()),
    ])
}

fn annotations(pod: &Pod, container: &Container, restart_count: u32) -> HashMap<String, String> {
    let policy = container
        .termination_message_policy
        .as_deref()
        .unwrap_or("File");
    let mut all = HashMap::from([
        (labels::HASH.to_owned(), container.spec_hash()),
        (labels::RESTART_COUNT.into(), restart_count.to_string()),
        (
            labels::TERMINATION_MESSAGE_PATH.into(),
            container.termination_message_path().into(),
        ),
        (labels::TERMINATION_MESSAGE_POLICY.into(), policy.into()),
        (labels::GRACE_PERIOD.into(), pod.grace_seconds().to_string()),
    ]);
    if let Some(ports) = &container.ports
        && let Ok(text) = serde_json::to_string(ports)
    {
        all.insert(labels::PORTS.into(), text);
    }
    all
}

fn stop_signal(container: &Container) -> v1::Signal {
    let wanted = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.as_deref());
    wanted
        .and_then(|name| v1::Signal::from_str_name(&format!("SIGNAL_{name}")))
        .unwrap_or(v1::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn commands_see_the_environment_and_the_log_is_numbered_by_restarts() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i:1", "command": ["sh", "-c", "$(A) $$(A) $(B)"],
                "lifecycle": {"stopSignal": "SIGUSR1"}}]}
        }))
        .expect("a pod");
        let with = Ingredients {
            restart_count: 3,
            env: vec![("A".into(), b"x".to_vec())],
            mounts: Vec::new(),
            image_ref: "sha256:1".into(),
            image_user: &ImageUser::default(),
            user: None,
            seccomp_default: true,
            node_memory: 1,
            cgroup_unified: true,
        };
        let config = container_config(&pod, &pod.pod_spec().containers[0], with).expect("allowed");
        assert_eq!(config.command, ["sh", "-c", "x $(A) $(B)"]);
        assert_eq!(config.log_path, "c/3.log");
        assert_eq!(config.annotations[labels::RESTART_COUNT], "3");
        assert_eq!(config.stop_signal(), v1::Signal::Sigusr1);
    }
}
