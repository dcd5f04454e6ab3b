//! `--systemd-cgroup` where systemd is the first process: in a virtual machine. runc is asked the same first.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use crate::tally::Outcome;
use crate::vm::Machine;

/// Without KVM a guest runs some ten times slower than the host.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The guest's script; each claim prints a line that starts with "held".
const SCRIPT: &str = include_str!("systemd.sh");

/// Containers in scopes of systemd's, by the command line and by podman.
pub fn systemd(program: &Path) -> anyhow::Result<Outcome> {
    let mut held = 0;
    let machine = Machine::new()
        .with_program("orlop-runtime", program)
        .with_file("/vm/scenario", SCRIPT.as_bytes())
        .with_file(
            "/etc/containers/policy.json",
            b"{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}",
        )
        .with_systemd(&["/usr/sbin/runc", "/usr/bin/podman", "/usr/bin/conmon"]);
    let code = machine.run(&["sh", "/vm/scenario"], TIMEOUT, |line| {
        println!("     | {line}");
        held += usize::from(line.starts_with("held"));
    })?;
    ensure!(code == 0, "the guest's script ended with {code}");
    ensure!(held == 18, "only {held} of 18 claims held");
    Ok(Outcome::Passed)
}
