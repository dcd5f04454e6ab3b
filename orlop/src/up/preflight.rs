//! What must be so before anything is made: each lack is told with what to do about it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{bail, ensure};

/// Below this nothing could be stored: the store, the images, the logs.
const LEAST_FREE_BYTES: u64 = 64 * 1024 * 1024;

/// Whether this process may do what a node does.
pub fn is_root() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this needs root, to make namespaces, mounts and rules: run it with sudo"
    );
    Ok(())
}

/// Whether the kernel has what a node can't do without.
pub fn kernel() -> anyhow::Result<()> {
    let missing = linux::features::missing();
    if missing.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = missing
        .iter()
        .map(|missing| format!("  {missing}"))
        .collect();
    bail!("this machine can't run containers:\n{}", lines.join("\n"))
}

/// Whether nobody listens where we are going to.
pub fn port(address: IpAddr, port: u16, flag: &str) -> anyhow::Result<()> {
    // A listener on one address of the machine keeps others from the wildcard, not from loopback.
    for address in [address, Ipv4Addr::LOCALHOST.into()] {
        match TcpListener::bind(SocketAddr::new(address, port)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!(
                    "port {port} on {address} is taken by another program: stop it, or choose another with --{flag}"
                )
            }
            Err(error) => {
                bail!("listen on {address}, port {port}: {error}: choose another with --{flag}")
            }
        }
    }
    Ok(())
}

/// Whether the file system that holds `folder` (or will) has room.
pub fn room(folder: &Path) -> anyhow::Result<()> {
    let existing = folder
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let state = rustix::fs::statvfs(existing)?;
    let free = state.f_bavail.saturating_mul(state.f_frsize);
    ensure!(
        free >= LEAST_FREE_BYTES,
        "only {} MiB are free on the file system of {}: {} MiB at least are needed; make room, or give another folder with --root",
        free >> 20,
        folder.display(),
        LEAST_FREE_BYTES >> 20
    );
    Ok(())
}
