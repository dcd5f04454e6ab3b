//! What the keeper costs. Ignored by default: figures of a loaded host mean nothing. `cargo xtask bench oci` runs the
//! first with its own bundle.

use super::node::*;
use linux::cgroup::{Cgroup, Hierarchies};
use linux::mount::{Overlay, overlay};
use oci_runtime::{LaunchResources, Rootfs, apply_resources, plan_launch};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// From a bundle's spec to the word that its program has ended and its cgroup is gone, as the command line's `run` does
/// it: the plan, cgroup and overlay of each launch are its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures; run it alone, with --release, and a bundle in BUNDLE"]
async fn launch_of_a_bundle() {
    let bundle = std::env::var_os("BUNDLE").expect("BUNDLE names a bundle's directory");
    let bundle = Path::new(&bundle);
    let text = std::fs::read(bundle.join("config.json")).unwrap();
    let spec: oci_spec::runtime::Spec = serde_json::from_slice(&text).unwrap();
    let hierarchies = Arc::new(Hierarchies::discover().unwrap());
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let mut times = Vec::new();
    for i in 0..200 {
        let id = format!("t{i}");
        let started = Instant::now();
        let path = format!("/orlop-figures-{}/{id}", std::process::id());
        let cgroup = Cgroup::at(hierarchies.clone(), &path).unwrap();
        cgroup.ensure().unwrap();
        apply_resources(&cgroup, &spec).unwrap();
        let layers = Overlay {
            lowers: &[&bundle.join("image")],
            upper: Some((&bundle.join("upper"), &bundle.join("work"))),
            volatile: false,
        };
        let root = Rootfs::Detached(overlay(layers).unwrap());
        let mut resources = LaunchResources::new(&id, root);
        resources.cgroup = Some(cgroup.clone());
        let (plan, fds) = plan_launch(&spec, resources).unwrap();
        let mut request = node.request_with(&id, plan, fds);
        request.log_path = None;
        node.client.launch(&id, request).await.unwrap();
        next_exit(&mut exits).await;
        cgroup.delete().unwrap();
        times.push(started.elapsed());
        node.client.forget(&id).await.unwrap();
    }
    let all = Cgroup::at(
        hierarchies,
        &format!("/orlop-figures-{}", std::process::id()),
    )
    .unwrap();
    all.delete().unwrap();
    times.sort();
    println!(
        "keeper's launch, ms: {:.3}",
        times[times.len() / 2].as_secs_f64() * 1000.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures; run it alone, with --release"]
async fn memory_of_containers() {
    let node = Node::start().await;
    let before = memory(&node);
    let count = 100;
    for i in 0..count {
        node.run(&format!("m{i}"), "sleep 1000").await;
    }
    let after = memory(&node);
    println!(
        "keeper and scribe, private / PSS kB: {before:?} empty, {after:?} with {count} containers"
    );
    println!(
        "per container: {} B",
        (after.1 as i64 - before.1 as i64) * 1024 / count
    );
}

/// Private and proportional memory of both processes, in kB.
fn memory(node: &Node) -> (u64, u64) {
    let of = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let field = |name: &str| -> u64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
                .sum()
        };
        (field("Private_Dirty:"), field("Pss:"))
    };
    let (keeper, scribe) = (of(node.keeper_pid()), of(node.scribe_pid().unwrap()));
    (keeper.0 + scribe.0, keeper.1 + scribe.1)
}
