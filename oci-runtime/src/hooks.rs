//! Running hooks.

use crate::error::LaunchError;
use crate::plan::HookPlan;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs hooks one after the other, each with the state on its standard input; the first that fails ends it.
///
/// # Errors
/// The hook's path with its status, its end by timeout, or why it could not be started.
pub(crate) fn run_all(
    kind: &str,
    hooks: &[HookPlan],
    state: &Value,
    pid: i32,
    status: &str,
) -> Result<(), LaunchError> {
    let mut state = state.clone();
    if let Value::Object(map) = &mut state {
        map.insert("pid".to_owned(), json!(pid));
        map.insert("status".to_owned(), json!(status));
    }
    let text = state.to_string();
    hooks.iter().enumerate().try_for_each(|(position, hook)| {
        run(hook, &text).map_err(|cause| {
            LaunchError::new(
                format!("run {kind} hook #{position} ({})", hook.path.display()),
                cause,
            )
        })
    })
}

fn run(hook: &HookPlan, state: &str) -> Result<(), String> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for entry in &hook.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        command.env(name, value);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
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
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(format!("exit status {code}")),
        (None, signal) => Err(format!("killed by signal {}", signal.unwrap_or(0))),
    }
}
