//! Running hooks.

use crate::error::LaunchError;
use crate::plan::HookPlan;
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};
use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

/// So much of what a failed hook says is passed on.
const STDERR_LIMIT: usize = 4096;

/// Runs hooks one after the other, each with the state on its standard input; the first that fails ends it. A hook
/// without an environment of its own has `env`, or without that this process's.
///
/// # Errors
/// The hook's path with its status, its end by timeout, or why it could not be started.
pub(crate) fn run_all(
    kind: &str,
    hooks: &[HookPlan],
    state: &Value,
    pid: i32,
    status: &str,
    env: Option<&[CString]>,
) -> Result<(), LaunchError> {
    let mut state = state.clone();
    if let Value::Object(map) = &mut state {
        map.insert("pid".to_owned(), json!(pid));
        map.insert("status".to_owned(), json!(status));
    }
    let text = state.to_string();
    hooks.iter().enumerate().try_for_each(|(position, hook)| {
        run(hook, &text, env).map_err(|cause| {
            LaunchError::new(
                format!(
                    "error running {kind} hook #{position}: {}",
                    hook.path.display()
                ),
                cause,
            )
        })
    })
}

fn run(hook: &HookPlan, state: &str, env: Option<&[CString]>) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let own: Option<Vec<&[u8]>> = match (&hook.env, env) {
        (Some(own), _) => Some(own.iter().map(String::as_bytes).collect()),
        (None, Some(env)) => Some(env.iter().map(|entry| entry.to_bytes()).collect()),
        (None, None) => None,
    };
    if let Some(entries) = own {
        command.env_clear();
        for entry in entries {
            let mut halves = entry.splitn(2, |byte| *byte == b'=').map(OsStr::from_bytes);
            if let Some(name) = halves.next() {
                command.env(name, halves.next().unwrap_or_default());
            }
        }
    }
    // A file and not a pipe: what a hook leaves running may keep it open, and nobody waits for that. The container's
    // filter need not allow it: then nothing is heard.
    let said = rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC).ok();
    let stderr = said.as_ref().and_then(|said| said.try_clone().ok());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(stderr.map_or_else(Stdio::null, Stdio::from))
        .spawn()
        .map_err(|error| format!("start: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it.
        let _ = stdin.write_all(state.as_bytes());
    }
    if let Some(seconds) = hook.timeout_s {
        let ended = linux::pidfd::open(child.id() as i32)
            .and_then(|pidfd| linux::pidfd::wait_exit(&pidfd, Some(Duration::from_secs(seconds))))
            .map_err(|error| error.to_string())?;
        if !ended {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("no end after {seconds} s"));
        }
    }
    let status = child.wait().map_err(|error| format!("wait: {error}"))?;
    let ended = match (status.code(), status.signal()) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => format!("exit status {code}"),
        (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
    };
    let mut text = vec![0; STDERR_LIMIT];
    let count = said.map_or(0, |said| {
        rustix::io::pread(&said, &mut text, 0).unwrap_or(0)
    });
    text.truncate(count);
    match String::from_utf8_lossy(&text).trim() {
        "" => Err(ended),
        said => Err(format!("{ended}, stderr: {said}")),
    }
}
