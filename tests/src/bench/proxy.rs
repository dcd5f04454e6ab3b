//! The service proxy at 1,000, 10,000 and 50,000 Services: alone, with an API in its own process; then beside
//! kube-proxy, both behind the same API server of ours, from the API's write to the kernel's new generation of rules.
//!
//! kube-proxy is looked for in `KUBE_PROXY` or the path, and runs `nft`. It isn't measured at 50,000: its start takes a
//! quarter of an hour there. The second part runs in a network namespace that ends with it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{Row, median};
use crate::setup;
use crate::workspace::{cargo, target};

const COUNTS: [usize; 3] = [1_000, 10_000, 50_000];
/// At most so many Services are given to kube-proxy.
const MOST_FOR_KUBE_PROXY: usize = 10_000;
const CHANGES: usize = 11;
const START: Duration = Duration::from_secs(300);
const CHANGE: Duration = Duration::from_secs(60);
const API: u16 = 8001;
const METRICS: u16 = 10_249;
/// Set in the process that runs in the network namespace.
const INSIDE: &str = "ORLOP_BENCH_PROXY_INSIDE";

/// Prints the figures.
pub fn run(program: &Path) -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return beside(program);
    }
    let release = ["--quiet", "--release", "--package", "proxy"];
    let counts = COUNTS.map(|count| count.to_string());
    let mut alone = cargo();
    alone
        .arg("run")
        .args(release)
        .args(["--example", "scale", "--"]);
    print(alone.args(counts), "the proxy alone")?;
    let mut connections = cargo();
    connections.arg("test").args(release);
    connections.args([
        "--test",
        "service",
        "measure",
        "--",
        "--ignored",
        "--nocapture",
    ]);
    print(&mut connections, "connections through a Service")?;
    let mut inside = Command::new("unshare");
    inside.arg("--net").arg(std::env::current_exe()?);
    inside
        .args(["bench", "proxy"])
        .env(INSIDE, "1")
        .env("ORLOP", program);
    print(&mut inside, "the proxy beside kube-proxy")
}

fn print(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{what} could not be measured: {status}");
    Ok(())
}

/// What one proxy took.
struct Figures {
    start_seconds: f64,
    start_cpu_seconds: f64,
    change_milliseconds: f64,
    change_cpu_milliseconds: f64,
    resident_megabytes: f64,
}

fn beside(program: &Path) -> anyhow::Result<()> {
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()?;
    ensure!(up.success(), "the loopback device can't be set up");
    let kube_proxy =
        std::env::var_os("KUBE_PROXY").map_or_else(|| "kube-proxy".into(), PathBuf::from);
    for count in COUNTS {
        let plane = Plane::start(program, count)?;
        let flags = [
            format!("--kubeconfig={}", plane.kubeconfig.display()),
            "--hostname-override=node".to_owned(),
            "--proxy-mode=nftables".to_owned(),
            "--cluster-cidr=10.244.0.0/16".to_owned(),
            "--iptables-min-sync-period=0s".to_owned(),
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0s".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
            "--oom-score-adj=0".to_owned(),
        ];
        let ours = measure(&plane, Command::new(program).arg("proxy").args(&flags));
        let theirs = if count <= MOST_FOR_KUBE_PROXY {
            measure(&plane, Command::new(&kube_proxy).args(&flags))
        } else {
            Err(anyhow::anyhow!(
                "its start takes too long at {count} Services"
            ))
        };
        show(count, &ours, &theirs);
        ours.context("measure orlop proxy")?;
    }
    Ok(())
}

/// A figure's name and unit, and how it is got.
type Figure = (&'static str, &'static str, fn(&Figures) -> f64);
type Measured = anyhow::Result<Figures>;

fn show(count: usize, ours: &Measured, theirs: &Measured) {
    let rows: [Figure; 5] = [
        ("start to synced", "s", |f| f.start_seconds),
        ("CPU of the start", "s", |f| f.start_cpu_seconds),
        ("one endpoint, API write to kernel, median", "ms", |f| {
            f.change_milliseconds
        }),
        ("CPU per change, programs run included", "ms", |f| {
            f.change_cpu_milliseconds
        }),
        ("resident", "MB", |f| f.resident_megabytes),
    ];
    for (name, unit, of) in rows {
        let value = |measured: &Measured| match measured {
            Ok(figures) => Ok(of(figures)),
            Err(error) => Err(format!("{error:#}")),
        };
        let values = vec![
            ("orlop".to_owned(), value(ours)),
            ("kube-proxy".to_owned(), value(theirs)),
        ];
        let name = format!("{count} Services: {name}");
        Row { name, unit, values }.print();
    }
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An API server that holds Services with two endpoints each, and a way to it without TLS.
struct Plane {
    kubeconfig: PathBuf,
    count: usize,
    root: PathBuf,
    _running: [Running; 2],
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Plane {
    fn start(program: &Path, count: usize) -> anyhow::Result<Plane> {
        let name = format!("proxy-{count}-{}", std::process::id());
        let root = target().join("bench").join(name);
        fs::create_dir_all(&root)?;
        let mut server = Command::new(program);
        server
            .args(["server", "--advertise-address=127.0.0.1", "--root"])
            .arg(&root);
        let (server, lines) = with_lines(&mut server)?;
        let line = lines
            .recv_timeout(START)
            .context("orlop server says nothing")?
            .0;
        let path = line
            .strip_prefix("kubeconfig: ")
            .context("orlop server names no kubeconfig")?;
        let kubeconfig = PathBuf::from(path);
        let mut forward = Command::new(setup::kubectl()?);
        forward.arg("proxy").arg(format!("--port={API}"));
        forward.env("KUBECONFIG", &kubeconfig).env("HOME", &root);
        let (forward, lines) = with_lines(&mut forward)?;
        lines
            .recv_timeout(START)
            .context("kubectl proxy says nothing")?;
        let plane = Plane {
            kubeconfig,
            count,
            root,
            _running: [forward, server],
        };
        plane.fill()?;
        Ok(plane)
    }

    fn fill(&self) -> anyhow::Result<()> {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node" } });
        send("POST", "/api/v1/nodes", &node)?;
        let status = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }] } });
        send("PATCH", "/api/v1/nodes/node/status", &status)?;
        for index in 0..self.count {
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": name(index) },
                "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] }
            });
            send("POST", "/api/v1/namespaces/default/services", &service)?;
            send("POST", SLICES, &slice(index, 2))?;
        }
        Ok(())
    }
}

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn name(index: usize) -> String {
    format!("web-{index}")
}

fn slice(index: usize, endpoints: usize) -> Value {
    let endpoint = |number: usize| {
        let address = format!(
            "10.{}.{}.{}",
            128 + 2 * number + index / 65_536,
            index / 256 % 256,
            index % 256
        );
        json!({ "addresses": [address], "conditions": { "ready": true }, "nodeName": "other" })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name(index), "labels": { "kubernetes.io/service-name": name(index) } },
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }]
    })
}

/// One request; its answer, if the status is one of success.
fn request(port: u16, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2'), "{method} {path}: {answer}");
    Ok(answer)
}

fn send(method: &str, path: &str, body: &Value) -> anyhow::Result<String> {
    request(API, method, path, &body.to_string())
}

/// A started process and the lines that it prints, each with when it came.
fn with_lines(command: &mut Command) -> anyhow::Result<(Running, Receiver<(String, Instant)>)> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = child.spawn().with_context(|| format!("run {command:?}"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send((line, Instant::now()));
        }
    });
    Ok((Running(child), lines))
}

/// Starts a proxy, changes one endpoint a time, and ends it; its rules go, too.
fn measure(plane: &Plane, command: &mut Command) -> Measured {
    let begun = Instant::now();
    let (mut proxy, _lines) = with_lines(command)?;
    while !is_synced() {
        if let Some(status) = proxy.0.try_wait()? {
            bail!("it ended with {status}");
        }
        ensure!(begun.elapsed() < START, "it isn't synced after {START:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let start = begun.elapsed();
    let pid = proxy.0.id();
    let start_cpu = cpu_seconds(pid)?;
    let mut monitor = Command::new("nft");
    let (_monitor, generations) = with_lines(monitor.arg("monitor"))?;
    // The monitor is there when it sees a change; these don't count.
    let mut endpoints = 2;
    let ready = Instant::now();
    loop {
        endpoints = 3 - endpoints;
        change(0, endpoints)?;
        if generation(&generations, Duration::from_secs(5)).is_some() {
            break;
        }
        ensure!(ready.elapsed() < START, "no change is seen in the kernel");
    }
    let before = cpu_seconds(pid)?;
    let mut latencies = Vec::new();
    for number in 0..CHANGES {
        // What the change before left behind: kube-proxy deletes chains a second after the last use.
        while generation(&generations, Duration::from_millis(1_500)).is_some() {}
        let index = number * 7_919 % (plane.count - 1) + 1;
        let begun = Instant::now();
        change(index, 1)?;
        let seen = generation(&generations, CHANGE).context("a change isn't seen in the kernel")?;
        latencies.push((seen - begun).as_secs_f64() * 1e3);
    }
    let change_cpu = (cpu_seconds(pid)? - before) / CHANGES as f64;
    let figures = Figures {
        start_seconds: start.as_secs_f64(),
        start_cpu_seconds: start_cpu,
        change_milliseconds: median(latencies),
        change_cpu_milliseconds: change_cpu * 1e3,
        resident_megabytes: resident_megabytes(pid)?,
    };
    drop(proxy);
    let flushed = Command::new("nft").args(["flush", "ruleset"]).status()?;
    ensure!(flushed.success(), "the rules could not be flushed");
    for number in 0..CHANGES {
        change(number * 7_919 % (plane.count - 1) + 1, 2)?;
    }
    Ok(figures)
}

fn change(index: usize, endpoints: usize) -> anyhow::Result<()> {
    let path = format!("{SLICES}/{}", name(index));
    let list = &slice(index, endpoints)["endpoints"];
    send("PATCH", &path, &json!({ "endpoints": list })).map(drop)
}

/// When the kernel's rules changed next, if they did in time.
fn generation(lines: &Receiver<(String, Instant)>, patience: Duration) -> Option<Instant> {
    let deadline = Instant::now() + patience;
    loop {
        let wait = deadline.saturating_duration_since(Instant::now());
        let (line, at) = lines.recv_timeout(wait).ok()?;
        if line.starts_with("# new generation") {
            return Some(at);
        }
    }
}

fn is_synced() -> bool {
    const SYNCED: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} ";
    let Ok(text) = request(METRICS, "GET", "/metrics", "") else {
        return false;
    };
    let value = text.lines().find_map(|line| line.strip_prefix(SYNCED));
    value
        .and_then(|value| value.parse().ok())
        .is_some_and(|time: f64| time > 0.0)
}

/// CPU time of a process and of the children that it waited for.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let times = rest.split_whitespace().skip(11).take(4);
    let ticks: f64 = times.filter_map(|text| text.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS)
}

fn resident_megabytes(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kilobytes.context("no VmRSS")? / 1e3)
}
