//! ExecSync, Exec, Attach and PortForward. What they share is the start of a command in a running container; the
//! streams are served by [`crate::streaming`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::{
    AttachRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse, NamespaceMode,
    PortForwardRequest,
};
use linux::cgroup::Cgroup;
use linux::namespace::{self, NamespaceKind};
use oci_runtime::{ExecPlan, ExecTarget};
use tokio::net::TcpStream;
use tonic::Status;

use super::Error;
use crate::keeper::{ExecRequest as KeeperExec, ExecStdio};
use crate::runtime::{Runtime, blocking};
use crate::sandbox::on_own_thread;
use crate::spec;
use crate::state::{Container, ContainerStatus, new_id};
use crate::streaming::{
    AttachSession, ExecSession, ExecSyncError, PortForwardSession, RunningExec, StartExec, Streams,
    exec_sync,
};

/// A port on a loopback address answers at once or not at all.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);

impl Runtime {
    /// CRI ExecSync. A command that isn't done after `timeout` seconds is killed with all that it started.
    pub async fn exec_sync(
        self: &Arc<Self>,
        request: ExecSyncRequest,
    ) -> Result<ExecSyncResponse, Status> {
        let container = self.running(&request.container_id)?;
        let limit = u64::try_from(request.timeout)
            .ok()
            .filter(|limit| *limit > 0)
            .map(Duration::from_secs);
        let start = self.starter(&container, request.cmd.clone());
        // In a task of its own: a client that goes away leaves no half-started exec.
        let run = tokio::spawn(exec_sync(start, limit));
        let output = run
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let output = output.map_err(|error| match error {
            ExecSyncError::Timeout(_) => {
                let command = request.cmd.join(" ");
                Status::deadline_exceeded(format!("command {command:?} timed out: {error}"))
            }
            ExecSyncError::Start(error) => match error.downcast::<Error>() {
                Ok(error) => Status::from(*error),
                Err(error) => Status::unknown(error.to_string()),
            },
            ExecSyncError::Keeper(error) => Error::from(error).into(),
        })?;
        Ok(ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit.code,
        })
    }

    /// CRI Exec: where the client is to connect to.
    pub fn exec_url(self: &Arc<Self>, request: ExecRequest) -> Result<String, Error> {
        let container = self.running(&request.container_id)?;
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.tty,
        };
        let streams = check(streams)?;
        let start = self.starter(&container, request.cmd);
        self.streams
            .exec(ExecSession { streams, start })
            .map_err(busy)
    }

    /// CRI Attach: where the client is to connect to.
    pub fn attach_url(self: &Arc<Self>, request: &AttachRequest) -> Result<String, Error> {
        let container = self.running(&request.container_id)?;
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: container.record.config.tty,
        };
        let streams = check(streams)?;
        let container_id = container.id().to_owned();
        self.streams
            .attach(AttachSession {
                container_id,
                streams,
                keeper: self.keeper.clone(),
            })
            .map_err(busy)
    }

    /// CRI PortForward: where the client is to connect to.
    pub fn port_forward_url(
        self: &Arc<Self>,
        request: &PortForwardRequest,
    ) -> Result<String, Error> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.status().is_ready() {
            return Err(Error::Precondition(format!(
                "sandbox {} is not ready",
                sandbox.id()
            )));
        }
        let ports = request
            .port
            .iter()
            .filter_map(|port| u16::try_from(*port).ok())
            .collect();
        let options = spec::sandbox_namespaces_of(&sandbox.record.config);
        let own = options.network() != NamespaceMode::Node;
        let netns = own.then(|| self.netns_path(sandbox.id()));
        let dial = Box::new(move |port| Box::pin(dial(netns.clone(), port)) as _);
        self.streams
            .port_forward(PortForwardSession { dial, ports })
            .map_err(busy)
    }

    /// A container that runs.
    fn running(&self, id: &str) -> Result<Arc<Container>, Error> {
        let container = self.container(id)?;
        match container.status() {
            ContainerStatus::Running { .. } => Ok(container),
            other => {
                let state = other.cri_state().as_str_name();
                Err(Error::Precondition(format!(
                    "container {} is in state {state}",
                    container.id()
                )))
            }
        }
    }

    /// What starts a command in a container once its streams are there.
    fn starter(self: &Arc<Self>, container: &Arc<Container>, command: Vec<String>) -> StartExec {
        let (this, container) = (self.clone(), container.clone());
        Box::new(move |stdio| {
            Box::pin(async move { Ok(this.start_exec(container, command, stdio).await?) })
        })
    }

    async fn start_exec(
        self: Arc<Self>,
        container: Arc<Container>,
        command: Vec<String>,
        stdio: ExecStdio,
    ) -> Result<RunningExec, Error> {
        let id = new_id();
        let terminal = matches!(stdio, ExecStdio::Terminal { .. });
        let (this, of, exec_id) = (self.clone(), container.clone(), id.clone());
        let (plan, fds, cgroup) =
            blocking(move || this.plan_exec(&of, &exec_id, &command, terminal)).await?;
        let started = self
            .keeper
            .exec(container.id(), &id, KeeperExec { plan, fds, stdio })
            .await;
        let reply = match started {
            Ok(reply) => reply,
            Err(error) => {
                clear(cgroup).await;
                return Err(error.into());
            }
        };
        let (pidfd, doomed) = (reply.pidfd, cgroup.clone());
        let kill = move || {
            let killed = doomed.kill().and_then(|()| linux::pidfd::kill(&pidfd));
            if let Err(error) = killed {
                tracing::warn!(%error, "could not kill an exec");
            }
        };
        let exit = async move {
            let status = self.keeper.exec_exit(&id).await;
            clear(cgroup).await;
            status
        };
        Ok(RunningExec {
            terminal: reply.terminal,
            exit: Box::pin(exit),
            kill: Box::new(kill),
        })
    }

    /// Plans an exec, in a cgroup of its own inside the container's, so that one that takes too long dies whole.
    fn plan_exec(
        &self,
        container: &Container,
        exec_id: &str,
        command: &[String],
        terminal: bool,
    ) -> Result<(ExecPlan, Vec<OwnedFd>, Cgroup), Error> {
        let ended = || Error::Precondition(format!("container {} has ended", container.id()));
        let launched = container.launched().ok_or_else(ended)?;
        let specification = self.read_spec(container.id())?;
        let process = specification.process().as_ref().ok_or_else(ended)?;
        let process = spec::exec_process(process, command, terminal)?;
        let pidfd = launched
            .pidfd
            .try_clone()
            .map_err(Error::io("copy a pidfd"))?;
        let cgroup = self
            .container_cgroup(&container.record)?
            .child(&format!("exec-{exec_id}"))?;
        self.make_leaf(&cgroup)?;
        let target = ExecTarget {
            pid: launched.pid,
            pidfd,
            cgroup: Some(cgroup.clone()),
            linux: specification.linux().clone(),
            keyring: Some(oci_runtime::session_keyring(container.id())),
            preserve_fds: 0,
            resctrl: None,
        };
        match oci_runtime::plan_exec(&process, target) {
            Ok((plan, fds)) => Ok((plan, fds, cgroup)),
            Err(error) => {
                // Empty, so nothing can be in the way.
                let _ = cgroup.delete();
                Err(error.into())
            }
        }
    }

    /// Makes a cgroup inside one that holds processes. In a v2 hierarchy such a one can hand no controllers on, and
    /// needn't: what is in the new one counts for the container.
    fn make_leaf(&self, cgroup: &Cgroup) -> Result<(), Error> {
        match cgroup.unified_dir().filter(|_| self.cgroups.unified()) {
            Some(folder) => std::fs::create_dir(&folder)
                .map_err(Error::io(format!("make cgroup {}", folder.display()))),
            None => Ok(cgroup.ensure().map(drop)?),
        }
    }
}

/// Connects to a port of the pod's loopback: on a thread that enters the pod's network and ends afterwards, since a
/// socket stays in the network that it was made in.
async fn dial(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let connect = move || {
        if let Some(netns) = netns {
            let joined = namespace::open(&netns)
                .and_then(|pin| namespace::join(pin, &[NamespaceKind::Network]));
            joined.map_err(io::Error::other)?;
        }
        let to = |address: IpAddr| {
            std::net::TcpStream::connect_timeout(&(address, port).into(), DIAL_PATIENCE)
        };
        let stream = to(Ipv4Addr::LOCALHOST.into()).or_else(|_| to(Ipv6Addr::LOCALHOST.into()))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let stream: io::Result<std::net::TcpStream> = on_own_thread("dial", connect).await?;
    TcpStream::from_std(stream?)
}

/// Removes an exec's cgroup. One whose command left processes behind goes with its container's.
async fn clear(cgroup: Cgroup) {
    if let Err(error) = blocking(move || Ok(cgroup.delete()?)).await {
        tracing::debug!(%error, "the cgroup of an exec stays until its container ends");
    }
}

/// Which streams make sense together (CRI ExecRequest).
fn check(streams: Streams) -> Result<Streams, Error> {
    if streams.terminal && streams.stderr {
        return Err(Error::Invalid("tty and stderr cannot both be true".into()));
    }
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Error::Invalid(
            "one of stdin, stdout, or stderr must be set".into(),
        ));
    }
    Ok(streams)
}

fn busy(error: crate::streaming::Error) -> Error {
    Error::Busy(error.to_string())
}
