//! The plugins alone: links to this program under their names are what a runtime executes in the tests.

fn main() {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&called)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    std::process::exit(cni_plugins::main(
        &name,
        &std::env::args().skip(1).collect::<Vec<_>>(),
    ));
}
