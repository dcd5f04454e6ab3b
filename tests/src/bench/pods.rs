//! Pods over CRI, with a bridge network each: start, end, ten at once, memory, against Debian's containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::Row;
use super::launch::busybox;
use crate::workspace::{cargo, run as run_program, show, target};

const IMAGE: &str = "bench.local/busybox:1";
const PAUSE: &str = "registry.k8s.io/pause:3.6";
const PODS: &str = "50";

/// Prints the rows.
pub fn run(program: &Path) -> anyhow::Result<()> {
    let folder = target()
        .join("bench")
        .join(format!("cri-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    show(cargo().args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "tests",
        "--example",
        "cri_load",
    ]))?;
    let ours = ours(program, &folder);
    let theirs = containerd(&folder);
    let _ = fs::remove_dir_all(&folder);
    let figures = [("orlop", ours), ("containerd", theirs)];
    let rows = [
        (
            "one pod started (RunPodSandbox, CreateContainer, StartContainer), median",
            "start_p50",
            "ms",
        ),
        ("the same, 99th percentile", "start_p99", "ms"),
        ("one pod stopped and removed, median", "end_p50", "ms"),
        (
            "50 pods, 10 at a time: all running after",
            "ten_at_once",
            "ms",
        ),
        (
            "memory (PSS) of the server's processes, no pods",
            "idle_kib",
            "KiB",
        ),
        ("the same, after 100 pods came and went", "after_kib", "KiB"),
        (
            "memory (PSS) added by a pod, without its workload",
            "kib_per_pod",
            "KiB",
        ),
    ];
    for (name, field, unit) in rows {
        let value = |figures: &anyhow::Result<Value>| match figures {
            Ok(figures) => figures[field].as_f64().ok_or_else(|| format!("no {field}")),
            Err(error) => Err(format!("{error:#}")),
        };
        let values = figures
            .iter()
            .map(|(server, figures)| ((*server).to_owned(), value(figures)));
        Row {
            name: name.to_owned(),
            unit,
            values: values.collect(),
        }
        .print();
    }
    Ok(())
}

/// A server that is stopped when this is dropped.
pub(super) struct Server(Child);

impl Server {
    /// Starts it; what it has to say goes into `log`.
    pub(super) fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let log = fs::File::create(log)?;
        command.stdout(Stdio::null()).stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self(child))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Waits until somebody listens there.
pub(super) fn wait_for(socket: &Path) -> anyhow::Result<()> {
    let start = Instant::now();
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        if start.elapsed() > Duration::from_secs(20) {
            bail!("no server answers at {}", socket.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn load(socket: &Path, programs: &[&str]) -> anyhow::Result<Value> {
    let mut command = cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "tests",
        "--example",
        "cri_load",
        "--",
    ]);
    let output = run_program(command.arg(socket).args([IMAGE, PODS]).args(programs))?;
    serde_json::from_slice(&output.stdout).context("read what the load measured")
}

fn network(bridge: &str, subnet: &str, folder: &Path) -> String {
    json!({ "cniVersion": "1.0.0", "name": bridge, "plugins": [{ "type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": { "type": "host-local", "dataDir": folder.join("leases"), "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
        { "type": "portmap", "capabilities": { "portMappings": true } }] })
    .to_string()
}

fn ours(program: &Path, folder: &Path) -> anyhow::Result<Value> {
    let folder = folder.join("orlop");
    fs::create_dir_all(folder.join("net.d"))?;
    fs::write(
        folder.join("net.d/10-bench.conflist"),
        network("orlopbench0", "10.89.0.0/16", &folder),
    )?;
    let config = format!("cni_conf_dir = {:?}\n", folder.join("net.d"));
    fs::write(folder.join("config.toml"), config)?;
    let socket = folder.join("cri.sock");
    let mut command = Command::new(program);
    command
        .arg("cri")
        .arg("--listen")
        .arg(&socket)
        .arg("--root")
        .arg(folder.join("root"))
        .arg("--state")
        .arg(folder.join("state"));
    command.arg("--config").arg(folder.join("config.toml"));
    let server = Server::start(command, &folder.join("log"))?;
    let measured = wait_for(&socket).and_then(|()| {
        let archive = image(&folder, IMAGE)?;
        run_program(
            Command::new(program)
                .args(["image", "import", "--socket"])
                .arg(&socket)
                .arg(archive),
        )?;
        load(&socket, &["orlop"])
    });
    drop(server);
    let _ = Command::new("ip")
        .args(["link", "delete", "orlopbench0"])
        .status();
    measured.with_context(|| fs::read_to_string(folder.join("log")).unwrap_or_default())
}

fn containerd(folder: &Path) -> anyhow::Result<Value> {
    let folder = folder.join("containerd");
    fs::create_dir_all(folder.join("net.d"))?;
    fs::write(
        folder.join("net.d/10-bench.conflist"),
        network("cribench0", "10.90.0.0/16", &folder),
    )?;
    let config = format!(
        "version = 2\nroot = {root:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n[plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\nsandbox_image = {PAUSE:?}\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = {net:?}\n",
        root = folder.join("root"),
        state = folder.join("state"),
        socket = folder.join("containerd.sock"),
        net = folder.join("net.d"),
    );
    fs::write(folder.join("config.toml"), config)?;
    let socket = folder.join("containerd.sock");
    let mut command = Command::new("containerd");
    command.arg("--config").arg(folder.join("config.toml"));
    let server = Server::start(command, &folder.join("log"))?;
    let measured = wait_for(&socket).and_then(|()| {
        for name in [IMAGE, PAUSE] {
            let archive = image(&folder, name)?;
            run_program(
                Command::new("ctr")
                    .arg("--address")
                    .arg(&socket)
                    .args(["--namespace", "k8s.io", "images", "import"])
                    .arg(archive),
            )?;
        }
        load(
            &socket,
            &["containerd", "containerd-shim-runc-v2", "busybox-pause"],
        )
    });
    drop(server);
    let _ = Command::new("ip")
        .args(["link", "delete", "cribench0"])
        .status();
    measured.with_context(|| fs::read_to_string(folder.join("log")).unwrap_or_default())
}

/// A docker archive of busybox that sleeps, under this name. In the pause image the program is called so, so that
/// its memory can be told from the workload's.
fn image(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let (work, pause) = (folder.join("image"), name == PAUSE);
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(work.join("rootfs/bin"))?;
    // Busybox takes its first word for its name if it is called so.
    let program = if pause { "busybox-pause" } else { "busybox" };
    fs::copy(busybox()?, work.join("rootfs/bin").join(program))?;
    run_program(
        Command::new("tar")
            .args(["--create", "--file"])
            .arg(work.join("layer.tar"))
            .arg("--directory")
            .arg(work.join("rootfs"))
            .arg("."),
    )?;
    let sum = run_program(Command::new("sha256sum").arg(work.join("layer.tar")))?;
    let digest = String::from_utf8_lossy(&sum.stdout)
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    let words = json!(["/bin/busybox", "sleep", "3600"]);
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "config": { "Entrypoint": if pause { json!(["/bin/busybox-pause", "sleep", "3600"]) } else { words }, "StopSignal": "SIGKILL", "WorkingDir": "/" }, "history": [{}] });
    fs::write(work.join("config.json"), config.to_string())?;
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(work.join("manifest.json"), manifest.to_string())?;
    let archive = folder.join(format!("{program}.tar"));
    run_program(
        Command::new("tar")
            .args(["--create", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(&work)
            .args(["manifest.json", "config.json", "layer.tar"]),
    )?;
    Ok(archive)
}
