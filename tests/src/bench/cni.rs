//! ADD and DEL of bridge, host-local and portmap, and the way from pod to pod, against Debian's reference plugins.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::Row;
use crate::workspace::{cargo, run as run_program, target};

const ROUNDS: &str = "7";
const PODS: &str = "20";
const REFERENCE: &str = "/usr/lib/cni";
/// Ours first; as `examples/load.rs` of the plugins names them.
const IN_PROCESS: &str = "in process";
const EXECUTED: &str = "orlop";
const THEIRS: &str = "reference";
const CABLE: &str = "plain veth";

/// Prints the rows.
pub fn run(program: &Path) -> anyhow::Result<()> {
    let folder = target()
        .join("bench")
        .join(format!("cni-{}", std::process::id()));
    run_program(Command::new(program).args(["cni", "install"]).arg(&folder))?;
    let output = run_program(
        cargo()
            .args(["run", "--quiet", "--release", "--package", "cni-plugins"])
            .args(["--example", "load", "--", ROUNDS, PODS])
            .arg(format!("{EXECUTED}={}", folder.display()))
            .arg(format!("{THEIRS}={REFERENCE}")),
    );
    fs::remove_dir_all(&folder)?;
    let figures: Value =
        serde_json::from_slice(&output?.stdout).context("read what the load measured")?;
    let chain = "bridge, host-local and portmap";
    let rows = [
        (
            format!("ADD of {chain}, median"),
            "add",
            "ms",
            &[IN_PROCESS, EXECUTED, THEIRS],
        ),
        (
            format!("DEL of {chain}, median"),
            "del",
            "ms",
            &[IN_PROCESS, EXECUTED, THEIRS],
        ),
        (
            "pod to pod on one node: one TCP stream".to_owned(),
            "throughput",
            "Gbit/s",
            &[EXECUTED, THEIRS, CABLE],
        ),
        (
            "pod to pod on one node: TCP round trip, median".to_owned(),
            "latency",
            "µs",
            &[EXECUTED, THEIRS, CABLE],
        ),
    ];
    for (name, field, unit, sets) in rows {
        let value = |set: &&str| {
            let value = figures[field][*set].as_f64();
            (
                (*set).to_owned(),
                value.ok_or_else(|| format!("no {field}")),
            )
        };
        Row {
            name,
            unit,
            values: sets.iter().map(value).collect(),
        }
        .print();
    }
    Ok(())
}
