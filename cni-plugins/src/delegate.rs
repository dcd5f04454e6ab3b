//! Calls the address plugin that a configuration names (CNI 1.1 §4, Delegation).

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{collections::BTreeMap, env};

use serde_json::Value;

use crate::protocol::{Error, NetResult, Request, all_of};
use crate::{Output, dhcp};

/// The type of the configuration's `ipam`; `None` if it has none.
pub fn ipam_type(request: &Request) -> Option<&str> {
    request
        .config
        .get("ipam")?
        .get("type")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
}

/// Asks for addresses.
///
/// # Errors
/// The address plugin's own; code 7 if it can't be found.
pub fn ipam_add(request: &Request) -> Result<NetResult, Error> {
    let stdout = ipam(request, "ADD")?;
    let result: Value = serde_json::from_slice(&stdout)
        .map_err(|cause| Error::decode(format!("decode result of ipam plugin: {cause}")))?;
    NetResult::decode(&result)
}

/// Gives addresses back.
///
/// # Errors
/// As [`ipam_add`].
pub fn ipam_del(request: &Request) -> Result<(), Error> {
    ipam(request, "DEL").map(drop)
}

/// Takes the interface out of use by `retire` and gives its addresses back, if an address plugin gave them: after that,
/// since an address is given back only when nobody can use it any more; or before, if the plugin needs the interface to
/// do it.
///
/// # Errors
/// `retire`'s, the address plugin's.
pub fn ipam_del_and(
    request: &Request,
    retire: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    match ipam_type(request) {
        None => retire(),
        Some(dhcp::NAME) => all_of([ipam_del(request), retire()]),
        Some(_) => retire().and_then(|()| ipam_del(request)),
    }
}

/// Passes CHECK, GC or STATUS on to the address plugin, if there is one.
///
/// # Errors
/// As [`ipam_add`].
pub fn ipam_pass_on(request: &Request, command: &str) -> Result<(), Error> {
    match ipam_type(request) {
        Some(_) => ipam(request, command).map(drop),
        None => Ok(()),
    }
}

fn ipam(request: &Request, command: &str) -> Result<Vec<u8>, Error> {
    let name = ipam_type(request).ok_or_else(|| Error::config("ipam.type: missing"))?;
    let mut env = request.env.clone();
    env.insert("CNI_COMMAND".to_owned(), command.to_owned());
    let output = match crate::run(name, &env, &request.stdin) {
        Some(output) => output,
        None => execute(name, &env, &request.stdin)?,
    };
    if output.code == 0 {
        return Ok(output.stdout);
    }
    let fallback = || {
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        format!(
            "{command} of ipam plugin {name}: exit status {}: {printed}",
            output.code
        )
    };
    Err(Error::passed_on(&output.stdout, fallback))
}

fn execute(name: &str, env: &BTreeMap<String, String>, stdin: &[u8]) -> Result<Output, Error> {
    let path = find(name, env)?;
    let failed =
        |cause: io::Error| Error::io(format!("execute plugin {}: {cause}", path.display()));
    let mut child = Command::new(&path)
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // Configurations are far smaller than a pipe, so this can't block against the plugin's output. A plugin that
        // doesn't read its input may have closed it.
        match input.write_all(stdin) {
            Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => return Err(failed(cause)),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(failed)?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
    })
}

fn find(name: &str, env: &BTreeMap<String, String>) -> Result<PathBuf, Error> {
    let path = env.get("CNI_PATH").map(String::as_str).unwrap_or_default();
    if name.contains('/') {
        return Err(Error::config(format!(
            "ipam.type: {name:?} is not a plugin's name"
        )));
    }
    env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::config(format!("find plugin {name:?}: not in CNI_PATH {path:?}")))
}
