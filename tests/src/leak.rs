//! The leak check: what a node makes in the kernel and on disk, before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;

/// After this time what still goes away in the background counts as left.
const SETTLED: Duration = Duration::from_secs(5);

/// All that a node of ours could leave, each as a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// As it is now.
    pub fn take() -> Self {
        let mut lines = BTreeSet::new();
        let mut add = |what: &str, items: Vec<String>| {
            lines.extend(items.into_iter().map(|item| format!("{what} {item}")))
        };
        add("network namespace", children("/run/netns"));
        add("link", children("/sys/class/net"));
        add("mount", mounts());
        add("cgroup", cgroups());
        add("process", processes());
        add("nftables", nftables());
        add("connection", connections());
        for folder in [
            "/run/orlop",
            "/var/lib/orlop",
            "/var/lib/cni/networks",
            "/var/log/pods",
            "/var/log/containers",
            "/etc/cni/net.d",
        ] {
            add(
                "file",
                children(folder)
                    .into_iter()
                    .map(|name| format!("{folder}/{name}"))
                    .collect(),
            );
        }
        Self(lines)
    }

    /// Fails if there is anything that was not in this snapshot, once the kernel's own clean-up has had its time.
    pub fn nothing_new(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let now = Self::take();
            let new: Vec<_> = now.0.difference(&self.0).cloned().collect();
            if new.is_empty() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < SETTLED,
                "left behind:\n  {}",
                new.join("\n  ")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn children(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_owned)
        .collect()
}

fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 0, &mut found);
    found
}

/// Cgroups of others come and go; ours lie in these.
fn walk(folder: &Path, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || depth > 8 {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains("kubepods") || name.contains("orlop") {
            found.push(path.display().to_string());
        }
        walk(&path, depth + 1, found);
    }
}

/// Processes whose program is ours, or that were started by one of ours.
fn processes() -> Vec<String> {
    let mut found = Vec::new();
    for pid in children("/proc")
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    {
        let program = fs::read_link(format!("/proc/{pid}/exe"))
            .unwrap_or_default()
            .display()
            .to_string();
        let name = program
            .trim_end_matches(" (deleted)")
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        if name == "orlop" || name == "demo" {
            found.push(format!("{pid} {program}"));
        }
    }
    found
}

fn output(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

fn nftables() -> Vec<String> {
    let tables = output("nft", &["list", "tables"]);
    tables.lines().map(str::to_owned).collect()
}

/// Connections to or from addresses that a node of ours gives out, but for their ports and counters.
fn connections() -> Vec<String> {
    let table = output("conntrack", &["-L"]);
    let ours = table
        .lines()
        .filter(|line| line.contains("=10.244.") || line.contains("=10.96."))
        .filter(|line| line.starts_with("udp"));
    ours.map(str::to_owned).collect()
}
