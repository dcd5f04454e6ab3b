//! `run` of `true` in new pid, mount, uts, ipc, network and cgroup namespaces, against crun and runc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;

use super::{Row, median};
use crate::workspace::{run as run_program, target};

const ROUNDS: usize = 7;
const LAUNCHES: usize = 20;

/// Prints the row without and with a seccomp profile.
pub fn run(program: &Path) -> anyhow::Result<()> {
    let folder = target()
        .join("bench")
        .join(format!("oci-{}", std::process::id()));
    for seccomp in [false, true] {
        bundle(&folder, seccomp)?;
        let tools = [
            ("orlop", format!("{} runtime", program.display())),
            ("crun", "crun".to_owned()),
            ("runc", "runc".to_owned()),
        ];
        let mut times: Vec<Result<Vec<f64>, String>> =
            tools.iter().map(|_| Ok(Vec::new())).collect();
        for _ in 0..ROUNDS {
            for ((name, command), times) in tools.iter().zip(&mut times) {
                match (launches(name, command, &folder), times.as_mut()) {
                    (Ok(took), Ok(times)) => times.push(took),
                    (Err(error), _) => {
                        *times = Err(format!("{error:#}")
                            .lines()
                            .take(3)
                            .collect::<Vec<_>>()
                            .join(" "))
                    }
                    _ => {}
                }
            }
        }
        let values = tools
            .iter()
            .zip(times)
            .map(|((name, _), times)| ((*name).to_owned(), times.map(median)));
        let with = if seccomp {
            "with a seccomp profile of 300 calls"
        } else {
            "without seccomp"
        };
        Row {
            name: format!("launch of `true`, {with}"),
            unit: "ms",
            values: values.collect(),
        }
        .print();
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Milliseconds a launch, over [`LAUNCHES`] in a row.
fn launches(name: &str, command: &str, folder: &Path) -> anyhow::Result<f64> {
    // Debian's crun refuses a hybrid cgroup hierarchy: it is hidden from it, in a mount namespace of its own.
    let hide = if name == "crun" {
        "! mountpoint -q /sys/fs/cgroup/unified || umount -l /sys/fs/cgroup/unified;"
    } else {
        ""
    };
    let script = format!(
        "{hide} i=0; while [ $i -lt {LAUNCHES} ]; do {command} --root {0}/state-{name} run --bundle {0} {name}-$i || exit 1; i=$((i+1)); done",
        folder.display()
    );
    let start = Instant::now();
    run_program(Command::new("unshare").args(["--mount", "sh", "-c", &script]))?;
    Ok(start.elapsed().as_secs_f64() * 1000.0 / LAUNCHES as f64)
}

fn bundle(folder: &Path, seccomp: bool) -> anyhow::Result<()> {
    let bin = folder.join("rootfs/bin");
    fs::create_dir_all(&bin)?;
    for entry in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(folder.join("rootfs").join(entry))?;
    }
    fs::copy(busybox()?, bin.join("true")).context("copy busybox")?;
    let namespaces =
        ["pid", "mount", "uts", "ipc", "network", "cgroup"].map(|kind| json!({ "type": kind }));
    let capabilities = ["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_KILL"];
    let mut spec = json!({
        "ociVersion": "1.0.2", "hostname": "bench", "root": { "path": "rootfs", "readonly": true },
        "process": { "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"], "noNewPrivileges": true, "user": { "uid": 0, "gid": 0 },
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities } },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": { "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"] },
    });
    if seccomp {
        spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{ "names": calls()?, "action": "SCMP_ACT_ALLOW" }] });
    }
    fs::write(folder.join("config.json"), spec.to_string())?;
    Ok(())
}

/// Names of the first 300 calls that this machine's headers have.
fn calls() -> anyhow::Result<Vec<String>> {
    let headers = [
        "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "/usr/include/asm/unistd_64.h",
    ];
    let text = headers
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .context("the kernel's headers are not there")?;
    let names = text.lines().filter_map(|line| {
        line.strip_prefix("#define __NR_")?
            .split_whitespace()
            .next()
    });
    Ok(names.take(300).map(str::to_owned).collect())
}

/// Debian's busybox, which is static.
pub fn busybox() -> anyhow::Result<PathBuf> {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    places
        .into_iter()
        .find(|path| path.exists())
        .context("busybox is not there")
}
