//! Pull and unpack from a registry on loopback, against Debian's containerd, and skopeo with umoci.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use serde_json::json;

use super::pods::{Server, wait_for};
use super::{Row, median};
use crate::workspace::{run as run_program, target};

const REGISTRY: &str = "127.0.0.1:5037";
const ROUNDS: usize = 3;

/// Images of random content that gzip halves.
struct Case {
    name: &'static str,
    images: usize,
    layers: usize,
    files: usize,
    file_bytes: usize,
}

const CASES: [Case; 2] = [
    Case {
        name: "one image of 500 MB in 20 layers",
        images: 1,
        layers: 20,
        files: 100,
        file_bytes: 250_000,
    },
    Case {
        name: "40 images of 3 layers, 0.2 MB each, 4 at a time",
        images: 40,
        layers: 3,
        files: 20,
        file_bytes: 10_000,
    },
];

/// What a pull took, of the client and its server together.
struct Cost {
    wall_s: f64,
    cpu_s: f64,
    peak_mib: f64,
    written_mib: f64,
}

type Tool = fn(&Path, &Path, &[String]) -> anyhow::Result<Cost>;
/// What a row shows: its name, its unit, and the figure.
type Column = (&'static str, &'static str, fn(&Cost) -> f64);

/// Prints the rows.
pub fn run(program: &Path) -> anyhow::Result<()> {
    let folder = target()
        .join("bench")
        .join(format!("image-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let measured = registry(&folder).and_then(|_registry| {
        CASES
            .iter()
            .try_for_each(|case| measure(program, &folder, case))
    });
    fs::remove_dir_all(&folder)?;
    measured
}

fn measure(program: &Path, folder: &Path, case: &Case) -> anyhow::Result<()> {
    let names = (0..case.images)
        .map(|number| push(folder, case, number))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let tools: [(&str, Tool); 3] = [
        ("orlop", ours),
        ("containerd", containerd),
        ("skopeo+umoci", skopeo),
    ];
    let mut costs: Vec<Result<Vec<Cost>, String>> = tools.iter().map(|_| Ok(Vec::new())).collect();
    for _ in 0..ROUNDS {
        for ((name, tool), costs) in tools.iter().zip(&mut costs) {
            // What failed once is not tried again.
            let Ok(list) = costs else { continue };
            let place = folder.join(name);
            fs::create_dir_all(&place)?;
            // What the one before left to be written is not this one's.
            run_program(&mut Command::new("sync"))?;
            match tool(program, &place, &names) {
                Ok(cost) => list.push(cost),
                Err(error) => *costs = Err(format!("{error:#}")),
            }
            fs::remove_dir_all(&place)?;
        }
    }
    let columns: [Column; 4] = [
        (case.name, "s", |cost| cost.wall_s),
        ("  of the processors", "s", |cost| cost.cpu_s),
        (
            "  largest memory (RSS) of client and server",
            "MiB",
            |cost| cost.peak_mib,
        ),
        ("  written", "MiB", |cost| cost.written_mib),
    ];
    for (name, unit, pick) in columns {
        let values = tools.iter().zip(&costs).map(|((tool, _), costs)| {
            let costs = costs.as_ref().map_err(Clone::clone);
            let middle = costs.map(|costs| median(costs.iter().map(pick).collect()));
            ((*tool).to_owned(), middle)
        });
        Row {
            name: name.to_owned(),
            unit,
            values: values.collect(),
        }
        .print();
    }
    Ok(())
}

/// Debian's registry, on loopback.
fn registry(folder: &Path) -> anyhow::Result<Server> {
    let config = format!(
        "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {:?} }} }}\nhttp: {{ addr: {REGISTRY:?} }}\n",
        folder.join("registry")
    );
    fs::write(folder.join("registry.yml"), config)?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(folder.join("registry.yml"));
    let server = Server::start(command, &folder.join("registry.log"))?;
    for _ in 0..200 {
        if std::net::TcpStream::connect(REGISTRY).is_ok() {
            return Ok(server);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    anyhow::bail!("no registry answers at {REGISTRY}")
}

/// Makes an image and pushes it; its name.
fn push(folder: &Path, case: &Case, number: usize) -> anyhow::Result<String> {
    let name = format!("{REGISTRY}/bench/{}-{number}:v1", case.layers);
    let layout = folder.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let blob = |bytes: &[u8]| -> anyhow::Result<_> {
        fs::write(layout.join("blob"), bytes)?;
        keep(&layout)
    };
    let mut random = Random(number as u64 + 1);
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in 0..case.layers {
        let files = folder.join(format!("files/{layer}"));
        fs::create_dir_all(&files)?;
        for file in 0..case.files {
            fs::write(files.join(file.to_string()), random.bytes(case.file_bytes))?;
        }
        let tar = folder.join("layer.tar");
        run_program(
            Command::new("tar")
                .arg("-C")
                .arg(folder.join("files"))
                .arg("-cf")
                .arg(&tar)
                .arg(layer.to_string()),
        )?;
        diff_ids.push(digest(&tar)?);
        let mut gzip = Command::new("gzip");
        gzip.arg("-c").arg(&tar);
        gzip.stdout(fs::File::create(layout.join("blob"))?);
        anyhow::ensure!(gzip.status()?.success(), "gzip failed");
        let mut descriptor = keep(&layout)?;
        descriptor["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
        layers.push(descriptor);
        fs::remove_dir_all(files)?;
    }
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/0/0"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let mut config = blob(config.to_string().as_bytes())?;
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = blob(manifest.to_string().as_bytes())?;
    manifest["mediaType"] = json!(kind);
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(
        layout.join("oci-layout"),
        json!({"imageLayoutVersion": "1.0.0"}).to_string(),
    )?;
    run_program(
        Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{name}")),
    )?;
    fs::remove_dir_all(layout)?;
    Ok(name)
}

/// Files the layout's `blob` under its digest; its descriptor.
fn keep(layout: &Path) -> anyhow::Result<serde_json::Value> {
    let blob = layout.join("blob");
    let (digest, size) = (digest(&blob)?, fs::metadata(&blob)?.len());
    let hex = digest.trim_start_matches("sha256:");
    fs::rename(&blob, layout.join("blobs/sha256").join(hex))?;
    Ok(json!({"digest": digest, "size": size}))
}

fn digest(path: &Path) -> anyhow::Result<String> {
    let sum = run_program(Command::new("sha256sum").arg(path))?;
    let text = String::from_utf8_lossy(&sum.stdout).into_owned();
    let hex = text.split_whitespace().next().context("no sum")?;
    Ok(format!("sha256:{hex}"))
}

/// Marsaglia's xorshift: content that is the same in every run.
struct Random(u64);

impl Random {
    /// Half of them random, half a text.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 16);
        while bytes.len() < count {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend(self.0.to_le_bytes());
            bytes.extend(b"orlop's ");
        }
        bytes.truncate(count);
        bytes
    }
}

/// Runs a shell's lines and counts what they and the server took.
fn cost(script: &str, server: Option<&Server>) -> anyhow::Result<Cost> {
    let before = server.map(taken).transpose()?;
    if let Some(server) = server {
        // Its largest memory begins anew (proc(5), clear_refs).
        fs::write(format!("/proc/{}/clear_refs", server.pid()), "5")?;
    }
    let output = run_program(
        Command::new("/usr/bin/time")
            .args(["--format", "%e %U %S %M %O", "sh", "-ec", script])
            .stdin(Stdio::null()),
    )?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let figures: Vec<f64> = text
        .lines()
        .last()
        .unwrap_or_default()
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("time printed {text:?}"))?;
    let [wall, user, system, peak_kib, blocks] = figures.as_slice() else {
        anyhow::bail!("time printed {text:?}");
    };
    let mut cost = Cost {
        wall_s: *wall,
        cpu_s: user + system,
        peak_mib: peak_kib / 1024.0,
        written_mib: blocks / 2048.0,
    };
    if let (Some(server), Some((cpu, written, _))) = (server, before) {
        let (cpu_after, written_after, peak) = taken(server)?;
        cost.cpu_s += cpu_after - cpu;
        cost.written_mib += written_after - written;
        cost.peak_mib += peak;
    }
    Ok(cost)
}

/// A server's processor seconds, MiB written, and largest MiB of memory.
fn taken(server: &Server) -> anyhow::Result<(f64, f64, f64)> {
    let read = |file: &str| {
        let path = format!("/proc/{}/{file}", server.pid());
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    };
    let stat = read("stat")?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    // utime to cstime (proc(5)), in hundredths of a second.
    let ticks: f64 = fields
        .get(11..15)
        .context("a short stat")?
        .iter()
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let number = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|word| word.parse::<f64>().ok())
            .with_context(|| format!("no {key}"))
    };
    let written = number(&read("io")?, "write_bytes:")? / f64::from(1 << 20);
    let peak = number(&read("status")?, "VmHWM:")? / 1024.0;
    Ok((ticks / 100.0, written, peak))
}

/// Lines that run a command for each name, four at a time.
fn each(names: &[String], command: &str) -> String {
    format!(
        "printf '%s\\n' {} | xargs -P 4 -I NAME {command} >/dev/null",
        names.join(" ")
    )
}

fn ours(program: &Path, place: &Path, names: &[String]) -> anyhow::Result<Cost> {
    let socket = place.join("cri.sock");
    let mut command = Command::new(program);
    command.arg("cri").arg("--listen").arg(&socket);
    command.arg("--root").arg(place.join("root"));
    command.arg("--state").arg(place.join("state"));
    let server = Server::start(command, &place.join("log"))?;
    wait_for(&socket)?;
    let pull = format!(
        "{} image pull --socket {} NAME",
        program.display(),
        socket.display()
    );
    cost(&each(names, &pull), Some(&server))
}

fn containerd(_: &Path, place: &Path, names: &[String]) -> anyhow::Result<Cost> {
    let socket = place.join("containerd.sock");
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
        place.join("root"),
        place.join("state"),
    );
    fs::write(place.join("config.toml"), config)?;
    let mut command = Command::new("containerd");
    command.arg("--config").arg(place.join("config.toml"));
    let server = Server::start(command, &place.join("log"))?;
    wait_for(&socket)?;
    let pull = format!(
        "ctr --address {} images pull --plain-http NAME",
        socket.display()
    );
    cost(&each(names, &pull), Some(&server))
}

fn skopeo(_: &Path, place: &Path, names: &[String]) -> anyhow::Result<Cost> {
    let script = place.join("pull");
    fs::write(
        &script,
        "set -e; d=$(mktemp -d -p \"$1\"); skopeo copy --insecure-policy --src-tls-verify=false docker://\"$2\" oci:$d/layout:v1\n\
         umoci unpack --image $d/layout:v1 $d/bundle\n",
    )?;
    let pull = format!("sh {} {} NAME", script.display(), place.display());
    cost(&each(names, &pull), None)
}
