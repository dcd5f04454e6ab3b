//! Finding the keeper, or starting one.

use super::client::Config;
use super::error::KeeperError;
use linux::socket;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::process::{Command, Stdio};

/// Connects to the running keeper; without one, makes its socket and starts it with the socket as descriptor 0, so that
/// connecting works at once and nobody waits for the other by polling.
///
/// # Errors
/// [`KeeperError::Spawn`], or the socket's error.
pub(super) fn connect_or_spawn(config: &Config) -> Result<OwnedFd, KeeperError> {
    let path = config.dir.join("socket");
    if let Ok(connection) = socket::connect(&path) {
        return Ok(connection);
    }
    let fail = |cause: &dyn std::fmt::Display| KeeperError::Spawn {
        program: config.program.display().to_string(),
        cause: cause.to_string(),
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.dir)
        .map_err(|cause| fail(&format!("create {}: {cause}", config.dir.display())))?;
    let lock =
        File::create(config.dir.join("lock")).map_err(|cause| fail(&format!("lock: {cause}")))?;
    lock.lock()
        .map_err(|cause| fail(&format!("lock: {cause}")))?;
    if let Ok(connection) = socket::connect(&path) {
        return Ok(connection);
    }
    match std::fs::remove_file(&path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            return Err(fail(&format!("remove {}: {cause}", path.display())));
        }
        _ => {}
    }
    let listener = socket::listen(&path)?;
    let mut command = Command::new(&config.program);
    command.arg("keeper").arg("--dir").arg(&config.dir);
    if let Some(cgroup) = &config.cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    command
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .current_dir("/")
        .env_clear();
    let mut child = command.spawn().map_err(|cause| fail(&cause))?;
    // The listener is now the keeper's alone (`command` holds a copy until it is dropped).
    drop(command);
    // The child is a first stage that detaches the keeper and ends at once.
    let status = child.wait().map_err(|cause| fail(&cause))?;
    if !status.success() {
        return Err(fail(&format!("it ended with {status}")));
    }
    Ok(socket::connect(&path)?)
}
