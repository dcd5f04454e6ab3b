//! Calls one plugin: ours in process, any other by the exec protocol (CNI 1.1 §2).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{BuiltinPlugins, Error, PluginOutput};

/// Where plugins are found.
pub(super) struct Plugins {
    pub bin_dirs: Vec<PathBuf>,
    pub builtin: BuiltinPlugins,
    /// For an executed one.
    pub timeout: Duration,
}

impl Plugins {
    /// Runs the plugin to its end.
    pub fn run(
        &self,
        name: &str,
        env: &BTreeMap<String, String>,
        stdin: &[u8],
    ) -> Result<PluginOutput, Error> {
        if let Some(output) = (self.builtin)(name, env, stdin) {
            return Ok(output);
        }
        let path = self.find(name)?;
        let deadline = Instant::now() + self.timeout;
        match execute(&path, env, stdin, deadline) {
            Ok(Some(output)) => Ok(output),
            Ok(None) => Err(Error::Timeout {
                path,
                after: self.timeout,
            }),
            Err(source) => Err(Error::Execute { path, source }),
        }
    }

    /// For versions without STATUS: asks for VERSION in process, or looks for the program.
    pub fn ensure_exists(&self, name: &str) -> Result<(), Error> {
        let version = BTreeMap::from([("CNI_COMMAND".to_owned(), "VERSION".to_owned())]);
        match (self.builtin)(name, &version, br#"{"cniVersion":"1.1.0"}"#) {
            Some(_) => Ok(()),
            None => self.find(name).map(drop),
        }
    }

    fn find(&self, name: &str) -> Result<PathBuf, Error> {
        let candidates = self.bin_dirs.iter().map(|dir| dir.join(name));
        candidates
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| Error::PluginMissing {
                plugin: name.to_owned(),
                dirs: self.bin_dirs.clone(),
            })
    }
}

/// Executes `path`; `None` if it was killed at the deadline. Standard error goes to the log of this process
/// unless the plugin fails without a report, when it becomes the report.
fn execute(
    path: &Path,
    env: &BTreeMap<String, String>,
    stdin: &[u8],
    deadline: Instant,
) -> io::Result<Option<PluginOutput>> {
    let mut child = Command::new(path)
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let pid = Pid::from_child(&child);
    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    let finished = match converse(&mut child, stdin, &mut stdout, &mut stderr, deadline) {
        Ok(true) => wait_until(pid, deadline),
        other => other,
    };
    if !matches!(finished, Ok(true)) {
        // It may have ended just now; then there is nobody to kill.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let status = child.wait()?;
    if !finished? {
        return Ok(None);
    }
    if !stderr.is_empty() {
        tracing::debug!(plugin = %path.display(), "{}", String::from_utf8_lossy(&stderr).trim_end());
    }
    if !status.success() && stdout.is_empty() {
        stdout = stderr;
    }
    // Killed by a signal counts as a failure like any other.
    Ok(Some(PluginOutput {
        code: status.code().unwrap_or(-1),
        stdout,
    }))
}

/// Writes `stdin` and reads both outputs to their ends, all at once so that no full pipe can block the two
/// against each other. False at the deadline.
fn converse(
    child: &mut Child,
    mut stdin: &[u8],
    stdout: &mut Vec<u8>,
    stderr: &mut Vec<u8>,
    deadline: Instant,
) -> io::Result<bool> {
    let mut input = child.stdin.take();
    let mut out = child.stdout.take();
    let mut err = child.stderr.take();
    if let Some(input) = &input {
        rustix::io::ioctl_fionbio(input, true)?;
    }
    while out.is_some() || err.is_some() {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return Ok(false);
        };
        let ready = poll_all(
            [
                (input.as_ref().map(AsFd::as_fd), PollFlags::OUT),
                (out.as_ref().map(AsFd::as_fd), PollFlags::IN),
                (err.as_ref().map(AsFd::as_fd), PollFlags::IN),
            ],
            left,
        )?;
        if ready[0] && !write_some(input.as_mut(), &mut stdin) {
            input = None;
        }
        if ready[1] && !read_some(out.as_mut(), stdout)? {
            out = None;
        }
        if ready[2] && !read_some(err.as_mut(), stderr)? {
            err = None;
        }
    }
    Ok(true)
}

/// Which of the descriptors that are present can be used without blocking, or are at their end.
fn poll_all(
    wanted: [(Option<BorrowedFd<'_>>, PollFlags); 3],
    left: Duration,
) -> io::Result<[bool; 3]> {
    let mut fds = Vec::with_capacity(3);
    let mut at = [None; 3];
    for (slot, (fd, flags)) in at.iter_mut().zip(wanted) {
        if let Some(fd) = fd {
            *slot = Some(fds.len());
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
    }
    let timeout = left.try_into().ok();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(cause) => return Err(cause.into()),
    }
    Ok(at.map(|index| {
        index
            .and_then(|i| fds.get(i))
            .is_some_and(|fd| !fd.revents().is_empty())
    }))
}

/// False when there is no more to write, or nobody who reads: a plugin need not read its configuration.
fn write_some(input: Option<&mut impl Write>, rest: &mut &[u8]) -> bool {
    let Some(input) = input else { return false };
    match input.write(rest) {
        Ok(count) => {
            *rest = rest.get(count..).unwrap_or_default();
            !rest.is_empty()
        }
        Err(cause) => matches!(
            cause.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        ),
    }
}

/// False at the end of the stream.
fn read_some(source: Option<&mut impl Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let Some(source) = source else {
        return Ok(false);
    };
    let mut chunk = [0; 16 * 1024];
    match source.read(&mut chunk) {
        Ok(0) => Ok(false),
        Ok(count) => {
            into.extend_from_slice(chunk.get(..count).unwrap_or_default());
            Ok(true)
        }
        Err(cause) if cause.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(cause) => Err(cause),
    }
}

/// Waits for the process to end; false at the deadline.
fn wait_until(pid: Pid, deadline: Instant) -> io::Result<bool> {
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else {
            return Ok(false);
        };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, left.try_into().ok().as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(cause) => return Err(cause.into()),
        }
    }
}
