//! `dhcp`: the address comes from a DHCP server on the container's link.
//!
//! A lease has to be renewed for as long as the container lives, which a plugin doesn't: the [`daemon`] does. The plugin
//! passes its request on to it, over a unix socket, and the daemon's answer back.

mod client;
pub mod command;
mod daemon;
mod held;
mod lease;
mod message;
mod options;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::protocol::{Error, NetResult, Request};
use crate::{Output, Plugin};

pub const NAME: &str = "dhcp";

pub const PLUGIN: Plugin = Plugin {
    name: NAME,
    add,
    del,
    check: |request| call(request, "CHECK").map(drop),
    gc,
    status,
};

/// What the plugin writes to the daemon, before it closes its side.
#[derive(Serialize, Deserialize)]
struct Call {
    env: BTreeMap<String, String>,
    stdin: String,
}

/// What the daemon writes back.
#[derive(Serialize, Deserialize)]
struct Reply {
    code: i32,
    stdout: String,
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let stdout = call(request, "ADD")?;
    let result = serde_json::from_slice(&stdout)
        .map_err(|cause| Error::decode(format!("decode the DHCP daemon's answer: {cause}")))?;
    NetResult::decode(&result)
}

/// Without a daemon nobody renews the lease any more, and it ends by itself; what the daemon would take up when it is
/// started again is removed.
fn del(request: &Request) -> Result<(), Error> {
    let socket = options::socket(request)?;
    if is_absent(&socket) {
        return held::forget(
            &held::folder(&socket),
            &request.network,
            &request.attachment,
        );
    }
    call(request, "DEL").map(drop)
}

fn gc(request: &Request) -> Result<(), Error> {
    let socket = options::socket(request)?;
    if is_absent(&socket) {
        return held::forget_stale(&held::folder(&socket), request);
    }
    call(request, "GC").map(drop)
}

fn is_absent(socket: &Path) -> bool {
    let absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
    UnixStream::connect(socket).is_err_and(|cause| absent.contains(&cause.kind()))
}

fn status(request: &Request) -> Result<(), Error> {
    let socket = options::socket(request)?;
    UnixStream::connect(&socket)
        .map(drop)
        .map_err(|cause| Error::unavailable(unreachable(&socket, &cause)))
}

fn unreachable(socket: &Path, cause: &io::Error) -> String {
    format!(
        "dial DHCP daemon at {}: {cause}; start it with `orlop cni dhcp-daemon`",
        socket.display()
    )
}

fn call(request: &Request, command: &str) -> Result<Vec<u8>, Error> {
    let socket = options::socket(request)?;
    let mut env = request.env.clone();
    env.insert("CNI_COMMAND".to_owned(), command.to_owned());
    if let Some(netns) = env.get_mut("CNI_NETNS") {
        *netns = seen_from_elsewhere(netns)?;
    }
    let stdin = String::from_utf8_lossy(&request.stdin).into_owned();
    let mut stream = UnixStream::connect(&socket)
        .map_err(|cause| Error::try_again(unreachable(&socket, &cause)))?;
    let converse = || -> io::Result<Reply> {
        serde_json::to_writer(&mut stream, &Call { env, stdin })?;
        stream.flush()?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    };
    let reply = converse()
        .map_err(|cause| Error::io(format!("ask DHCP daemon at {}: {cause}", socket.display())))?;
    let output = Output {
        code: reply.code,
        stdout: reply.stdout.into_bytes(),
    };
    if output.code == 0 {
        return Ok(output.stdout);
    }
    Err(Error::passed_on(&output.stdout, || {
        format!("{command} of the DHCP daemon failed")
    }))
}

/// A path of a namespace that means the same to another process.
fn seen_from_elsewhere(path: &str) -> Result<String, Error> {
    if let Some(rest) = path.strip_prefix("/proc/self/") {
        return Ok(format!("/proc/{}/{rest}", std::process::id()));
    }
    if path.is_empty() {
        return Ok(String::new());
    }
    let absolute = std::path::absolute(path)
        .map_err(|cause| Error::io(format!("make {path} absolute: {cause}")))?;
    Ok(absolute.to_string_lossy().into_owned())
}
