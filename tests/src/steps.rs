//! `cargo xtask test`: formatting, lints, the architecture, the crates' own tests, then the scenarios on the host
//! and in virtual machines.

use crate::leak::Snapshot;
use crate::tally::{Outcome, Tally};
use crate::workspace::{cargo, orlop, show};
use crate::{arrows, e2e, setup, vm};

/// Runs what was asked for (all, if nothing); whether it all held.
pub fn test(names: &[&str]) -> anyhow::Result<bool> {
    setup::all()?;
    let mut tally = Tally::new(names);
    tally.run("format", || {
        show(cargo().args(["fmt", "--all", "--check"]))?;
        Ok(Outcome::Passed)
    });
    tally.run("lint", || {
        show(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ]))?;
        Ok(Outcome::Passed)
    });
    tally.run("architecture", arrows::check);
    tally.run("crates", crates);
    tally.run("vm-kernel", vm::kernel_tests);
    tally.run("vm-oci", vm::oci_tests);
    let scenarios = e2e::scenarios();
    if scenarios.iter().any(|scenario| tally.wants(scenario.name)) {
        let program = orlop()?;
        for scenario in scenarios {
            tally.run(scenario.name, || {
                let before = Snapshot::take();
                let outcome = (scenario.run)(&program)?;
                if !scenario.shares_cluster {
                    before.nothing_new()?;
                }
                Ok(outcome)
            });
        }
        if e2e::shared_cluster_runs() {
            tally.always("kubectl-end", e2e::end_shared_cluster);
        }
    }
    Ok(tally.close())
}

/// The crates' own tests, by nextest; its summary line is counted in.
fn crates() -> anyhow::Result<Outcome> {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let mut nextest = cargo();
    nextest.args([
        "nextest",
        "run",
        "--workspace",
        "--no-fail-fast",
        // Tests of the kernel share this host with others' work; one that needs a second try is named.
        "--retries",
        "2",
        "--final-status-level",
        "flaky",
        "--color",
        "never",
        "--status-level",
        "slow",
    ]);
    let mut child = nextest.stderr(Stdio::piped()).spawn()?;
    let mut summary = String::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            println!("     | {line}");
            if line.trim_start().starts_with("Summary") {
                summary = line;
            }
        }
    }
    let status = child.wait()?;
    anyhow::ensure!(
        status.success(),
        "the crates' tests: {status}; {}",
        summary.trim()
    );
    Ok(Outcome::Counted {
        passed: count(&summary, "passed"),
        skipped: count(&summary, "skipped"),
    })
}

/// The number before a word of nextest's summary, `Summary [1.2s] 10 tests run: 9 passed (1 slow), 1 skipped`.
fn count(summary: &str, word: &str) -> usize {
    let words: Vec<&str> = summary.split_whitespace().collect();
    let at = words
        .iter()
        .position(|found| found.trim_end_matches(',') == word);
    at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn nextests_summary_is_counted() {
        let summary =
            "     Summary [   1.234s] 12 tests run: 11 passed (2 slow), 1 failed, 3 skipped";
        assert_eq!(
            (count(summary, "passed"), count(summary, "skipped")),
            (11, 3)
        );
    }
}
