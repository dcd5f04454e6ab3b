//! The keeper and the scribe as processes, for this crate's own tests: in the product the one binary starts them.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let code = match args.first().and_then(|word| word.to_str()) {
        Some("keeper") => cri_shim::keeper::main(args[1..].to_vec()),
        Some("scribe") => cri_shim::scribe::main(args[1..].to_vec()),
        _ => 2,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
