//! What CRI asks for, as an OCI runtime specification: pure functions of the request, the image's configuration and
//! facts that were looked up before (CRI CreateContainer, runtime-spec 1.3).

mod capabilities;
mod mounts;
mod process;
mod resources;
mod signal;
#[cfg(test)]
mod tests;
mod user;
mod user_namespace;

pub use mounts::{Files, SHM, clean as clean_path, volume};
pub use process::exec as exec_process;
pub use resources::{cgroup_resources, is_empty as resources_are_empty};
pub use signal::{name as signal_name, parse as parse_signal};
pub use user::{Accounts, User, UserError};
pub use user_namespace::{check_owned, map_text, user_mapping};

use cri_api::v1::{
    ContainerConfig, LinuxContainerSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig,
};
use oci_spec::runtime::{
    Linux, LinuxDevice, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Root, Spec,
};

use crate::image::Execution;
use user_namespace::oci_mappings;

/// A request that can't be turned into a specification.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Neither the request nor the image names a program.
    #[error("no command specified: neither the container nor its image names one")]
    NoCommand,
    /// A field of the request has no meaning.
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
}

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// All that a container's specification depends on.
pub struct Inputs<'a> {
    pub config: &'a ContainerConfig,
    pub sandbox: &'a PodSandboxConfig,
    /// The image's part.
    pub image: &'a Execution,
    pub user: &'a User,
    /// The files of the sandbox's that every container of it has.
    pub files: &'a Files,
    /// The request's mounts, each with the host path that it resolves to.
    pub mounts: &'a [Mount],
    /// The request's devices, or the host's for a privileged container.
    pub devices: Vec<LinuxDevice>,
    /// The filter that the request's seccomp profile stands for.
    pub seccomp: Option<LinuxSeccomp>,
    /// Its cgroup, from the hierarchies' roots.
    pub cgroup: &'a str,
    /// The host has one cgroup v2 hierarchy with all controllers.
    pub unified_cgroups: bool,
}

/// The container's specification.
///
/// Namespaces that are joined (the sandbox's, the host's, another container's) are left out or listed without a path:
/// the caller hands them to the launch as descriptors.
///
/// # Errors
/// [`Error`] names the field that makes no sense.
pub fn container(inputs: Inputs<'_>) -> Result<Spec, Error> {
    let security = security_of(inputs.config);
    let process = process::container(&inputs, &security)?;
    let mounts = mounts::container(&inputs, &security)?;
    let propagation = mounts::rootfs_propagation(inputs.mounts);
    let resources = resources::oci(inputs.config, &security, &inputs.devices);
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(&inputs, &security)));
    linux.set_resources(Some(resources));
    linux.set_cgroups_path(Some(inputs.cgroup.into()));
    linux.set_devices(Some(inputs.devices));
    linux.set_seccomp(if security.privileged {
        None
    } else {
        inputs.seccomp
    });
    linux.set_rootfs_propagation(propagation.map(str::to_owned));
    if let Some(mapping) = user_mapping(&sandbox_namespaces_of(inputs.sandbox))? {
        linux.set_uid_mappings(Some(oci_mappings(&[mapping])?));
        linux.set_gid_mappings(Some(oci_mappings(&[mapping])?));
    }
    let paths = |paths: &[String]| (!security.privileged).then(|| paths.to_vec());
    linux.set_masked_paths(paths(&security.masked_paths));
    linux.set_readonly_paths(paths(&security.readonly_paths));
    let mut root = Root::default();
    root.set_path("rootfs".into());
    root.set_readonly(Some(security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version("1.1.0".into());
    spec.set_root(Some(root));
    spec.set_mounts(Some(mounts));
    spec.set_process(Some(process));
    // The uts namespace is the sandbox's, and has its name.
    spec.set_hostname(None);
    spec.set_linux(Some(linux));
    spec.set_annotations(Some(
        inputs.config.annotations.clone().into_iter().collect(),
    ));
    Ok(spec)
}

/// The `RuntimeDefault` filter for a container of these capabilities.
///
/// # Errors
/// None that a request can cause: the profile is a constant but for the capabilities.
pub fn default_seccomp(security: &LinuxContainerSecurityContext) -> Result<LinuxSeccomp, Error> {
    let names = capabilities::effective(security);
    let sets = names
        .iter()
        .filter_map(|name| linux::capability::Set::named(name));
    let set = sets.fold(
        linux::capability::Set::default(),
        linux::capability::Set::union,
    );
    oci_runtime::seccomp::default_profile(set)
        .map_err(|error| Error::invalid("security_context.seccomp", error.to_string()))
}

/// The request's security context; an absent one is an empty one.
pub fn security_of(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.clone())
        .unwrap_or_default()
}

/// The request's namespace options; an absent one shares what CRI says is the default: all of the pod's.
pub fn namespaces_of(config: &ContainerConfig) -> NamespaceOption {
    security_of(config).namespace_options.unwrap_or_default()
}

/// A sandbox's namespace options.
pub fn sandbox_namespaces_of(config: &PodSandboxConfig) -> NamespaceOption {
    let linux = config.linux.as_ref();
    let security = linux.and_then(|linux| linux.security_context.as_ref());
    security
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}

fn namespaces(
    inputs: &Inputs<'_>,
    security: &LinuxContainerSecurityContext,
) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType as Kind;
    let options = security.namespace_options.clone().unwrap_or_default();
    let sandbox = sandbox_namespaces_of(inputs.sandbox);
    let node = NamespaceMode::Node;
    let host_network = sandbox.network() == node;
    let kinds = [
        (
            Kind::User,
            user_mapping(&sandbox).is_ok_and(|mapping| mapping.is_some()),
        ),
        (Kind::Mount, true),
        (Kind::Pid, options.pid() != node),
        (Kind::Network, !host_network),
        (Kind::Ipc, sandbox.ipc() != node),
        // A pod of the host's network has the host's name.
        (Kind::Uts, !host_network),
        (Kind::Cgroup, inputs.unified_cgroups && !security.privileged),
    ];
    let wanted = kinds.into_iter().filter(|(_, wanted)| *wanted);
    wanted
        .map(|(kind, _)| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind);
            namespace
        })
        .collect()
}
