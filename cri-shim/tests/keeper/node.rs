//! A keeper in a directory of its own, with busybox containers, that leaves nothing behind.

use cri_shim::keeper::{Client, Config, Exit, ExitStatus, Exits, LaunchReply, LaunchRequest};
use linux::cgroup::Cgroup;
use oci_runtime::{LaunchPlan, LaunchResources, Rootfs};
use oci_spec::runtime::Spec;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Nothing here takes longer unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Node {
    pub dir: tempfile::TempDir,
    pub client: Client,
    rootfs: PathBuf,
}

impl Node {
    pub async fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        make_rootfs(&rootfs);
        std::os::unix::fs::symlink(processes(), program(dir.path())).unwrap();
        let client = connect(dir.path()).await;
        Node {
            dir,
            client,
            rootfs,
        }
    }

    pub fn program(&self) -> PathBuf {
        program(self.dir.path())
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(id).join("0.log")
    }

    pub fn log_text(&self, id: &str) -> String {
        contents(&std::fs::read(self.log_path(id)).unwrap_or_default())
    }

    /// A plan for a shell script.
    pub fn plan(&self, id: &str, script: &str, terminal: bool) -> (LaunchPlan, Vec<OwnedFd>) {
        self.plan_of(id, &["/bin/sh", "-c", script], terminal)
    }

    pub fn plan_of(&self, id: &str, args: &[&str], terminal: bool) -> (LaunchPlan, Vec<OwnedFd>) {
        let resources = LaunchResources::new(id, Rootfs::Path(self.rootfs.clone()));
        oci_runtime::plan_launch(&spec(args, terminal), resources).unwrap()
    }

    pub fn plan_in(&self, id: &str, args: &[&str], cgroup: Cgroup) -> (LaunchPlan, Vec<OwnedFd>) {
        let mut resources = LaunchResources::new(id, Rootfs::Path(self.rootfs.clone()));
        resources.cgroup = Some(cgroup);
        oci_runtime::plan_launch(&spec(args, false), resources).unwrap()
    }

    pub fn request(&self, id: &str, script: &str) -> LaunchRequest {
        let (plan, fds) = self.plan(id, script, false);
        self.request_with(id, plan, fds)
    }

    pub fn request_with(&self, id: &str, plan: LaunchPlan, fds: Vec<OwnedFd>) -> LaunchRequest {
        LaunchRequest {
            plan,
            fds,
            log_path: Some(self.log_path(id)),
            stdin: false,
            stdin_once: false,
            terminal: false,
            size: None,
            memory_events: None,
        }
    }

    pub async fn run(&self, id: &str, script: &str) -> LaunchReply {
        self.client
            .launch(id, self.request(id, script))
            .await
            .unwrap()
    }

    pub fn keeper_pid(&self) -> i32 {
        keepers_of(self.dir.path())[0]
    }

    pub fn scribe_pid(&self) -> Option<i32> {
        let keeper = self.keeper_pid();
        children(keeper)
            .into_iter()
            .find(|pid| cmdline(*pid).get(1).is_some_and(|word| word == "scribe"))
    }

    /// Waits until a scribe runs that is none of `except`.
    pub async fn wait_for_scribe(&self, except: Option<i32>) -> i32 {
        eventually("a scribe runs", || {
            self.scribe_pid().filter(|pid| Some(*pid) != except)
        })
        .await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // From here on the client can start no other keeper.
        std::fs::remove_file(program(self.dir.path())).unwrap();
        for record in records(self.dir.path()) {
            kill(record);
        }
        for keeper in keepers_of(self.dir.path()) {
            kill(keeper);
        }
    }
}

pub async fn connect(dir: &Path) -> Client {
    Client::connect_or_spawn(config(dir)).await.unwrap()
}

pub fn config(dir: &Path) -> Config {
    Config {
        dir: dir.join("keeper"),
        program: program(dir),
        cgroup: None,
    }
}

fn program(dir: &Path) -> PathBuf {
    dir.join("program")
}

/// This crate's example `processes`, which is built with the tests.
fn processes() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/processes");
    assert!(
        path.exists(),
        "build it: cargo build -p cri-shim --example processes"
    );
    path
}

fn make_rootfs(rootfs: &Path) {
    for dir in ["bin", "proc", "dev", "tmp", "sys"] {
        std::fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    for applet in [
        "sh", "cat", "tail", "sleep", "seq", "echo", "true", "stty", "tty", "yes", "head",
        "printf", "id", "ls",
    ] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
}

pub fn spec(args: &[&str], terminal: bool) -> Spec {
    serde_json::from_value(serde_json::json!({
        "ociVersion": "1.2.0",
        "root": { "path": "rootfs" },
        "process": {
            "terminal": terminal, "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/",
            "env": ["PATH=/bin", "TERM=xterm"],
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }] },
    }))
    .unwrap()
}

pub async fn next_exit(exits: &mut Exits) -> Exit {
    tokio::time::timeout(PATIENCE, exits.next())
        .await
        .expect("a container's end in time")
        .unwrap()
}

pub fn exited(code: i32) -> ExitStatus {
    ExitStatus {
        code,
        signal: None,
        unknown: false,
    }
}

/// What a log's entries say, joined as a reader joins them.
pub fn contents(log: &[u8]) -> String {
    let mut text = String::new();
    for line in String::from_utf8_lossy(log).split_inclusive('\n') {
        let mut fields = line.splitn(4, ' ');
        let (_, _, tag, content) = (
            fields.next().unwrap(),
            fields.next().unwrap(),
            fields.next().unwrap(),
            fields.next().unwrap(),
        );
        text.push_str(if tag == "P" {
            content.strip_suffix('\n').unwrap()
        } else {
            content
        });
    }
    text
}

pub async fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn kill(pid: i32) {
    if let Ok(pidfd) = linux::pidfd::open(pid) {
        let _ = linux::pidfd::kill(pidfd);
    }
}

pub fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')')
        .is_some_and(|end| !stat[end..].starts_with(") Z"))
}

fn cmdline(pid: i32) -> Vec<String> {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    raw.split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect()
}

fn children(parent: i32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat
            .rfind(')')
            .map(|end| stat[end + 1..].to_owned())
            .unwrap_or_default();
        after.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    pids().into_iter().filter(is_child).collect()
}

fn keepers_of(dir: &Path) -> Vec<i32> {
    let dir = dir.join("keeper").display().to_string();
    pids()
        .into_iter()
        .filter(|pid| cmdline(*pid).contains(&dir) && is_running(*pid))
        .collect()
}

/// The pids that a keeper has recorded.
fn records(dir: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(dir.join("keeper/containers")) else {
        return Vec::new();
    };
    let pid = |entry: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(entry.ok()?.path().join("record")).ok()?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        value["exit"]
            .is_null()
            .then(|| value["identity"]["pid"].as_i64().map(|pid| pid as i32))?
    };
    entries.filter_map(pid).collect()
}
