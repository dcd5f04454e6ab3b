//! Questions that every part asks of a pod's specification, with upstream's defaults where a field is absent
//! (a static pod has not been through the API server's defaulting).

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};

use crate::ids::PodUid;

/// Where a pod came from: `api` or `file`.
pub const ANNOTATION_SOURCE: &str = "kubernetes.io/config.source";
/// A static pod's hash; a mirror pod's is under [`ANNOTATION_MIRROR`].
pub const ANNOTATION_HASH: &str = "kubernetes.io/config.hash";
/// Marks a mirror pod and names the static pod's hash.
pub const ANNOTATION_MIRROR: &str = "kubernetes.io/config.mirror";
/// When a static pod was first read.
pub const ANNOTATION_SEEN: &str = "kubernetes.io/config.seen";

/// When a container is started again after it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// On an exit code other than 0.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended with `code` is started again.
    pub fn restarts(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// Reading a Pod.
pub trait PodExt {
    /// `metadata.uid`; for a static pod its hash.
    fn uid(&self) -> PodUid;
    /// `metadata.name`.
    fn name(&self) -> &str;
    /// `metadata.namespace`.
    fn namespace(&self) -> &str;
    /// `spec`, an empty one if absent.
    fn pod_spec(&self) -> &PodSpec;
    /// The value of an annotation.
    fn annotation(&self, key: &str) -> Option<&str>;
    /// Whether it was read from a file on this node.
    fn is_static(&self) -> bool;
    /// Whether it only shows a static pod in the API.
    fn is_mirror(&self) -> bool;
    /// `spec.restartPolicy`.
    fn restart_policy(&self) -> RestartPolicy;
    /// Whether the pod uses the node's network.
    fn host_network(&self) -> bool;
    /// `spec.terminationGracePeriodSeconds`, 30 by default.
    fn grace_seconds(&self) -> i64;
    /// Whether the API has a final phase for it.
    fn is_terminal(&self) -> bool;
    /// The container of a name, init containers included.
    fn container(&self, name: &str) -> Option<&Container>;
    /// Init containers.
    fn init_containers(&self) -> &[Container];
    /// `name_namespace(uid)`, as messages name a pod.
    fn described(&self) -> String;
}

static EMPTY_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);

impl PodExt for Pod {
    fn uid(&self) -> PodUid {
        PodUid::new(self.metadata.uid.as_deref().unwrap_or_default())
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }

    fn pod_spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&EMPTY_SPEC)
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata
            .annotations
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    fn is_static(&self) -> bool {
        matches!(self.annotation(ANNOTATION_SOURCE), Some(source) if source != "api")
            && !self.is_mirror()
    }

    fn is_mirror(&self) -> bool {
        self.annotation(ANNOTATION_MIRROR).is_some()
    }

    fn restart_policy(&self) -> RestartPolicy {
        RestartPolicy::parse(self.pod_spec().restart_policy.as_deref())
    }

    fn host_network(&self) -> bool {
        self.pod_spec().host_network.unwrap_or(false)
    }

    fn grace_seconds(&self) -> i64 {
        self.pod_spec()
            .termination_grace_period_seconds
            .unwrap_or(30)
    }

    fn is_terminal(&self) -> bool {
        let phase = self.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    fn container(&self, name: &str) -> Option<&Container> {
        let spec = self.pod_spec();
        spec.containers
            .iter()
            .chain(self.init_containers())
            .find(|c| c.name == name)
    }

    fn init_containers(&self) -> &[Container] {
        self.pod_spec().init_containers.as_deref().unwrap_or(&[])
    }

    fn described(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }
}

/// Reading a Container.
pub trait ContainerExt {
    /// An init container that keeps running beside the app containers (`restartPolicy: Always`).
    fn is_sidecar(&self) -> bool;
    /// Whether the container is started again after it ended with `code`: its own rules first, then its own
    /// policy, then the pod's.
    fn restarts(&self, pod: RestartPolicy, code: i32) -> bool;
    /// A digest of what can't change under a running container: its name and image.
    fn spec_hash(&self) -> String;
    /// `terminationMessagePath`.
    fn termination_message_path(&self) -> &str;
    /// `imagePullPolicy`, by the tag if absent.
    fn pull_policy(&self) -> PullPolicy;
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// At each start.
    Always,
    /// When the node doesn't have it.
    IfNotPresent,
    /// Not at all.
    Never,
}

impl ContainerExt for Container {
    fn is_sidecar(&self) -> bool {
        self.restart_policy.as_deref() == Some("Always")
    }

    fn restarts(&self, pod: RestartPolicy, code: i32) -> bool {
        for rule in self.restart_policy_rules.iter().flatten() {
            let Some(codes) = &rule.exit_codes else {
                continue;
            };
            let listed = codes.values.as_deref().unwrap_or(&[]).contains(&code);
            if rule.action == "Restart" && listed == (codes.operator == "In") {
                return true;
            }
        }
        match self.restart_policy.as_deref() {
            Some(own) => RestartPolicy::parse(Some(own)).restarts(code),
            None => pod.restarts(code),
        }
    }

    fn spec_hash(&self) -> String {
        // FNV-1a: stable between versions of this program, which the standard library's hasher is not.
        let text = format!(
            "{}\0{}",
            self.name,
            self.image.as_deref().unwrap_or_default()
        );
        let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        format!("{hash:x}")
    }

    fn termination_message_path(&self) -> &str {
        self.termination_message_path
            .as_deref()
            .unwrap_or("/dev/termination-log")
    }

    fn pull_policy(&self) -> PullPolicy {
        match self.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some(_) => PullPolicy::IfNotPresent,
            None => {
                let image = self.image.as_deref().unwrap_or_default();
                let last = image.rsplit('/').next().unwrap_or(image);
                let latest = !last.contains('@')
                    && last.split_once(':').is_none_or(|(_, tag)| tag == "latest");
                if latest {
                    PullPolicy::Always
                } else {
                    PullPolicy::IfNotPresent
                }
            }
        }
    }
}

/// Reading a Probe, with the API's defaults.
pub trait ProbeExt {
    /// Seconds between probes.
    fn period(&self) -> u64;
    /// Seconds that one probe may take.
    fn timeout(&self) -> u64;
    /// Seconds after the container's start before the first probe.
    fn initial_delay(&self) -> u64;
    /// Failures in a row that make the result a failure.
    fn failure_threshold(&self) -> u32;
    /// Successes in a row that make the result a success.
    fn success_threshold(&self) -> u32;
}

impl ProbeExt for Probe {
    fn period(&self) -> u64 {
        positive(self.period_seconds).unwrap_or(10)
    }

    fn timeout(&self) -> u64 {
        positive(self.timeout_seconds).unwrap_or(1)
    }

    fn initial_delay(&self) -> u64 {
        positive(self.initial_delay_seconds).unwrap_or(0)
    }

    fn failure_threshold(&self) -> u32 {
        positive(self.failure_threshold).map_or(3, |n| n as u32)
    }

    fn success_threshold(&self) -> u32 {
        positive(self.success_threshold).map_or(1, |n| n as u32)
    }
}

fn positive(value: Option<i32>) -> Option<u64> {
    value.filter(|n| *n > 0).map(|n| n.unsigned_abs().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> PullPolicy {
        Container {
            image: Some(name.into()),
            ..Container::default()
        }
        .pull_policy()
    }

    #[test]
    fn an_absent_pull_policy_follows_the_tag() {
        assert_eq!(image("busybox"), PullPolicy::Always);
        assert_eq!(image("localhost:5000/busybox"), PullPolicy::Always);
        assert_eq!(image("localhost:5000/busybox:latest"), PullPolicy::Always);
        assert_eq!(image("busybox:1.36"), PullPolicy::IfNotPresent);
        assert_eq!(image("busybox@sha256:00"), PullPolicy::IfNotPresent);
    }

    #[test]
    fn a_hash_changes_with_the_image() {
        let one = Container {
            name: "a".into(),
            image: Some("x:1".into()),
            ..Container::default()
        };
        let two = Container {
            image: Some("x:2".into()),
            ..one.clone()
        };
        assert_ne!(one.spec_hash(), two.spec_hash());
        assert_eq!(one.spec_hash(), one.clone().spec_hash());
    }
}
