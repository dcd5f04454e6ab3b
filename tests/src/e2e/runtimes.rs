//! The OCI runtime under Debian's podman and containerd. Each scenario passes with crun and runc first; then a failure
//! means us.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::bench::busybox;
use crate::tally::Outcome;
use crate::workspace::run;

/// What a user does, as a shell's lines, and what is then printed.
struct Step {
    name: &'static str,
    script: &'static str,
    says: &'static str,
}

/// `P` is podman with its folders and the runtime, `N` what every container is run with, `B` the image's busybox. Containers' limits on files
/// and processes are given, since podman would raise them past what this host allows.
const PODMAN: &[Step] = &[
    Step {
        name: "run",
        script: "$P run --rm $N bb sh -c 'echo hi; exit 7'; echo $?",
        says: "hi\n7\n",
    },
    Step {
        name: "detached",
        script: "$P run -d --name d $N bb sh -c 'echo out; exec sleep 100' >/dev/null; echo $?",
        says: "0\n",
    },
    Step {
        name: "exec",
        script: "$P exec -e A=b -u 1000 d sh -c 'echo $A; id -u; exit 5'; echo $?",
        says: "b\n1000\n5\n",
    },
    Step {
        name: "exec with a terminal",
        script: "terminal $P exec -it d tty",
        says: "/dev/pts/0\n",
    },
    Step {
        name: "logs",
        script: "$P logs d",
        says: "out\n",
    },
    Step {
        name: "pause",
        script: "$P pause d >/dev/null; $P inspect d --format '{{.State.Status}}'; $P unpause d >/dev/null; $P inspect d --format '{{.State.Status}}'",
        says: "paused\nrunning\n",
    },
    Step {
        name: "top",
        script: "$P top d pid | tail -1",
        says: "1\n",
    },
    Step {
        name: "stop",
        script: "$P stop -t 1 d >/dev/null 2>&1; $P inspect d --format '{{.State.Status}} {{.State.ExitCode}}'; $P rm d >/dev/null",
        says: "exited 137\n",
    },
    Step {
        name: "run with a terminal",
        script: "terminal $P run --rm -it $N bb tty",
        says: "/dev/pts/0\n",
    },
    Step {
        name: "limits",
        script: "$P run --rm $N --memory 32m --pids-limit 20 bb sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max'",
        says: "33554432\n20\n",
    },
    Step {
        name: "out of memory",
        script: "$P run --rm $N --memory 16m --memory-swap 16m bb sh -c 'x=a; while true; do x=$x$x; done'; echo $?",
        says: "137\n",
    },
    Step {
        name: "a user namespace",
        script: "$P run --rm $N --uidmap 0:100000:65536 --gidmap 0:100000:65536 bb sh -c 'id -u; cat /proc/self/uid_map | tr -s \" \"; echo x >/y && cat /y'",
        says: "0\n 0 100000 65536\nx\n",
    },
    Step {
        name: "no such program",
        script: "$P run --rm $N bb /nonexistent 2>/dev/null; echo $?; $P run --rm $N bb /etc/passwd 2>/dev/null; echo $?",
        says: "127\n126\n",
    },
    Step {
        name: "a read-only root",
        script: "$P run --rm $N --read-only --tmpfs /t bb sh -c 'echo x >/x || echo y >/t/y && cat /t/y' 2>/dev/null",
        says: "y\n",
    },
    Step {
        name: "a published port",
        script: "$P run -d --name w $L -p 127.0.0.1:18081:80 bb sh -c 'while true; do echo hello | nc -l -p 80; done' >/dev/null
            for i in $(seq 100); do $B nc 127.0.0.1 18081 </dev/null && break; sleep 0.1; done; $P rm -f -t 0 w >/dev/null",
        says: "hello\n",
    },
    Step {
        name: "restart",
        script: "$P run -d --name r $N bb sleep 100 >/dev/null; $P restart -t 0 r >/dev/null; $P inspect r --format '{{.State.Status}}'; $P kill r >/dev/null; $P wait r; $P rm r >/dev/null",
        says: "running\n137\n",
    },
];

/// `C` is containerd's client, `R` its flags for the runtime, `I` the root file system.
const CONTAINERD: &[Step] = &[
    Step {
        name: "run",
        script: "$C run --rm $R $I a /bin/sh -c 'echo hi; exit 7'; echo $?",
        says: "hi\n7\n",
    },
    Step {
        name: "detached",
        script: "$C run -d $R $I d /bin/sleep 100; echo $?",
        says: "0\n",
    },
    Step {
        name: "exec",
        script: "$C task exec --exec-id e --user 1000 d /bin/sh -c 'id -u; exit 5'; echo $?",
        says: "1000\n5\n",
    },
    Step {
        name: "run with a terminal",
        script: "terminal $C run --rm -t $R $I t /bin/tty",
        says: "/dev/pts/0\n",
    },
    Step {
        name: "pause",
        script: "$C task pause d; $C task ls | grep -c PAUSED; $C task resume d; $C task ls | grep -c RUNNING",
        says: "1\n1\n",
    },
    Step {
        name: "kill",
        script: "$C task kill -s KILL d; until $C task ls | grep -q STOPPED; do :; done; $C task delete d 2>&1 | grep -o 'code 137'; $C container delete d",
        says: "code 137\n",
    },
    Step {
        name: "out of memory",
        script: "$C run --rm --memory-limit 16000000 $R $I o /bin/sh -c 'x=a; while true; do x=$x$x; done'; echo $?",
        says: "137\n",
    },
    Step {
        name: "no such program",
        script: "$C run --rm $R $I n /nonexistent 2>/dev/null; echo $?; $C container ls -q",
        says: "1\n",
    },
];

/// Another user's own podman.
const ROOTLESS: &[Step] = &[
    Step {
        name: "run",
        script: "$P run --rm $N bb sh -c 'id -u; exit 7'; echo $?",
        says: "0\n7\n",
    },
    Step {
        name: "exec and stop",
        script: "$P run -d --name d $N bb sleep 100 >/dev/null; $P exec -u 1000 d id -u; $P stop -t 0 d >/dev/null; $P rm d >/dev/null; echo $?",
        says: "1000\n0\n",
    },
];

/// All of it, with the references and with ours.
pub fn runtimes(program: &Path) -> anyhow::Result<Outcome> {
    // Where another user may read it, and by a name that the program takes for the runtime's.
    let folder = std::env::temp_dir().join(format!("orlop-runtimes-{}", std::process::id()));
    fs::create_dir_all(folder.join("bin"))?;
    let ours = folder.join("bin/orlop-runtime");
    fs::copy(program, &ours)?;
    image(&folder)?;
    let mut passed = 0;
    let result = [
        "/usr/bin/crun",
        "/usr/sbin/runc",
        &ours.display().to_string(),
    ]
    .iter()
    .try_for_each(|runtime| {
        for (prelude, steps) in [
            (podman(&folder, runtime), PODMAN),
            (containerd(&folder, runtime), CONTAINERD),
            (rootless(&folder, runtime), ROOTLESS),
        ] {
            passed += all(&folder, runtime, &prelude, steps)?;
        }
        Ok(())
    });
    fs::remove_dir_all(&folder)?;
    // crun gives a container's user the null device that it has as standard input: the host's.
    std::os::unix::fs::chown("/dev/null", Some(0), Some(0))?;
    result.map(|()| Outcome::Counted { passed, skipped: 0 })
}

fn image(folder: &Path) -> anyhow::Result<()> {
    let root = folder.join("image");
    for sub in ["bin", "etc", "tmp", "proc", "dev", "sys", "root"] {
        fs::create_dir_all(root.join(sub))?;
    }
    fs::copy(busybox()?, root.join("bin/busybox")).context("copy busybox")?;
    for applet in ["sh", "sleep", "cat", "id", "tty", "nc", "tr"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(&root)
        .args(["-cf"])
        .arg(folder.join("image.tar"))
        .arg(".");
    run(&mut tar).map(drop)
}

/// Runs steps in one shell, in namespaces of its own, and compares what each says.
fn all(folder: &Path, runtime: &str, prelude: &str, steps: &[Step]) -> anyhow::Result<usize> {
    // Debian's crun refuses a hybrid hierarchy.
    let hide = if runtime.ends_with("crun") {
        "! mountpoint -q /sys/fs/cgroup/unified || umount -l /sys/fs/cgroup/unified\n"
    } else {
        ""
    };
    let says = |index: usize| folder.join(format!("said-{index}"));
    let mut script = format!("{hide}{prelude}\n");
    for (index, step) in steps.iter().enumerate() {
        script += &format!("{{\n{}\n}} >{} 2>&1\n", step.script, says(index).display());
    }
    script += "true\n";
    let own = [
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ];
    let mut shell = Command::new("timeout");
    shell
        .args(["200", "unshare"])
        .args(own)
        .args(["sh", "-c", &script]);
    let ended = run(&mut shell);
    remove_cgroups();
    for (index, step) in steps.iter().enumerate() {
        let said = fs::read_to_string(says(index)).unwrap_or_default();
        ensure!(
            said == step.says,
            "{runtime}, {}: it said {said:?} and not {:?}",
            step.name,
            step.says
        );
        fs::remove_file(says(index))?;
    }
    ended.with_context(|| format!("{runtime}: the scenario's end"))?;
    Ok(steps.len())
}

/// A namespace's own places for what podman and its plugins keep outside of their folders; and `terminal`, which runs a
/// command on one. Its input stays open: at its end podman stops copying, often before the output came, whatever the
/// runtime is.
const PLACES: &str = "ip link set lo up; mount -t tmpfs tmpfs /run; mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni
        mkfifo /run/open; terminal() { script -qec \"$*\" /dev/null <>/run/open | tr -cd '/a-z0-9\\n'; }";
const LIMITS: &str = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024";

fn podman(folder: &Path, runtime: &str) -> String {
    let folder = folder.display();
    format!(
        "{PLACES}
        P='podman --root {folder}/podman/root --runroot {folder}/podman/run --tmpdir {folder}/podman/tmp --runtime {runtime} --cgroup-manager cgroupfs --storage-driver vfs --events-backend file --network-config-dir {folder}/podman/net'
        L='{LIMITS}'; N=\"--network none $L\"; B={folder}/image/bin/busybox
        end() {{ $P rm -af -t 0 >/dev/null 2>&1; rm -rf {folder}/podman; }}; trap end EXIT
        $P import {folder}/image.tar bb >/dev/null 2>&1"
    )
}

fn containerd(folder: &Path, runtime: &str) -> String {
    let folder = folder.display();
    format!(
        "{PLACES}
        mkdir -p {folder}/containerd; cat >{folder}/containerd/config.toml <<END
version = 2
root = \"{folder}/containerd/root\"
state = \"{folder}/containerd/state\"
disabled_plugins = [\"io.containerd.grpc.v1.cri\"]
[grpc]
address = \"{folder}/containerd/sock\"
END
        containerd -c {folder}/containerd/config.toml >{folder}/containerd/log 2>&1 &
        C='ctr -a {folder}/containerd/sock'; R='--runc-binary {runtime} --rootfs'; I={folder}/image
        for i in $(seq 100); do $C version >/dev/null 2>&1 && break; sleep 0.1; done"
    )
}

/// A user with ids of its own to map, known in this mount namespace only.
fn rootless(folder: &Path, runtime: &str) -> String {
    let folder = folder.display();
    format!(
        "{PLACES}
        mkdir -p {folder}/user/home {folder}/user/run {folder}/etc; chown -R 1500:1500 {folder}/user
        for file in passwd group subuid subgid; do cp /etc/$file {folder}/etc/$file 2>/dev/null; done
        echo 'tester:x:1500:1500::{folder}/user/home:/bin/sh' >>{folder}/etc/passwd; echo 'tester:x:1500:' >>{folder}/etc/group
        echo 'tester:200000:65536' | tee -a {folder}/etc/subuid >>{folder}/etc/subgid
        for file in passwd group subuid subgid; do [ -e /etc/$file ] || touch /etc/$file; mount --bind {folder}/etc/$file /etc/$file; done
        cd {folder}/user
        P='setpriv --reuid 1500 --regid 1500 --clear-groups env HOME={folder}/user/home XDG_RUNTIME_DIR={folder}/user/run podman --root {folder}/user/root --runroot {folder}/user/run/root --runtime {runtime} --cgroup-manager cgroupfs --storage-driver vfs --events-backend file'
        N='--network none {LIMITS}'
        end() {{ $P rm -af -t 0 >/dev/null 2>&1; rm -rf {folder}/user {folder}/etc; }}; trap end EXIT
        $P import {folder}/image.tar bb >/dev/null 2>&1"
    )
}

/// What podman and containerd leave: the parents of their containers' cgroups.
fn remove_cgroups() {
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else {
        return;
    };
    for hierarchy in hierarchies.flatten() {
        for parent in ["libpod_parent", "default"] {
            let parent = hierarchy.path().join(parent);
            for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(child.path());
            }
            let _ = fs::remove_dir(parent);
        }
    }
}
