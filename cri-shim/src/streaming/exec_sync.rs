//! CRI ExecSync: a command without a terminal whose output is collected.

use super::pipes::{self, Reader};
use super::session::{StartError, StartExec};
use crate::keeper::{ExecStdio, ExitStatus, KeeperError};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The most that is collected of each stream, in bytes (CRI ExecSyncResponse); the rest is read and dropped, so that the
/// command is not stopped by it.
pub const MAX_OUTPUT: usize = 16 * 1024 * 1024;

/// What a command printed, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct ExecSyncOutput {
    /// Standard output, at most [`MAX_OUTPUT`].
    pub stdout: Vec<u8>,
    /// Standard error, at most [`MAX_OUTPUT`].
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: ExitStatus,
}

/// ExecSync failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecSyncError {
    /// The command took longer than was allowed, and was killed with all that it started. gRPC: DeadlineExceeded.
    #[error("command timed out after {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// It could not be started.
    #[error(transparent)]
    Start(StartError),
    /// Its end could not be learnt.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

/// Runs a command to its end, at most `timeout`.
///
/// # Errors
/// [`ExecSyncError`]; a code that isn't 0 is no error.
pub async fn exec_sync(
    start: StartExec,
    timeout: Option<Duration>,
) -> Result<ExecSyncOutput, ExecSyncError> {
    let kernel = |error: linux::Error| ExecSyncError::Start(error.into());
    let (stdout, their_stdout) = pipes::pipe_from_command().map_err(kernel)?;
    let (stderr, their_stderr) = pipes::pipe_from_command().map_err(kernel)?;
    let stdin = pipes::null().map_err(kernel)?;
    let stdio = ExecStdio::Fds {
        stdin,
        stdout: their_stdout,
        stderr: their_stderr,
    };
    let running = start(stdio).await.map_err(ExecSyncError::Start)?;
    let (finish, finished) = tokio::sync::watch::channel(false);
    let stdout = tokio::spawn(collect(stdout, finished.clone()));
    let stderr = tokio::spawn(collect(stderr, finished));
    let mut exit = tokio::spawn(running.exit);
    let limit = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let exit = tokio::select! {
        exit = &mut exit => exit,
        () = limit => {
            (running.kill)();
            return Err(ExecSyncError::Timeout(timeout.unwrap_or_default()));
        }
    };
    finish.send_replace(true);
    let failed = |error: tokio::task::JoinError| KeeperError::Failed {
        message: error.to_string(),
    };
    let exit = exit.map_err(failed)??;
    let stdout = stdout.await.map_err(failed)?;
    let stderr = stderr.await.map_err(failed)?;
    Ok(ExecSyncOutput {
        stdout,
        stderr,
        exit,
    })
}

/// Collects output until its end, or until the command has ended and nothing is left: what it started in the background
/// may hold the pipe open, and is not waited for.
async fn collect(fd: OwnedFd, mut finished: tokio::sync::watch::Receiver<bool>) -> Vec<u8> {
    let mut collected = Vec::new();
    let Ok(reader) = Reader::new(fd) else {
        return collected;
    };
    loop {
        let data = tokio::select! {
            biased;
            data = reader.read() => data.ok().flatten(),
            _ = finished.wait_for(|finished| *finished) => reader.read_now(),
        };
        let Some(data) = data else { return collected };
        let room = MAX_OUTPUT - collected.len();
        collected.extend_from_slice(&data[..data.len().min(room)]);
    }
}
