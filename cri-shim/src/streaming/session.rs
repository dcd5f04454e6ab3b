//! What is served under a token: prepared by the RPC, carried out when the client comes.

use crate::keeper::{ExecStdio, ExitStatus, KeeperError};
use futures::future::BoxFuture;
use std::os::fd::OwnedFd;

/// Any error that a session ends with before it began.
pub type StartError = Box<dyn std::error::Error + Send + Sync>;

/// Starts the exec with these streams.
pub type StartExec =
    Box<dyn FnOnce(ExecStdio) -> BoxFuture<'static, Result<RunningExec, StartError>> + Send>;

/// Connects to a port inside the sandbox's network namespace, on its loopback.
pub type DialPort =
    Box<dyn Fn(u16) -> BoxFuture<'static, std::io::Result<tokio::net::TcpStream>> + Send + Sync>;

/// Which streams the client wants (CRI ExecRequest, AttachRequest).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// The client gives input.
    pub stdin: bool,
    /// The client wants output.
    pub stdout: bool,
    /// The client wants errors; not with a terminal, where both are one.
    pub stderr: bool,
    /// A terminal.
    pub terminal: bool,
}

/// A command that runs.
pub struct RunningExec {
    /// The master of its terminal, non-blocking.
    pub terminal: Option<OwnedFd>,
    /// Its end.
    pub exit: BoxFuture<'static, Result<ExitStatus, KeeperError>>,
    /// Kills it with all that it started.
    pub kill: Box<dyn FnOnce() + Send>,
}

/// CRI Exec.
pub struct ExecSession {
    /// As requested.
    pub streams: Streams,
    /// Starts it.
    pub start: StartExec,
}

/// CRI Attach.
#[derive(Debug)]
pub struct AttachSession {
    /// The container.
    pub container_id: String,
    /// As requested.
    pub streams: Streams,
    /// The keeper that holds it.
    pub keeper: crate::keeper::Client,
}

/// CRI PortForward.
pub struct PortForwardSession {
    /// The ports that the RPC named: a WebSocket client forwards these, one connection each. (A SPDY client names the
    /// port with each connection.)
    pub ports: Vec<u16>,
    /// Connects to one port.
    pub dial: DialPort,
}

/// One of them.
pub(super) enum Session {
    Exec(ExecSession),
    Attach(AttachSession),
    PortForward(PortForwardSession),
}

impl Session {
    /// The first part of its URL's path.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Session::Exec(_) => "exec",
            Session::Attach(_) => "attach",
            Session::PortForward(_) => "portforward",
        }
    }
}
