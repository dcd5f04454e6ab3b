//! The dependency arrows between our crates, as the architecture draws them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};

use crate::tally::Outcome;
use crate::workspace::{cargo, run};

/// Who may import whom. What is not here may not be.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("linux", &[]),
    ("journal", &[]),
    ("api", &[]),
    ("cri-api", &[]),
    ("oci-runtime", &["linux"]),
    ("cri-shim", &["cri-api", "journal", "linux", "oci-runtime"]),
    ("cni-plugins", &["linux"]),
    ("proxy", &["api", "linux"]),
    ("kubelet", &["api", "cri-api", "journal"]),
    ("controlplane", &["api"]),
    (
        "orlop",
        &[
            "api",
            "cni-plugins",
            "controlplane",
            "cri-api",
            "cri-shim",
            "kubelet",
            "linux",
            "oci-runtime",
            "proxy",
        ],
    ),
    ("tests", &[]),
];

/// Compares what each crate imports with what it may.
pub fn check() -> anyhow::Result<Outcome> {
    let output = run(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let names: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let may = allowed
            .get(name)
            .with_context(|| format!("the crate {name} is not in the architecture"))?;
        let imports = package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|d| d["kind"] != "dev");
        for import in imports
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|import| names.contains(import))
        {
            ensure!(
                may.contains(&import),
                "{name} imports {import}, which the architecture does not allow"
            );
        }
    }
    Ok(Outcome::Passed)
}
