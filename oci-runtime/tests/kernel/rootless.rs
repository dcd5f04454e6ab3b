//! Containers of a user who isn't root, from that user's own shell.

use crate::bundle::{Bundle, Ran, runtime};
use serde_json::json;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

const NOBODY: u32 = 65_534;

/// A bundle that is nobody's, as `spec --rootless` makes it for that user, and a copy of the runtime in its reach.
struct Rootless(Bundle);

impl Rootless {
    fn new(args: &[&str]) -> Self {
        let bundle = Bundle::new("");
        std::fs::copy(runtime(), bundle.path("runtime")).unwrap();
        std::fs::remove_file(bundle.path("config.json")).unwrap();
        std::fs::create_dir(bundle.path("own-state")).unwrap();
        for path in ["", "runtime", "rootfs", "rootfs/tmp", "own-state"] {
            chown(bundle.path(path), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut rootless = Rootless(bundle);
        rootless.run(&["spec", "--rootless"]).ok();
        let text = std::fs::read(rootless.0.path("config.json")).unwrap();
        rootless.0.config = serde_json::from_slice(&text).unwrap();
        rootless.0.process()["terminal"] = json!(false);
        rootless.0.process()["args"] = json!(args);
        rootless.write();
        rootless
    }

    fn write(&self) {
        std::fs::write(self.0.path("config.json"), self.0.config.to_string()).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.0.path("runtime"));
        command
            .arg("--root")
            .arg(self.0.path("own-state"))
            .args(words)
            .current_dir(self.0.path(""))
            .stdin(Stdio::null())
            .uid(NOBODY)
            .gid(NOBODY);
        command
    }

    fn run(&self, words: &[&str]) -> Ran {
        Ran::from(self.command(words).output().unwrap())
    }
}

#[test]
fn a_user_runs_a_container_as_root_of_its_own_user_namespace() {
    let rootless = Rootless::new(&["sh", "-c", "id -u; cat /proc/self/uid_map; hostname"]);
    let out = rootless.run(&["run", "web"]).ok();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "65534", "1", "runc"]);
    assert_eq!(
        std::fs::read_dir(rootless.0.path("own-state"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_users_container_is_started_entered_and_ended_like_others() {
    let rootless = Rootless::new(&["sleep", "100"]);
    let file = || std::fs::File::create(rootless.0.path("output")).unwrap();
    let created = rootless
        .command(&["create", "web"])
        .stdout(file())
        .stderr(file())
        .status();
    let said = std::fs::read_to_string(rootless.0.path("output")).unwrap();
    assert!(created.unwrap().success(), "{said}");
    rootless.run(&["start", "web"]).ok();
    let inside = rootless.run(&[
        "exec",
        "web",
        "sh",
        "-c",
        "id -u; readlink /proc/self/ns/pid; readlink /proc/1/ns/pid; exit 4",
    ]);
    assert_eq!(inside.code, 4, "{inside:?}");
    let lines: Vec<&str> = inside.stdout.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1], lines[2], "it is in the container's pid namespace");
    assert_ne!(rootless.run(&["delete", "web"]).code, 0, "it runs");
    rootless.run(&["delete", "--force", "web"]).ok();
    assert_ne!(rootless.run(&["state", "web"]).code, 0);
}

#[test]
fn a_user_is_told_what_is_missing() {
    let mut rootless = Rootless::new(&["true"]);
    rootless.0.linux()["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|entry| entry["type"] != "user");
    rootless.write();
    let ran = rootless.run(&["run", "web"]);
    assert!(
        ran.stderr.contains("requires user namespaces"),
        "{}",
        ran.stderr
    );
    // More ids than a user's own take the helpers' consent, which nobody has.
    rootless.0.linux()["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    let mapping = json!([{"containerID": 0, "hostID": NOBODY, "size": 1}, {"containerID": 1, "hostID": 100_000, "size": 10}]);
    rootless.0.linux()["uidMappings"] = mapping.clone();
    rootless.0.linux()["gidMappings"] = mapping;
    rootless.write();
    let ran = rootless.run(&["run", "web"]);
    assert!(ran.stderr.contains("/etc/subuid"), "{}", ran.stderr);
    assert_eq!(
        std::fs::read_dir(rootless.0.path("own-state"))
            .unwrap()
            .count(),
        0
    );
}
