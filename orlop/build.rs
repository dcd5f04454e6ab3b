//! Compiles the demo's server, a static program without dependencies, so that it can be put into an image.

use std::path::PathBuf;
use std::process::Command;
use std::{env, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=demo/main.rs");
    // What comes before the C library (`linux/src/entry.rs`).
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        println!("cargo:rustc-link-arg-bins=-Wl,--entry=orlop_entry");
    }
    let variable = |name: &str| env::var(name).map_err(io::Error::other);
    let program = PathBuf::from(variable("OUT_DIR")?).join("demo");
    let status = Command::new(variable("RUSTC")?)
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "demo",
            "--target",
            &variable("TARGET")?,
        ])
        .args([
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
            "-C",
            "lto=fat",
        ])
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "relocation-model=static",
        ])
        .arg("-o")
        .arg(&program)
        .arg("demo/main.rs")
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!(
            "the demo's server did not compile: {status}"
        )));
    }
    println!("cargo:rustc-env=DEMO_PROGRAM={}", program.display());
    Ok(())
}
