//! The CRI server's side of the keeper: several requests in flight over one connection, which comes back by itself.

use super::connection::{self, Command, Reply};
use super::error::KeeperError;
use super::keepsakes::Keepsakes;
use super::protocol::{Answer, Exit, ExitStatus, IoSpec, Request, VERSION};
use super::upgrade::program_identity;
use super::{environment, spawn};
use crate::watch::watch;
use bytes::Bytes;
use linux::socket;
use oci_runtime::{CgroupPlan, ExecPlan, LaunchPlan};
use serde::Serialize;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Where the keeper is, and how to start one.
#[derive(Debug, Clone)]
pub struct Config {
    /// The keeper's directory, `/run/orlop/keeper`: socket, FIFOs, records. It must be a tmpfs: the keeper waits for no
    /// disk, and what is recorded here must not outlive the kernel.
    pub dir: PathBuf,
    /// The program to start as `PROGRAM keeper …`; normally `/proc/self/exe`.
    pub program: PathBuf,
    /// The cgroup for the keeper and the scribe, outside any unit's, relative to each hierarchy's root. Best effort;
    /// with `None` they stay in the caller's.
    pub cgroup: Option<String>,
}

impl Config {
    /// The keeper of the state directory (`/run/orlop`), from this program.
    pub fn new(state_dir: &std::path::Path) -> Self {
        Config {
            dir: state_dir.join("keeper"),
            program: PathBuf::from("/proc/self/exe"),
            cgroup: Some("orlop-keeper".to_owned()),
        }
    }
}

/// A connection to the keeper; clones share it.
///
/// When the connection ends (the keeper was killed), it is made again, with a new keeper if need be, which adopts the
/// containers; requests in flight fail with [`KeeperError::Disconnected`], subscriptions go on where they were.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::UnboundedSender<Command>,
    keepsakes: Keepsakes,
    dir: Arc<Path>,
}

/// A container to start.
#[derive(Debug)]
pub struct LaunchRequest {
    /// From [`oci_runtime::plan_launch`].
    pub plan: LaunchPlan,
    /// From [`oci_runtime::plan_launch`].
    pub fds: Vec<OwnedFd>,
    /// The CRI log file; `None` drops the output.
    pub log_path: Option<PathBuf>,
    /// CRI `ContainerConfig.stdin`.
    pub stdin: bool,
    /// CRI `ContainerConfig.stdin_once`.
    pub stdin_once: bool,
    /// CRI `ContainerConfig.tty`.
    pub terminal: bool,
    /// Columns and rows of the terminal.
    pub size: Option<(u16, u16)>,
    /// The cgroup's `memory.events` (v2) or `memory.oom_control` (v1), opened for reading: it is read at the exit, to
    /// tell whether memory ran out.
    pub memory_events: Option<OwnedFd>,
}

/// A started process.
#[derive(Debug, Clone)]
pub struct LaunchReply {
    /// Its pid.
    pub pid: i32,
    /// Its pidfd, to signal it by.
    pub pidfd: Arc<OwnedFd>,
    /// The master of its terminal, if it has one.
    pub terminal: Option<Arc<OwnedFd>>,
}

/// What an exec has as standard streams.
#[derive(Debug)]
pub enum ExecStdio {
    /// These.
    Fds {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
    /// A new terminal; its master comes back in [`ExecReply::terminal`].
    Terminal {
        /// Columns and rows.
        size: Option<(u16, u16)>,
    },
}

/// Another process to start in a running container.
#[derive(Debug)]
pub struct ExecRequest {
    /// From [`oci_runtime::plan_exec`].
    pub plan: ExecPlan,
    /// From [`oci_runtime::plan_exec`].
    pub fds: Vec<OwnedFd>,
    /// Its streams.
    pub stdio: ExecStdio,
}

/// A started exec.
#[derive(Debug)]
pub struct ExecReply {
    /// Its pid.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// The master of its terminal, non-blocking, and the only one: when it is closed, the terminal hangs up.
    pub terminal: Option<OwnedFd>,
}

/// A container that the keeper holds.
#[derive(Debug)]
pub struct Held {
    /// Its id.
    pub id: String,
    /// Its first process.
    pub pid: i32,
    /// That process's pidfd, while it runs.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// The master of its terminal, while it runs.
    pub terminal: Option<Arc<OwnedFd>>,
    /// It has been cloned and not yet come to its `execve`.
    pub launching: bool,
    /// Its end.
    pub exit: Option<Exit>,
}

/// The ends of containers, from a sequence number on; see [`Client::exits`].
#[derive(Debug)]
pub struct Exits {
    pub(super) receiver: mpsc::UnboundedReceiver<Exit>,
}

impl Exits {
    /// The next end. `None` only when the client has shut down.
    pub async fn next(&mut self) -> Option<Exit> {
        self.receiver.recv().await
    }
}

impl Client {
    /// Connects to the keeper of `config.dir`, and starts one if there is none. Must be called in a tokio runtime,
    /// which drives the connection from then on.
    ///
    /// # Errors
    /// [`KeeperError::Spawn`] or the socket's error.
    pub async fn connect_or_spawn(config: Config) -> Result<Client, KeeperError> {
        let first = spawn::connect_or_spawn(&config)?;
        let (commands, receiver) = mpsc::unbounded_channel();
        let keepsakes = Keepsakes::default();
        tokio::spawn(connection::run(
            config.clone(),
            first,
            receiver,
            keepsakes.clone(),
        ));
        let client = Client {
            commands,
            keepsakes,
            dir: config.dir.as_path().into(),
        };
        // A keeper that is dying may still have taken the connection: the next one is its successor's.
        for _ in 0..10 {
            match client
                .call(Request::Hello { version: VERSION }, Vec::new())
                .await
            {
                Ok(Reply {
                    answer: Answer::Hello { program, .. },
                    ..
                }) => {
                    client.replace_other_program(&config.program, program).await;
                    return Ok(client);
                }
                Ok(_) => return Err(unexpected("hello")),
                Err(KeeperError::Disconnected) => {}
                Err(error) => return Err(error),
            }
        }
        Err(KeeperError::Disconnected)
    }

    /// After an update of the product the keeper still runs the old program: it is given the new one.
    async fn replace_other_program(&self, program: &Path, running: [u64; 4]) {
        let ours = std::fs::File::open(program)
            .ok()
            .and_then(|file| program_identity(file).ok());
        if ours.is_none_or(|ours| ours == running) {
            return;
        }
        match self.upgrade(program).await {
            Ok(()) => tracing::info!("the keeper runs the new program now"),
            Err(error) => tracing::warn!(%error, "the keeper goes on with its old program"),
        }
    }

    /// Starts a container; returns after its `execve`. For an id that is held already, the running launch or the
    /// earlier result is joined.
    ///
    /// # Errors
    /// [`KeeperError::Launch`] with the process's own words, and nothing is left then; [`KeeperError::WrongState`] if
    /// the container of this id has ended.
    pub async fn launch(
        &self,
        id: &str,
        request: LaunchRequest,
    ) -> Result<LaunchReply, KeeperError> {
        let mut fds = vec![memory_file(&request.plan)?];
        let memory_events = request.memory_events.as_ref().map(path_of);
        fds.extend(request.memory_events);
        fds.extend(request.fds);
        let io = IoSpec {
            log_path: request.log_path,
            stdin: request.stdin,
            stdin_once: request.stdin_once,
            terminal: request.terminal,
        };
        let request = Request::Launch {
            id: id.to_owned(),
            io,
            size: request.size,
            memory_events,
        };
        let (pid, pidfd, terminal) = launched(self.call(request, fds).await?)?;
        let (pidfd, terminal) = (Arc::new(pidfd), terminal.map(Arc::new));
        self.keepsakes.keep(id, &pidfd, terminal.clone());
        Ok(LaunchReply {
            pid,
            pidfd,
            terminal,
        })
    }

    /// Starts the init of a pod that shares a pid namespace, which `user_namespace` will own, and holds it like a
    /// container that prints nothing. `cgroup` and its descriptors are from [`CgroupPlan::open`].
    ///
    /// # Errors
    /// As [`Client::launch`].
    pub async fn launch_pod_init(
        &self,
        id: &str,
        cgroup: &CgroupPlan,
        cgroup_fds: Vec<OwnedFd>,
        user_namespace: Option<OwnedFd>,
    ) -> Result<LaunchReply, KeeperError> {
        let mut fds = vec![memory_file(cgroup)?];
        let user = user_namespace.is_some();
        fds.extend(user_namespace);
        fds.extend(cgroup_fds);
        let request = Request::LaunchPodInit {
            id: id.to_owned(),
            user,
        };
        let (pid, pidfd, _) = launched(self.call(request, fds).await?)?;
        Ok(LaunchReply {
            pid,
            pidfd: Arc::new(pidfd),
            terminal: None,
        })
    }

    /// Starts another process in a running container; returns after its `execve`. `exec_id` is unique on the node.
    ///
    /// # Errors
    /// As [`Client::launch`].
    pub async fn exec(
        &self,
        container_id: &str,
        exec_id: &str,
        request: ExecRequest,
    ) -> Result<ExecReply, KeeperError> {
        let mut fds = vec![memory_file(&request.plan)?];
        let (terminal, size) = match request.stdio {
            ExecStdio::Fds {
                stdin,
                stdout,
                stderr,
            } => {
                fds.extend([stdin, stdout, stderr]);
                (false, None)
            }
            ExecStdio::Terminal { size } => (true, size),
        };
        fds.extend(request.fds);
        let request = Request::Exec {
            container: container_id.to_owned(),
            exec: exec_id.to_owned(),
            terminal,
            size,
        };
        let (pid, pidfd, terminal) = launched(self.call(request, fds).await?)?;
        Ok(ExecReply {
            pid,
            pidfd,
            terminal,
        })
    }

    /// Waits for an exec's end. Call it once for each exec that started: the keeper drops its record with the answer.
    ///
    /// # Errors
    /// [`KeeperError::NotFound`] if it was asked before, or the container was forgotten.
    pub async fn exec_exit(&self, exec_id: &str) -> Result<ExitStatus, KeeperError> {
        loop {
            match self
                .call(
                    Request::ExecExit {
                        exec: exec_id.to_owned(),
                    },
                    Vec::new(),
                )
                .await
            {
                Ok(Reply {
                    answer: Answer::ExecExit(status),
                    ..
                }) => return Ok(status),
                Ok(_) => return Err(unexpected("exec exit")),
                Err(KeeperError::Disconnected) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The ends of containers with `seq >= from_seq` that are not yet forgotten, then those to come, in order. Ends of
    /// execs are interspersed as they happen.
    pub fn exits(&self, from_seq: u64) -> Exits {
        let (sender, receiver) = mpsc::unbounded_channel();
        // If the connection's task is gone the sender is dropped, and the stream ends.
        let _ = self.commands.send(Command::Subscribe {
            from: from_seq,
            sender,
        });
        Exits { receiver }
    }

    /// All containers that the keeper holds.
    ///
    /// # Errors
    /// [`KeeperError::Disconnected`].
    pub async fn list(&self) -> Result<Vec<Held>, KeeperError> {
        Ok(self.call(Request::List, Vec::new()).await?.held)
    }

    /// Drops a container that has ended: call it when its exit is journalled. One that is not held is fine.
    ///
    /// # Errors
    /// [`KeeperError::WrongState`] if it runs.
    pub async fn forget(&self, id: &str) -> Result<(), KeeperError> {
        self.done(Request::Forget { id: id.to_owned() }).await?;
        self.keepsakes.forget(id);
        Ok(())
    }

    /// Closes a container's log file and opens its path anew, after it has been renamed (CRI ReopenContainerLog).
    /// Returns when the old file will not be written any more.
    ///
    /// # Errors
    /// [`KeeperError::NotFound`], [`KeeperError::WrongState`] if it has ended, or the `open`'s error.
    pub async fn reopen_log(&self, id: &str) -> Result<(), KeeperError> {
        self.done(Request::ReopenLog { id: id.to_owned() }).await
    }

    /// Sets the terminal size of a container, in columns and rows. (An exec's is set through its own master.)
    ///
    /// # Errors
    /// [`KeeperError::WrongState`] if it has no terminal.
    pub async fn resize(&self, id: &str, width: u16, height: u16) -> Result<(), KeeperError> {
        self.done(Request::Resize {
            id: id.to_owned(),
            width,
            height,
        })
        .await
    }

    /// Attaches to a running container's streams: what it prints from now on, and its standard input.
    ///
    /// # Errors
    /// [`KeeperError::NotFound`], [`KeeperError::WrongState`] if it has ended.
    pub async fn attach(&self, id: &str) -> Result<AttachStreams, KeeperError> {
        let reply = self
            .call(Request::Attach { id: id.to_owned() }, Vec::new())
            .await?;
        let Answer::Attached { terminal, stdin } = reply.answer else {
            return Err(unexpected("attach"));
        };
        let socket = reply
            .fds
            .into_iter()
            .next()
            .ok_or_else(|| unexpected("attach"))?;
        AttachStreams::new(socket, terminal, stdin)
    }

    /// Replaces the keeper's program in place: same pid, same children, same descriptors, same connections.
    ///
    /// # Errors
    /// [`KeeperError::Failed`] if the new program cannot take over, or a launch was under way each time it was tried; the
    /// old program goes on then.
    pub async fn upgrade(&self, program: &Path) -> Result<(), KeeperError> {
        let open = || match environment::read_only_program(program) {
            Ok(program) => Ok(program),
            // An older kernel: the program can be written through `/proc` then, as it can without an upgrade.
            Err(_) => std::fs::File::open(program)
                .map(OwnedFd::from)
                .map_err(|cause| KeeperError::Spawn {
                    program: program.display().to_string(),
                    cause: cause.to_string(),
                }),
        };
        let mut delay = Duration::from_millis(5);
        loop {
            let result = self.call(Request::Upgrade, vec![open()?]).await;
            match result {
                Err(KeeperError::WrongState { .. }) if delay < Duration::from_secs(1) => {
                    tokio::time::sleep(delay.mul_f64(rand::random_range(0.5..1.5))).await;
                    delay *= 2;
                }
                other => return other.map(drop),
            }
        }
    }

    /// Ends the keeper and the scribe if they hold nothing, and removes their files. This client and its clones are of no
    /// use afterwards.
    ///
    /// # Errors
    /// [`KeeperError::WrongState`] if a container is held.
    pub async fn shutdown(&self) -> Result<(), KeeperError> {
        self.done(Request::Shutdown).await?;
        // Until the keeper has let go of its sockets.
        self.commands.closed().await;
        for file in ["socket", "lock", "containers/.intent"] {
            // What isn't there needs no removal, and what else is there isn't ours.
            let _ = std::fs::remove_file(self.dir.join(file));
        }
        for dir in ["containers", ""] {
            let _ = std::fs::remove_dir(self.dir.join(dir));
        }
        Ok(())
    }

    async fn done(&self, request: Request) -> Result<(), KeeperError> {
        self.call(request, Vec::new()).await.map(drop)
    }

    async fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Reply, KeeperError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Call {
                request,
                fds,
                reply,
            })
            .map_err(|_| KeeperError::Disconnected)?;
        answer.await.map_err(|_| KeeperError::Disconnected)?
    }
}

/// Which stream output came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Descriptor 1, or the terminal.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// An attached container; see [`Client::attach`]. Reading and writing may go on at the same time from two tasks.
#[derive(Debug)]
pub struct AttachStreams {
    socket: AsyncFd<OwnedFd>,
    /// The container has a terminal.
    pub terminal: bool,
    /// The container takes input.
    pub stdin: bool,
}

impl AttachStreams {
    fn new(socket: OwnedFd, terminal: bool, stdin: bool) -> Result<Self, KeeperError> {
        let socket = watch(socket).map_err(|cause| KeeperError::Failed {
            message: format!("watch attached stream: {cause}"),
        })?;
        Ok(AttachStreams {
            socket,
            terminal,
            stdin,
        })
    }

    /// The next output; `None` when the container has ended or the scribe let go.
    ///
    /// # Errors
    /// The socket's.
    pub async fn read(&self) -> Result<Option<(Stream, Bytes)>, KeeperError> {
        let mut buffer = Vec::new();
        loop {
            let mut ready = self.socket.readable().await.map_err(watch_error)?;
            match socket::recv(self.socket.get_ref(), &mut buffer) {
                Ok(None) => return Ok(None),
                Ok(Some(message)) => {
                    let data = Bytes::from(message.data);
                    let stream = if data.first() == Some(&2) {
                        Stream::Stderr
                    } else {
                        Stream::Stdout
                    };
                    return Ok(Some((stream, data.slice(1..))));
                }
                Err(error) if error.is(libc_eagain()) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes to the container's standard input; waits while the container takes none.
    ///
    /// # Errors
    /// EPIPE if the container has ended.
    pub async fn write(&self, data: &[u8]) -> Result<(), KeeperError> {
        for chunk in data.chunks(16 * 1024) {
            loop {
                let mut ready = self.socket.writable().await.map_err(watch_error)?;
                match socket::send(self.socket.get_ref(), chunk, &[]) {
                    Ok(()) => break,
                    Err(error) if error.is(libc_eagain()) => ready.clear_ready(),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Tells that no more input follows: with `stdin_once` the container's standard input ends.
    pub fn close_stdin(&self) {
        // It fails only if the other side is gone, which `read` tells.
        let _ = rustix::net::shutdown(self.socket.get_ref().as_fd(), rustix::net::Shutdown::Write);
    }
}

fn watch_error(cause: std::io::Error) -> KeeperError {
    KeeperError::Failed {
        message: format!("watch attached stream: {cause}"),
    }
}

fn libc_eagain() -> i32 {
    rustix::io::Errno::AGAIN.raw_os_error()
}

/// Where an open file is, for a keeper that will have to open it again.
fn path_of(file: &OwnedFd) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}

fn launched(reply: Reply) -> Result<(i32, OwnedFd, Option<OwnedFd>), KeeperError> {
    let Answer::Launched { pid } = reply.answer else {
        return Err(unexpected("launch"));
    };
    let mut fds = reply.fds.into_iter();
    let pidfd = fds.next().ok_or_else(|| unexpected("launch"))?;
    Ok((pid, pidfd, fds.next()))
}

fn unexpected(request: &str) -> KeeperError {
    KeeperError::Failed {
        message: format!("unexpected answer to {request}"),
    }
}

/// A plan as a descriptor, since it may exceed a message.
fn memory_file(value: &impl Serialize) -> Result<OwnedFd, KeeperError> {
    let fail = |cause: &dyn std::fmt::Display| KeeperError::Failed {
        message: format!("write plan: {cause}"),
    };
    let data = serde_json::to_vec(value).map_err(|cause| fail(&cause))?;
    let file = rustix::fs::memfd_create("orlop-plan", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|cause| fail(&cause))?;
    let mut file = std::fs::File::from(file);
    file.write_all(&data).map_err(|cause| fail(&cause))?;
    Ok(file.into())
}
