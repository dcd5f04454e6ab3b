//! A bundle in a temporary directory, and the runtime's command line over it.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The applets that the tests' containers use.
const APPLETS: [&str; 22] = [
    "sh", "true", "sleep", "cat", "id", "ls", "touch", "grep", "head", "mkdir", "mknod", "chown",
    "stat", "tty", "hostname", "env", "pwd", "readlink", "kill", "mount", "chroot", "dd",
];

/// A bundle with a busybox root file system; whatever of its container is left goes with it.
pub struct Bundle {
    dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
}

impl Bundle {
    /// A container that runs a shell script as root, with every namespace but user, and few capabilities.
    pub fn new(script: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "kernel tests run as root");
        let dir = tempfile::tempdir().unwrap();
        let id = format!(
            "orlop-test-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let bin = dir.path().join("rootfs/bin");
        for sub in ["bin", "etc", "tmp", "root", "proc", "dev", "sys"] {
            std::fs::create_dir_all(dir.path().join("rootfs").join(sub)).unwrap();
        }
        std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        std::fs::write(
            dir.path().join("rootfs/etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n",
        )
        .unwrap();
        let made = Command::new(runtime())
            .arg("spec")
            .current_dir(dir.path())
            .status()
            .unwrap();
        assert!(made.success());
        let config: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("config.json")).unwrap())
                .unwrap();
        let mut bundle = Bundle { dir, id, config };
        bundle.config["process"]["terminal"] = json!(false);
        bundle.config["process"]["args"] = json!(["sh", "-c", script]);
        bundle.config["root"]["readonly"] = json!(false);
        let namespaces = bundle.linux()["namespaces"].as_array_mut().unwrap();
        if !namespaces.contains(&json!({"type": "cgroup"})) {
            namespaces.push(json!({"type": "cgroup"}));
        }
        bundle
    }

    pub fn process(&mut self) -> &mut Value {
        &mut self.config["process"]
    }

    pub fn linux(&mut self) -> &mut Value {
        &mut self.config["linux"]
    }

    pub fn add_mount(&mut self, mount: Value) {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// A user namespace whose root is host id 100000.
    pub fn with_user_namespace(mut self) -> Self {
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        self.linux()["uidMappings"] = mapping.clone();
        self.linux()["gidMappings"] = mapping;
        self.linux()["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        self
    }

    /// Gives the container capabilities, in all sets but the ambient one.
    pub fn with_capabilities(mut self, names: &[&str]) -> Self {
        for set in ["bounding", "effective", "permitted"] {
            self.process()["capabilities"][set] = json!(names);
        }
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn state_root(&self) -> PathBuf {
        self.path("state")
    }

    /// The runtime with `words` and the bundle's own state directory, with the config written.
    pub fn command(&self, words: &[&str]) -> Command {
        std::fs::write(self.path("config.json"), self.config.to_string()).unwrap();
        let mut command = Command::new(runtime());
        command
            .arg("--root")
            .arg(self.state_root())
            .args(words)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs the container to its end.
    pub fn run(&self) -> Ran {
        Ran::from(self.output(&["run", &self.id]))
    }

    /// Runs the container from a namespace of the kind `unshare` (a flag of unshare(1)), which `setup`, a shell script
    /// with the runtime's command as its arguments, has prepared.
    pub fn run_beside(&self, unshare: &str, setup: &str) -> Ran {
        let command = self.command(&["run", &self.id]);
        let script = format!("set -e; {setup}; exec \"$@\"");
        let output = Command::new("unshare")
            .args([unshare, "sh", "-c", &script, "sh"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Ran::from(output)
    }

    /// Creates and starts the container in the background.
    pub fn start(&self) {
        self.create();
        self.must(&["start", &self.id]);
    }

    /// Creates the container, which waits for its start.
    pub fn create(&self) {
        // Into files: a pipe would be held open by the container.
        let file = || std::fs::File::create(self.path("output")).unwrap();
        let status = self
            .command(&["create", &self.id])
            .stdout(file())
            .stderr(file())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "create: {}",
            std::fs::read_to_string(self.path("output")).unwrap()
        );
    }

    /// A command that must succeed; its output.
    pub fn must(&self, words: &[&str]) -> String {
        let ran = Ran::from(self.output(words));
        assert_eq!(ran.code, 0, "{words:?}: {}", ran.stderr);
        ran.stdout
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.must(&["state", &self.id])).unwrap()
    }

    /// Waits for a status, which the kernel brings about in its own time.
    pub fn wait_status(&self, wanted: &str) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.state()["status"] != wanted {
            assert!(
                std::time::Instant::now() < deadline,
                "status is {} and not {wanted}",
                self.state()["status"]
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = Command::new(runtime())
            .arg("--root")
            .arg(self.state_root())
            .args(["delete", "--force", &self.id])
            .stderr(Stdio::null())
            .status();
        if !std::thread::panicking() {
            assert_eq!(
                cgroups_named(&self.id),
                Vec::<PathBuf>::new(),
                "cgroups are left"
            );
        }
    }
}

/// What a command gave back.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// The output of a container that must have ended with status 0.
    pub fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "stdout: {}stderr: {}",
            self.stdout, self.stderr
        );
        self.stdout
    }
}

/// The runtime's program; in a virtual machine it is elsewhere than where it was built.
pub fn runtime() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        let given = std::env::var("OCI_RUNTIME").ok();
        given.unwrap_or_else(|| env!("CARGO_BIN_EXE_oci-runtime").to_owned())
    });
    &PROGRAM
}

/// The directories of a test's cgroup, in all hierarchies.
pub fn cgroups_named(name: &str) -> Vec<PathBuf> {
    let hierarchies = linux::cgroup::Hierarchies::discover().unwrap();
    let mounts = hierarchies
        .unified
        .iter()
        .chain(hierarchies.v1.iter().map(|v1| &v1.mount));
    mounts
        .map(|mount| mount.join(name))
        .filter(|path| Path::exists(path))
        .collect()
}
