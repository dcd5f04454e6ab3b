//! What this program is called as: one of several programs, by its own name or by its first word.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs what must run without threads; None if it is something else.
pub fn before_threads(words: &[OsString]) -> Option<ExitCode> {
    let called = words
        .first()
        .map(Path::new)?
        .file_name()?
        .to_string_lossy()
        .into_owned();
    if matches!(called.as_str(), "runc" | "orlop-runtime") {
        return Some(code(oci_runtime::cli::main(words.to_vec())));
    }
    let texts = |from: usize| -> Vec<String> {
        let words = words.iter().skip(from);
        words
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    };
    if is_plugin(&called) {
        return Some(code(cni_plugins::main(&called, &texts(1))));
    }
    let rest = || words.get(1..).unwrap_or_default().to_vec();
    match words.get(1)?.to_str()? {
        "keeper" => Some(code(cri_shim::keeper::main(rest()))),
        "scribe" => Some(code(cri_shim::scribe::main(rest()))),
        "runtime" => Some(code(oci_runtime::cli::main(rest()))),
        "cni" => {
            let name = words.get(2)?.to_str()?;
            if name == "dhcp-daemon" {
                return Some(code(cni_plugins::dhcp_daemon(&texts(3))));
            }
            is_plugin(name).then(|| code(cni_plugins::main(name, &texts(3))))
        }
        _ => None,
    }
}

fn code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

fn is_plugin(name: &str) -> bool {
    cni_plugins::names().any(|plugin| plugin == name)
}
