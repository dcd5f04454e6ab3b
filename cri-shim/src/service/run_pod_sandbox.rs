//! RunPodSandbox: namespaces, cgroup, files, network, in that order; undone if any of it fails.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cri_api::v1::{
    ContainerEventType, NamespaceMode, PodSandboxConfig, PortMapping, Protocol,
    RunPodSandboxRequest, RunPodSandboxResponse,
};
use serde_json::json;
use tonic::Status;

use super::Error;
use crate::cni::{Attachment, PodIdentity, PortMapping as CniPort};
use crate::runtime::{Runtime, blocking};
use crate::sandbox::{self, Wanted};
use crate::spec::{check_owned, sandbox_namespaces_of, user_mapping};
use crate::state::{Network, Phase, Sandbox, SandboxRecord, SandboxStatus, new_id, now_ns};

impl Runtime {
    /// CRI RunPodSandbox. A repeated request joins the one that is running, or gets the sandbox that it made.
    pub async fn run_pod_sandbox(
        self: &Arc<Self>,
        request: RunPodSandboxRequest,
    ) -> Result<RunPodSandboxResponse, Status> {
        let config = request
            .config
            .ok_or_else(|| Error::Invalid("config is required".into()))?;
        check(&config)?;
        self.check_user_namespace(&config)?;
        if !request.runtime_handler.is_empty() {
            let handler = request.runtime_handler;
            return Err(Error::Invalid(format!("no runtime handler is called {handler:?}")).into());
        }
        let key = format!("sandbox {}", SandboxRecord::key(&config));
        let this = self.clone();
        let create = async move { this.create_sandbox(config).await.map_err(Status::from) };
        let pod_sandbox_id = self.operations.join(&key, create).await?;
        Ok(RunPodSandboxResponse { pod_sandbox_id })
    }

    fn check_user_namespace(&self, config: &PodSandboxConfig) -> Result<(), Error> {
        let wanted = user_mapping(&sandbox_namespaces_of(config))?.is_some();
        match &self.abilities.user_namespaces {
            Err(why) if wanted => Err(Error::Unsupported(format!(
                "a user namespace of the pod's own: {why}"
            ))),
            _ => Ok(()),
        }
    }

    async fn create_sandbox(self: Arc<Self>, config: PodSandboxConfig) -> Result<String, Error> {
        let same = |sandbox: &Arc<Sandbox>| sandbox.record.config.metadata == config.metadata;
        if let Some(sandbox) = self.state.all_sandboxes().into_iter().find(same) {
            return match sandbox.status().is_ready() {
                true => Ok(sandbox.id().to_owned()),
                false => Err(Error::Exists(format!(
                    "sandbox {} of this pod and attempt is not ready; remove it first",
                    sandbox.id()
                ))),
            };
        }
        let id = new_id();
        let options = sandbox_namespaces_of(&config);
        let host_network = options.network() == NamespaceMode::Node;
        let record = SandboxRecord {
            cgroup: sandbox::pod_path(&config, &self.config.cgroup_root, &id),
            id: id.clone(),
            config,
            runtime_handler: String::new(),
            created_at_ns: now_ns(),
        };
        let network = if host_network {
            Network::Host
        } else {
            Network::Unknown
        };
        let sandbox = self
            .state
            .add_sandbox(record, SandboxStatus::creating(network))?;
        match self.build_sandbox(&sandbox).await {
            Ok(network) => {
                self.state.update_sandbox(&sandbox, |status| {
                    status.network = network;
                    status.phase = Phase::Ready;
                })?;
                for kind in [
                    ContainerEventType::ContainerCreatedEvent,
                    ContainerEventType::ContainerStartedEvent,
                ] {
                    self.tell(sandbox.id(), kind, &sandbox);
                }
                tracing::info!(sandbox = %id, pod = %pod_name(&sandbox), "sandbox is ready");
                Ok(id)
            }
            Err(error) => {
                self.undo_sandbox(&sandbox).await;
                Err(error)
            }
        }
    }

    /// Removes what was made of a sandbox. What can't be removed now stays visible as a sandbox that isn't ready, for
    /// the kubelet to remove.
    pub(super) async fn undo_sandbox(&self, sandbox: &Arc<Sandbox>) {
        let stopped = self.release_sandbox(sandbox).await;
        let outcome = match stopped {
            Ok(()) => self.forget_sandbox(sandbox).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(sandbox = %sandbox.id(), %error, "could not undo a sandbox that failed to start");
            // The journal still says "creating", so the next start tries again even if this fails.
            let _ = self
                .state
                .update_sandbox(sandbox, |status| status.phase = Phase::NotReady);
        }
    }

    async fn build_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<Network, Error> {
        let record = &sandbox.record;
        let options = sandbox_namespaces_of(&record.config);
        let host_network = options.network() == NamespaceMode::Node;
        let host_name = host_name(&record.config, host_network);
        let linux = record.config.linux.clone().unwrap_or_default();
        let wanted = Wanted {
            id: record.id.clone(),
            network: (!host_network).then(|| self.netns_path(&record.id)),
            ipc: options.ipc() != NamespaceMode::Node,
            host_name: (!host_network).then(|| host_name.clone()),
            sysctls: linux.sysctls.into_iter().collect::<BTreeMap<_, _>>(),
            user: user_mapping(&options)?,
        };
        if let Some(key) =
            sandbox::unsafe_sysctl(wanted.sysctls.keys(), wanted.network.is_some(), wanted.ipc)
        {
            return Err(Error::Invalid(format!(
                "sysctl {key} does not belong to the pod's own namespaces"
            )));
        }
        let this = self.clone();
        let root = wanted.user.map_or(0, |mapping| mapping.host_id);
        let of = sandbox.clone();
        let prepare = blocking(move || {
            let record = &of.record;
            let limits = record
                .config
                .linux
                .as_ref()
                .and_then(|linux| linux.resources.as_ref());
            this.cgroups.ensure_pod(&record.cgroup, limits)?;
            let files = this.files(&record.id);
            files
                .write(&host_name, record.config.dns_config.as_ref(), root)
                .map_err(Error::io("write the sandbox's files"))
        });
        let namespaces = sandbox::make(wanted, self.pins.clone());
        let (prepared, namespaces) = tokio::join!(prepare, namespaces);
        namespaces.map_err(Error::io(format!(
            "make the namespaces of sandbox {}",
            record.id
        )))?;
        prepared?;
        if host_network {
            return Ok(Network::Host);
        }
        let result = self.network.add(&self.attachment(record)).await?;
        Ok(Network::Connected(Box::new(result)))
    }

    /// The cgroup of the pod's init.
    pub(super) fn init_cgroup(
        &self,
        record: &SandboxRecord,
    ) -> Result<linux::cgroup::Cgroup, Error> {
        Ok(self
            .cgroups
            .at(&format!("{}/{}", record.cgroup, record.id))?)
    }

    /// What CNI is told about a sandbox, at ADD and at DEL alike.
    pub(super) fn attachment(&self, record: &SandboxRecord) -> Attachment {
        let metadata = record.config.metadata.clone().unwrap_or_default();
        let pod = PodIdentity {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
        };
        let ports: Vec<CniPort> = record
            .config
            .port_mappings
            .iter()
            .filter_map(cni_port)
            .collect();
        let mut attachment = Attachment::new(&record.id, self.netns_path(&record.id), "eth0", pod)
            .with_port_mappings(&ports);
        attachment = attachment.with_capability("cgroupPath", json!(record.cgroup));
        if let Some(dns) = &record.config.dns_config {
            let dns =
                json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
            attachment = attachment.with_capability("dns", dns);
        }
        attachment
    }
}

/// `namespace/name`, for logs.
pub(super) fn pod_name(sandbox: &Sandbox) -> String {
    let metadata = sandbox.record.config.metadata.as_ref();
    metadata
        .map(|metadata| format!("{}/{}", metadata.namespace, metadata.name))
        .unwrap_or_default()
}

fn check(config: &PodSandboxConfig) -> Result<(), Error> {
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| Error::Invalid("config.metadata is required".into()))?;
    if metadata.name.is_empty() || metadata.namespace.is_empty() || metadata.uid.is_empty() {
        return Err(Error::Invalid(
            "config.metadata: name, namespace and uid are required".into(),
        ));
    }
    let options = sandbox_namespaces_of(config);
    if user_mapping(&options)?.is_some() {
        check_owned(&options)?;
    }
    if config.hostname.len() > 64 {
        return Err(Error::Invalid(
            "config.hostname: longer than 64 bytes".into(),
        ));
    }
    Ok(())
}

/// The pod's name for itself; the host's for a pod in the host's network.
fn host_name(config: &PodSandboxConfig, host_network: bool) -> String {
    if host_network || config.hostname.is_empty() {
        let own = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        return if host_network || own.len() <= 64 {
            own
        } else {
            "localhost".into()
        };
    }
    config.hostname.clone()
}

/// A mapping that CNI can make; without a host port there is nothing to map.
fn cni_port(mapping: &PortMapping) -> Option<CniPort> {
    let port = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
    let protocol = match mapping.protocol() {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    Some(CniPort {
        host_port: port(mapping.host_port)?,
        container_port: port(mapping.container_port)?,
        protocol: protocol.into(),
        host_ip: mapping.host_ip.parse::<IpAddr>().ok(),
    })
}
