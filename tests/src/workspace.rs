//! Where things are, and how programs are run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};

/// The workspace's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Downloaded tools and test images, kept between runs.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// The release build of `orlop`, which a test is to use as its user would.
pub fn orlop() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("ORLOP") {
        return Ok(program.into());
    }
    let output = run(cargo().args([
        "build",
        "--release",
        "--package",
        "orlop",
        "--message-format",
        "json-render-diagnostics",
    ]))?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = program
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back();
    program.context("cargo built no program")
}

/// Cargo, in the workspace.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs a program to its end; an error holds all that it printed.
pub fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let text = || {
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        )
    };
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        text()
    );
    Ok(output)
}

/// Runs a program whose output is shown as it comes.
pub fn show(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
