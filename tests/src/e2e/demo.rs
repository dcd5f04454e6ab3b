//! `orlop up --demo --exit`: it proves itself, ends with 0, and leaves nothing.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::tally::Outcome;
use crate::workspace::target;

/// The demo in a folder of its own.
pub fn demo(program: &Path) -> anyhow::Result<Outcome> {
    let root = target()
        .join("e2e")
        .join(format!("demo-{}", std::process::id()));
    let output = Command::new(program)
        .args(["up", "--demo", "--exit", "--root"])
        .arg(&root)
        .output()?;
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    stdout
        .lines()
        .chain(stderr.lines())
        .for_each(|line| println!("     | {line}"));
    ensure!(
        output.status.success(),
        "orlop up --demo --exit ended with {}",
        output.status
    );
    let proved = stdout
        .lines()
        .filter(|line| line.trim_start().starts_with("ok "))
        .count();
    ensure!(proved >= 11, "only {proved} claims were proved");
    ensure!(
        !root.exists(),
        "the demo left {}, which it made",
        root.display()
    );
    Ok(Outcome::Passed)
}
