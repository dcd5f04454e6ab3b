//! Streaming (CRI Exec, Attach, PortForward): the RPC hands out a URL, and the client's bytes flow here.
//!
//! A session is prepared under a token and carried out when its client connects. [`remote`](self) hides which protocol
//! the client speaks from [`command`](self), which knows exec and attach. [`exec_sync`] is the same without a client.

mod command;
mod exec_sync;
mod pipes;
mod port_forward;
mod remote;
mod server;
mod session;
mod spdy;
mod spdy_command;
mod status;
mod tokens;
mod upgrade;
mod websocket;

pub use exec_sync::{ExecSyncError, ExecSyncOutput, MAX_OUTPUT, exec_sync};
pub use server::{Error, Server};
pub use session::{
    AttachSession, DialPort, ExecSession, PortForwardSession, RunningExec, StartError, StartExec,
    Streams,
};
