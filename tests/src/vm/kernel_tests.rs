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
    let program = test_program("cni-plugins")?;
    let machine = Machine::new()
        .with_program("tests", &program)
        .with_modules(&MODULES);
    let mut passed = None;
    let code = machine.run(
        &["tests", "--ignored", "--test-threads=1", "--skip", LONG],
        TIMEOUT,
        |line| {
            println!("{line}");
            passed = passed.or_else(|| count(line));
        },
    )?;
    ensure!(code == 0, "the tests ended with status {code}");
    let passed = passed.context("the tests said nothing of their result")?;
    println!("     | skipped: {LONG}");
    Ok(Outcome::Counted { passed, skipped: 1 })
}

/// `test result: ok. 3 passed; ...` -> 3
fn count(line: &str) -> Option<usize> {
    line.strip_prefix("test result: ok. ")?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

/// The program of a crate's unit tests.
fn test_program(package: &str) -> anyhow::Result<PathBuf> {
    let args = [
        "test",
        "--no-run",
        "--lib",
        "--package",
        package,
        "--message-format",
        "json-render-diagnostics",
    ];
    let output = run(cargo().args(args))?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = messages
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back();
    program.with_context(|| format!("cargo built no tests of {package}"))
}
