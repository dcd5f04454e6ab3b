//! The CRI server as a process, for this crate's own tests: in the product the one binary starts it.
//!
//! `cri_server cri DIR` serves on `DIR/cri.sock`, with all of its files below `DIR`, in a network namespace of its own
//! (the keeper that it starts is in it too). It ends on SIGTERM.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cri_shim::Config;
use cri_shim::cni::PluginOutput;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let code = match (args.first().and_then(|word| word.to_str()), args.get(1)) {
        (Some("keeper"), _) => cri_shim::keeper::main(args[1..].to_vec()),
        (Some("scribe"), _) => cri_shim::scribe::main(args[1..].to_vec()),
        (Some("cri"), Some(dir)) => serve(Path::new(dir)),
        _ => 2,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn serve(dir: &Path) -> i32 {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    enter_network(&dir.join("host-netns"));
    let name = dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let config = Config {
        listen: dir.join("cri.sock"),
        root: dir.join("root"),
        state: dir.join("state"),
        netns_dir: dir.join("netns"),
        cni_conf_dir: dir.join("cni"),
        cni_bin_dirs: vec![PathBuf::from("/opt/cni/bin")],
        cdi_spec_dirs: vec![dir.join("cdi")],
        keeper_cgroup: None,
        cgroup_root: format!("/orlop-test-{}", name.trim_start_matches('.')),
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminated = signal(SignalKind::terminate()).unwrap();
        let stop = shutdown.clone();
        tokio::spawn(async move {
            terminated.recv().await;
            stop.cancel();
        });
        let (ready, _) = tokio::sync::oneshot::channel();
        match cri_shim::run(config, plugins, shutdown, ready).await {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error}");
                1
            }
        }
    })
}

/// Enters the test's network, as the host of its pods, or makes it: a successor finds its predecessor's.
fn enter_network(pin: &Path) {
    use linux::namespace::{self, NamespaceKind};
    if let Ok(found) = std::fs::File::open(pin) {
        namespace::join(found, &[NamespaceKind::Network]).unwrap();
        return;
    }
    namespace::unshare(&[NamespaceKind::Network]).unwrap();
    // The loopback device; its index is 1 in every network.
    let up = linux::netlink::LinkChange {
        up: Some(true),
        ..Default::default()
    };
    linux::netlink::Netlink::open()
        .unwrap()
        .change_link(1, &up)
        .unwrap();
    std::fs::File::create(pin).unwrap();
    let own = namespace::open_own(NamespaceKind::Network).unwrap();
    let detached = linux::mount::bind_fd(own, false).unwrap();
    linux::mount::attach_at(detached, pin).unwrap();
}

fn plugins(name: &str, env: &BTreeMap<String, String>, input: &[u8]) -> Option<PluginOutput> {
    let output = cni_plugins::run(name, env, input)?;
    Some(PluginOutput {
        code: output.code,
        stdout: output.stdout,
    })
}
