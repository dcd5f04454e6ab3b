//! Exec and attach, between a remote client and a process.

use super::pipes::{self, Reader, Writer};
use super::remote::{Output, Remote};
use super::session::{AttachSession, ExecSession, RunningExec, StartError, Streams};
use super::status::Status;
use crate::keeper::poll::duplicate;
use crate::keeper::{AttachStreams, ExecStdio, ExitStatus, KeeperError, Stream};
use bytes::Bytes;
use std::os::fd::OwnedFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Our ends of a command's streams.
#[derive(Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// The terminal's master once more, to resize it.
    terminal: Option<OwnedFd>,
}

/// Runs a command for the client, and tells its end.
pub(super) async fn exec(session: ExecSession, remote: Remote) {
    let output = remote.output.clone();
    let status = match start(session).await {
        Ok((running, ends)) => run(running, ends, remote).await,
        Err(error) => {
            Status::InternalError(format!("error executing command in container: {error}"))
        }
    };
    // A client that is gone needs no status.
    let _ = output.send(Output::Status(status)).await;
}

async fn start(session: ExecSession) -> Result<(RunningExec, Ends), StartError> {
    let (stdio, ends) = open_streams(session.streams)?;
    let mut running = (session.start)(stdio).await?;
    let ends = match running.terminal.take() {
        Some(master) => Ends {
            stdin: if session.streams.stdin {
                Some(duplicate(&master)?)
            } else {
                None
            },
            stdout: Some(duplicate(&master)?),
            stderr: None,
            terminal: Some(master),
        },
        None => ends,
    };
    Ok((running, ends))
}

fn open_streams(streams: Streams) -> Result<(ExecStdio, Ends), StartError> {
    let mut ends = Ends::default();
    if streams.terminal {
        return Ok((ExecStdio::Terminal { size: None }, ends));
    }
    let stdin = if streams.stdin {
        let (theirs, ours) = pipes::pipe_to_command()?;
        ends.stdin = Some(ours);
        theirs
    } else {
        pipes::null()?
    };
    let output = |wanted: bool, end: &mut Option<OwnedFd>| -> Result<OwnedFd, StartError> {
        if !wanted {
            return Ok(pipes::null()?);
        }
        let (ours, theirs) = pipes::pipe_from_command()?;
        *end = Some(ours);
        Ok(theirs)
    };
    let stdout = output(streams.stdout, &mut ends.stdout)?;
    let stderr = output(streams.stderr, &mut ends.stderr)?;
    Ok((
        ExecStdio::Fds {
            stdin,
            stdout,
            stderr,
        },
        ends,
    ))
}

/// Carries bytes until the command has ended, then what it left in its pipes. Processes that it left in the background
/// may hold them open, and are not waited for.
async fn run(running: RunningExec, ends: Ends, remote: Remote) -> Status {
    let Remote {
        stdin,
        resize,
        output,
    } = remote;
    let mut tasks = Vec::new();
    if let Some(terminal) = ends.terminal {
        tasks.push(tokio::spawn(resize_terminal(terminal, resize)));
    }
    if let Some(fd) = ends.stdin {
        tasks.push(tokio::spawn(feed(fd, stdin)));
    }
    let (finish, finished) = tokio::sync::watch::channel(false);
    let mut readers = Vec::new();
    for (fd, wrap) in [
        (ends.stdout, Output::Stdout as fn(Bytes) -> Output),
        (ends.stderr, Output::Stderr),
    ] {
        if let Some(fd) = fd {
            readers.push(tokio::spawn(forward(
                fd,
                wrap,
                output.clone(),
                finished.clone(),
            )));
        }
    }
    let exit = tokio::spawn(running.exit); // goes on if we don't, so that the keeper's record is collected
    let status = tokio::select! {
        exit = exit => match exit {
            Ok(exit) => exit,
            Err(error) => Err(KeeperError::Failed { message: error.to_string() }),
        },
        () = output.closed() => Ok(ExitStatus::UNKNOWN), // the client is gone: let go of the streams
    };
    finish.send_replace(true);
    for reader in readers {
        let _ = reader.await;
    }
    tasks.iter().for_each(JoinHandle::abort);
    match status {
        Ok(exit) => Status::of_exit(exit),
        Err(error) => {
            Status::InternalError(format!("error executing command in container: {error}"))
        }
    }
}

/// Output to the client, until its end, or until the command has ended and nothing is left.
async fn forward(
    fd: OwnedFd,
    wrap: fn(Bytes) -> Output,
    output: mpsc::Sender<Output>,
    mut finished: tokio::sync::watch::Receiver<bool>,
) {
    let Ok(reader) = Reader::new(fd) else { return };
    loop {
        let data = tokio::select! {
            biased;
            data = reader.read() => match data {
                Ok(Some(data)) => data,
                Ok(None) | Err(_) => return,
            },
            _ = finished.wait_for(|finished| *finished) => match reader.read_now() {
                Some(data) => data,
                None => return,
            },
        };
        if output.send(wrap(data)).await.is_err() {
            return;
        }
    }
}

/// Input to the command; at the client's end, the command's.
async fn feed(fd: OwnedFd, mut stdin: mpsc::Receiver<Bytes>) {
    let Ok(writer) = Writer::new(fd) else { return };
    while let Some(data) = stdin.recv().await {
        if writer.write(&data).await.is_err() {
            return; // the command reads no more
        }
    }
}

async fn resize_terminal(terminal: OwnedFd, mut resize: mpsc::Receiver<(u16, u16)>) {
    while let Some((width, height)) = resize.recv().await {
        let size = rustix::termios::Winsize {
            ws_row: height,
            ws_col: width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // EIO: the command has ended.
        let _ = rustix::termios::tcsetwinsize(&terminal, size);
    }
}

/// Attaches the client to a running container, until the container ends or the client goes.
pub(super) async fn attach(session: AttachSession, remote: Remote) {
    let output = remote.output.clone();
    let status = match session.keeper.attach(&session.container_id).await {
        Ok(streams) => carry(&session, &streams, remote).await,
        Err(error) => Status::InternalError(format!("error attaching to container: {error}")),
    };
    // A client that is gone needs no status.
    let _ = output.send(Output::Status(status)).await;
}

async fn carry(session: &AttachSession, streams: &AttachStreams, remote: Remote) -> Status {
    let Remote {
        mut stdin,
        mut resize,
        output,
    } = remote;
    let wanted = session.streams;
    let input = async {
        while let Some(data) = stdin.recv().await {
            if wanted.stdin && streams.stdin && streams.write(&data).await.is_err() {
                break;
            }
        }
        if wanted.stdin {
            streams.close_stdin();
        }
        std::future::pending::<()>().await
    };
    let sizes = async {
        while let Some((width, height)) = resize.recv().await {
            // A container without a terminal: not worth an error.
            let _ = session
                .keeper
                .resize(&session.container_id, width, height)
                .await;
        }
        std::future::pending::<()>().await
    };
    let outputs = async {
        loop {
            let message = match streams.read().await {
                Ok(Some((Stream::Stdout, data))) if wanted.stdout => Output::Stdout(data),
                Ok(Some((Stream::Stderr, data))) if wanted.stderr => Output::Stderr(data),
                Ok(Some(_)) => continue,
                Ok(None) => return Status::Success,
                Err(error) => {
                    return Status::InternalError(format!("error attaching to container: {error}"));
                }
            };
            if output.send(message).await.is_err() {
                return Status::Success;
            }
        }
    };
    tokio::select! {
        status = outputs => status,
        () = output.closed() => Status::Success,
        () = async { tokio::join!(input, sizes); } => Status::Success,
    }
}
