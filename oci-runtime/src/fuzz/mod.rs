//! Documents from strangers, as plain bytes: each must be planned, or refused in words. For the tests, and for the fuzz
//! targets in `fuzz/`, which need the feature `fuzzing`.

use crate::document::{parse_process, parse_spec};
use crate::{LaunchResources, Rootfs, cgroup_resources, plan_launch};
use linux::cgroup::Layout;
use std::path::Path;

#[cfg(test)]
mod tests;

/// Reads and plans a `config.json`. Planning opens what the document names, and changes nothing on the host.
///
/// # Errors
/// Why it is refused.
pub fn config(text: &[u8], rootfs: &Path) -> Result<(), String> {
    let spec = parse_spec(text).map_err(|error| error.to_string())?;
    let linux = spec.linux().as_ref();
    if let Some(resources) = linux.and_then(|linux| linux.resources().as_ref()) {
        let limits = cgroup_resources(resources).map_err(|error| error.to_string())?;
        for layout in [Layout::Unified, Layout::Hybrid] {
            let _ = limits.settings(layout);
        }
    }
    let resources = LaunchResources::new("fuzz", Rootfs::Path(rootfs.to_owned()));
    plan_launch(&spec, resources)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Reads the process of an `exec --process`.
///
/// # Errors
/// Why it is refused.
pub fn process(text: &[u8]) -> Result<(), String> {
    let process = parse_process(text).map_err(|error| error.to_string())?;
    crate::plan::plan_process(&process, false)
        .map(drop)
        .map_err(|error| error.to_string())
}
