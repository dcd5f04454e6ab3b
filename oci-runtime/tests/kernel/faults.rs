//! `create` that is killed, or whose system call fails, at each of its steps: `delete` cleans up all of it.
//!
//! The faults are the kernel's, put there by strace: the program has no code for them.

use crate::bundle::{Bundle, cgroups_named};
use std::fs::File;
use std::process::{Command, Stdio};

/// What the command itself does to the host.
const OF_THE_COMMAND: &str = "mkdir,openat,open,write,rename,renameat2,unlink,socket,bind,listen,bpf,open_tree,mount_setattr,clone3,execveat";
/// What only the container's process does.
const OF_THE_CHILD: &str = "unshare,setsid,keyctl,sethostname,mount,move_mount,openat2,fsopen,fsconfig,fsmount,mkdirat,mknodat,symlinkat,pivot_root,umount2,dup2,close_range,chdir,accept4";

/// Runs the command with a fault at the `number`th of these calls; whether there was one, and its success.
fn with_fault(
    bundle: &Bundle,
    words: &[&str],
    calls: &str,
    fault: &str,
    number: usize,
    follow: bool,
) -> (bool, bool) {
    let trace = bundle.path("trace");
    let words: Vec<&str> = words.iter().copied().chain([bundle.id.as_str()]).collect();
    let runtime = bundle.command(&words);
    let mut strace = Command::new("strace");
    if follow {
        strace.arg("-f");
    }
    let status = strace
        .arg("-qq")
        .arg("-o")
        .arg(&trace)
        .args(["-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:{fault}:when={number}")])
        .arg(runtime.get_program())
        .args(runtime.get_args())
        .current_dir(bundle.path(""))
        .stdin(Stdio::null())
        // Files: a pipe would be held open by the container.
        .stdout(File::create(bundle.path("output")).unwrap())
        .stderr(File::create(bundle.path("output")).unwrap())
        .status()
        .expect("strace is installed");
    let trace = std::fs::read_to_string(trace).unwrap();
    let hit = trace.contains("INJECTED") || trace.contains("+++ killed by SIGKILL");
    (hit, status.success())
}

fn nothing_is_left(bundle: &Bundle, what: &str) {
    let states = std::fs::read_dir(bundle.state_root()).map_or(0, Iterator::count);
    assert_eq!(states, 0, "{what}: a state is left");
    assert_eq!(
        cgroups_named(&bundle.id),
        Vec::<std::path::PathBuf>::new(),
        "{what}"
    );
    let rootfs = bundle.path("rootfs");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(rootfs.to_str().unwrap()),
        "{what}: a mount is left"
    );
}

/// A fault at every call of these, one after another: at the command's own in `create`, at the container's in `run`.
fn each_fault(calls: &str, fault: &str, words: &[&str]) {
    let follow = words == ["run"];
    let bundle = Bundle::new(if follow { "true" } else { "sleep 100" });
    let mut faults = 0;
    for call in calls.split(',') {
        for number in 1.. {
            let what = format!("{fault} at {call} number {number}");
            let (hit, created) = with_fault(&bundle, words, call, fault, number, follow);
            let said = std::fs::read_to_string(bundle.path("output")).unwrap();
            assert!(!said.contains("panicked"), "{what}: {said}");
            if !created && fault.starts_with("error") && call != "write" {
                assert!(!said.trim().is_empty(), "{what}: it fails without a word");
            }
            bundle.must(&["delete", "--force", &bundle.id]);
            nothing_is_left(&bundle, &what);
            if !hit {
                assert!(created, "{what}: without a fault it works: {said}");
                break;
            }
            faults += 1;
        }
    }
    assert!(faults > 30, "only {faults} faults");
}

#[test]
fn a_command_killed_at_any_step_of_create_leaves_nothing_after_delete() {
    each_fault(OF_THE_COMMAND, "signal=KILL", &["create"]);
}

#[test]
fn a_step_of_the_command_that_fails_is_told_and_leaves_nothing() {
    each_fault(OF_THE_COMMAND, "error=EIO", &["create"]);
}

#[test]
fn a_container_killed_at_any_step_of_its_set_up_leaves_nothing_after_delete() {
    each_fault(OF_THE_CHILD, "signal=KILL", &["run"]);
}

#[test]
fn a_step_of_the_set_up_that_fails_is_told_and_leaves_nothing() {
    each_fault(OF_THE_CHILD, "error=EIO", &["run"]);
}
