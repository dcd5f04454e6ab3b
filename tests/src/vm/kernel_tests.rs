//! The crates' tests that need what the host's kernel may lack: they are marked as ignored, with the VM as the reason,
//! and run there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::Machine;
use crate::tally::Outcome;
use crate::workspace::{cargo, run};

/// The kinds of interfaces that Debian's kernel has as modules.
const MODULES: [&str; 6] = ["macvlan", "ipvlan", "8021q", "dummy", "vrf", "ifb"];

const TIMEOUT: Duration = Duration::from_secs(300);

/// Ignored for its length, not for its kernel: `cargo nextest run -p cni-plugins --run-ignored only ten_thousand_pods`.
const LONG: &str = "ten_thousand_pods_32_at_a_time_leave_nothing";

/// Runs the ignored tests of `cni-plugins` in a virtual machine.
pub fn kernel_tests() -> anyhow::Result<Outcome> {
    let program = test_program("cni-plugins", &["--lib"], "cni_plugins")?;
    let machine = Machine::new()
        .with_program("tests", &program)
        .with_modules(&MODULES);
    let words = ["tests", "--ignored", "--test-threads=1", "--skip", LONG];
    let passed = passed_in(&machine, &words)?;
    println!("     | skipped: {LONG}");
    Ok(Outcome::Counted { passed, skipped: 1 })
}

/// Those of the OCI runtime's tests that need what the virtual machine has not: strace, newuidmap, iproute2, crun, and
/// a tmpfs that maps ids (Linux 6.3).
const NEED_MORE: [&str; 5] = [
    "faults::",
    "rootless::",
    "network::",
    "the_baseline_is_cruns",
    "an_id_mapped_mount",
];

/// Runs the OCI runtime's tests in a virtual machine, where all of cgroup v2's controllers are.
pub fn oci_tests() -> anyhow::Result<Outcome> {
    let kernel = ["--test", "kernel"];
    let program = test_program("oci-runtime", &kernel, "kernel")?;
    let runtime = test_program("oci-runtime", &kernel, "oci-runtime")?;
    let machine = Machine::new()
        .with_program("tests", &program)
        .with_program("oci-runtime", &runtime);
    let mut words = vec![
        "env",
        "OCI_RUNTIME=/bin/oci-runtime",
        "tests",
        "--test-threads=2",
    ];
    words.extend(NEED_MORE.iter().flat_map(|name| ["--skip", *name]));
    let passed = passed_in(&machine, &words)?;
    println!("     | skipped: {}", NEED_MORE.join(", "));
    Ok(Outcome::Counted {
        passed,
        skipped: NEED_MORE.len(),
    })
}

/// How many tests a program in a machine passed; an error if one failed.
fn passed_in(machine: &Machine, words: &[&str]) -> anyhow::Result<usize> {
    let mut passed = None;
    let code = machine.run(words, TIMEOUT, |line| {
        println!("{line}");
        passed = passed.or_else(|| count(line));
    })?;
    ensure!(code == 0, "the tests ended with status {code}");
    passed.context("the tests said nothing of their result")
}

/// `test result: ok. 3 passed; ...` -> 3
fn count(line: &str) -> Option<usize> {
    line.strip_prefix("test result: ok. ")?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

/// The program NAME among those that cargo makes for a target's tests.
fn test_program(package: &str, target: &[&str], name: &str) -> anyhow::Result<PathBuf> {
    let args = [
        "test",
        "--no-run",
        "--package",
        package,
        "--message-format",
        "json-render-diagnostics",
    ];
    let output = run(cargo().args(args).args(target))?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name);
    let program = messages
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back();
    program.with_context(|| format!("cargo built no {name} for the tests of {package}"))
}
