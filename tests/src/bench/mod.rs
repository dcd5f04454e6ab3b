//! `cargo xtask bench`: our parts beside their counterparts from Debian's packages, in one run, as ratios.
//!
//! Machines differ and drift: each figure is a median over rounds in which the programs take turns, and what counts
//! is the ratio.

mod cni;
mod image;
mod launch;
mod pods;
mod policy;
mod proxy;

pub use launch::busybox;

use anyhow::Context;

use crate::setup;
use crate::workspace::orlop;

/// Runs the benchmarks whose names contain a word of `names`; all if there is none.
pub fn run(names: &[&str]) -> anyhow::Result<bool> {
    setup::all()?;
    let program = orlop()?;
    let wanted = |name: &str| names.is_empty() || names.iter().any(|word| name.contains(word));
    if wanted("oci") {
        launch::run(&program).context("bench oci")?;
    }
    if wanted("cri") {
        pods::run(&program).context("bench cri")?;
    }
    if wanted("cni") {
        cni::run(&program).context("bench cni")?;
    }
    if wanted("image") {
        image::run(&program).context("bench image")?;
    }
    if wanted("policy") {
        policy::run().context("bench policy")?;
    }
    if wanted("proxy") {
        proxy::run(&program).context("bench proxy")?;
    }
    Ok(true)
}

/// One figure of several programs, ours first.
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Program and median; None if it isn't installed or can't run here, and why.
    pub values: Vec<(String, Result<f64, String>)>,
}

impl Row {
    /// Prints the figures, each with its ratio to ours.
    pub fn print(&self) {
        let ours = self
            .values
            .first()
            .and_then(|(_, value)| value.as_ref().ok())
            .copied();
        println!("{}", self.name);
        for (index, (program, value)) in self.values.iter().enumerate() {
            match (value, ours) {
                (Ok(value), _) if index == 0 => {
                    println!("  {program:<14} {value:>10.2} {}", self.unit)
                }
                (Ok(value), Some(ours)) if ours > 0.0 => {
                    println!(
                        "  {program:<14} {value:>10.2} {}   {:.2} times ours",
                        self.unit,
                        value / ours
                    );
                }
                (Ok(value), _) => println!("  {program:<14} {value:>10.2} {}", self.unit),
                (Err(why), _) => println!("  {program:<14} not measured: {why}"),
            }
        }
    }
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
