//! `cargo xtask`: sets up what the tests need, and runs all of them.
//!
//! ```text
//! cargo xtask test [NAME…]     everything, or the steps and scenarios whose names contain a word
//! cargo xtask bench [NAME…]    each component beside its counterpart, as ratios
//! cargo xtask vm COMMAND…      one command in a virtual machine that has `orlop`
//! cargo xtask setup            only what both need: Debian packages, kubectl, the VM's kernel
//! ```

mod arrows;
mod bench;
mod cluster;
mod e2e;
mod leak;
mod setup;
mod steps;
mod tally;
mod vm;
mod workspace;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["test", names @ ..] => steps::test(names),
        ["bench", names @ ..] => bench::run(names),
        ["vm", command @ ..] if !command.is_empty() => vm::command(command),
        ["setup"] => setup::all().map(|()| true),
        _ => {
            eprintln!("usage: cargo xtask test [NAME…] | bench [NAME…] | vm COMMAND… | setup");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
