//! What a container may do: the pod's and its own security context in one (CRI LinuxContainerSecurityContext).

use cri_api::v1;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile};

use crate::pod::PodExt;
use crate::user_namespaces;

/// A container that its image doesn't allow to start (CreateContainerConfigError).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `runAsUser: 0` beside `runAsNonRoot`.
    #[error("container's runAsUser breaks non-root policy (pod: \"{0}\", container: {1})")]
    RunAsRoot(String, String),
    /// The image's user is root.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{0}\", container: {1})")]
    ImageRunsAsRoot(String, String),
    /// The image's user is a name, whose number isn't known yet.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root (pod: \"{1}\", container: {2})"
    )]
    ImageUserByName(String, String, String),
}

/// The image's own user: a number, or a name.
#[derive(Clone, Debug, Default)]
pub struct ImageUser {
    /// The number, if the image states one.
    pub uid: Option<i64>,
    /// The name, if the image states one.
    pub name: String,
}

const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The namespaces that the pod and its containers use; `user` are its ids if it has a user namespace of its own.
pub fn namespace_options(pod: &Pod, user: Option<v1::IdMapping>) -> v1::NamespaceOption {
    let spec = pod.pod_spec();
    let node = |on: Option<bool>, otherwise| {
        if on == Some(true) {
            v1::NamespaceMode::Node as i32
        } else {
            otherwise as i32
        }
    };
    let pid = if spec.share_process_namespace == Some(true) {
        v1::NamespaceMode::Pod
    } else {
        v1::NamespaceMode::Container
    };
    v1::NamespaceOption {
        network: node(spec.host_network, v1::NamespaceMode::Pod),
        pid: node(spec.host_pid, pid),
        ipc: node(spec.host_ipc, v1::NamespaceMode::Pod),
        target_id: String::new(),
        userns_options: user.map(user_namespaces::options),
    }
}

/// The container's security context.
pub fn container_context(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
    user_namespace: Option<v1::IdMapping>,
    seccomp_default: bool,
) -> Result<v1::LinuxContainerSecurityContext, Error> {
    let of_pod = pod.pod_spec().security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        verify_non_root(pod, container, user, image)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let mut supplemental_groups = of_pod.supplemental_groups.clone().unwrap_or_default();
    supplemental_groups.extend(of_pod.fs_group);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            list.iter().map(|p| (*p).to_owned()).collect()
        }
    };
    Ok(v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespace_options(pod, user_namespace)),
        selinux_options: own
            .se_linux_options
            .or(of_pod.se_linux_options)
            .map(selinux),
        // Without a number of the pod's, the image's user stands, and the name that it may be.
        run_as_user: user.or(image.uid).map(|value| v1::Int64Value { value }),
        run_as_username: if user.is_none() && image.uid.is_none() {
            image.name.clone()
        } else {
            String::new()
        },
        run_as_group: group.map(|value| v1::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups,
        supplemental_groups_policy: policy(of_pod.supplemental_groups_policy.as_deref()),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED_PATHS),
        readonly_paths: paths(READONLY_PATHS),
        seccomp: Some(seccomp(
            own.seccomp_profile
                .as_ref()
                .or(of_pod.seccomp_profile.as_ref()),
            privileged,
            seccomp_default,
        )),
        apparmor: apparmor(
            own.app_armor_profile
                .as_ref()
                .or(of_pod.app_armor_profile.as_ref()),
            privileged,
        ),
        ..v1::LinuxContainerSecurityContext::default()
    })
}

fn verify_non_root(
    pod: &Pod,
    container: &Container,
    user: Option<i64>,
    image: &ImageUser,
) -> Result<(), Error> {
    let (pod, container) = (pod.described(), container.name.clone());
    match (user, image.uid) {
        (Some(0), _) => Err(Error::RunAsRoot(pod, container)),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(Error::ImageRunsAsRoot(pod, container)),
        (None, None) if !image.name.is_empty() => {
            Err(Error::ImageUserByName(image.name.clone(), pod, container))
        }
        (None, None) => Err(Error::ImageRunsAsRoot(pod, container)),
        (None, Some(_)) => Ok(()),
    }
}

fn policy(text: Option<&str>) -> i32 {
    match text {
        Some("Strict") => v1::SupplementalGroupsPolicy::Strict as i32,
        _ => v1::SupplementalGroupsPolicy::Merge as i32,
    }
}

fn selinux(options: SELinuxOptions) -> v1::SeLinuxOption {
    v1::SeLinuxOption {
        user: options.user.unwrap_or_default(),
        role: options.role.unwrap_or_default(),
        r#type: options.type_.unwrap_or_default(),
        level: options.level.unwrap_or_default(),
    }
}

/// What a profile means. Without one, `default_on` says whether the runtime's own confines; a privileged container
/// is never confined.
pub fn seccomp(
    profile: Option<&SeccompProfile>,
    privileged: bool,
    default_on: bool,
) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let (kind, local) = match profile.map(|p| p.type_.as_str()) {
        _ if privileged => (ProfileType::Unconfined, ""),
        Some("Unconfined") => (ProfileType::Unconfined, ""),
        None if !default_on => (ProfileType::Unconfined, ""),
        Some("Localhost") => (
            ProfileType::Localhost,
            profile
                .and_then(|p| p.localhost_profile.as_deref())
                .unwrap_or_default(),
        ),
        _ => (ProfileType::RuntimeDefault, ""),
    };
    let localhost_ref = if local.is_empty() {
        String::new()
    } else {
        format!("/var/lib/kubelet/seccomp/{local}")
    };
    v1::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref,
    }
}

fn apparmor(profile: Option<&AppArmorProfile>, privileged: bool) -> Option<v1::SecurityProfile> {
    use v1::security_profile::ProfileType;
    let (kind, local) = match profile?.type_.as_str() {
        _ if privileged => (ProfileType::Unconfined, ""),
        "Unconfined" => (ProfileType::Unconfined, ""),
        "Localhost" => (
            ProfileType::Localhost,
            profile?.localhost_profile.as_deref().unwrap_or_default(),
        ),
        _ => (ProfileType::RuntimeDefault, ""),
    };
    Some(v1::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: local.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn context(
        spec: serde_json::Value,
        image: &ImageUser,
    ) -> Result<v1::LinuxContainerSecurityContext, Error> {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}),
        )
        .expect("a pod");
        container_context(&pod, &pod.pod_spec().containers[0], image, None, true)
    }

    #[test]
    fn the_containers_own_context_wins_over_the_pods() {
        let spec = json!({"securityContext": {"runAsUser": 1000, "fsGroup": 7, "supplementalGroups": [5]},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 1001}}]});
        let context = context(spec, &ImageUser::default()).expect("allowed");
        assert_eq!(context.run_as_user.map(|v| v.value), Some(1001));
        assert_eq!(context.supplemental_groups, [5, 7]);
        assert!(context.masked_paths.contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn run_as_non_root_refuses_an_image_of_roots() {
        let spec =
            json!({"containers": [{"name": "c", "securityContext": {"runAsNonRoot": true}}]});
        let root = ImageUser {
            uid: Some(0),
            name: String::new(),
        };
        assert!(matches!(
            context(spec.clone(), &root),
            Err(Error::ImageRunsAsRoot(..))
        ));
        let named = ImageUser {
            uid: None,
            name: "www".into(),
        };
        assert!(matches!(
            context(spec.clone(), &named),
            Err(Error::ImageUserByName(..))
        ));
        let other = ImageUser {
            uid: Some(33),
            name: String::new(),
        };
        assert!(context(spec, &other).is_ok());
    }

    #[test]
    fn a_privileged_container_sees_everything() {
        let spec = json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]});
        let context = context(spec, &ImageUser::default()).expect("allowed");
        assert!(context.masked_paths.is_empty() && context.readonly_paths.is_empty());
    }
}
