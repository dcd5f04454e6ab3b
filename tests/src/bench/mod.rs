//! `cargo xtask bench`: our parts beside their counterparts from Debian's packages, in one run, as ratios.

use crate::setup;

/// Runs the benchmarks whose names contain a word of `names`; all if there is none.
pub fn run(_names: &[&str]) -> anyhow::Result<bool> {
    setup::all()?;
    anyhow::bail!("no benchmark is there yet")
}
