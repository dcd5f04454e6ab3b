//! The OCI runtime alone: what `orlop runtime` does, without the rest of `orlop`. The kernel tests run it.

fn main() {
    std::process::exit(oci_runtime::cli::main(std::env::args_os().collect()));
}
