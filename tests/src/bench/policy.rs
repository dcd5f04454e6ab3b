//! Network policies at 10, 1,000 and 10,000, and pods of two nodes by VXLAN beside a plain route: the proxy's own
//! tests make the networks and take the figures.

use std::process::Command;

use anyhow::ensure;

/// Runs them and prints what they say.
pub fn run() -> anyhow::Result<()> {
    for test in ["policy", "route"] {
        let words = [
            "test",
            "--quiet",
            "--release",
            "-p",
            "proxy",
            "--test",
            test,
        ];
        let words = words
            .into_iter()
            .chain(["measure", "--", "--ignored", "--nocapture"]);
        let status = Command::new(env!("CARGO")).args(words).status()?;
        ensure!(status.success(), "the measurements of {test} failed");
    }
    Ok(())
}
