//! What the keeper costs. Ignored by default: figures of a loaded host mean nothing. `cargo nextest run --release
//! --run-ignored only figures`.

use super::node::*;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures; run it alone, with --release"]
async fn launch_latency_and_memory() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let mut times = Vec::new();
    for i in 0..200 {
        let id = format!("t{i}");
        let (plan, fds) = node.plan_of(&id, &["/bin/true"], false);
        let mut request = node.request_with(&id, plan, fds);
        request.log_path = None;
        let started = Instant::now();
        node.client.launch(&id, request).await.unwrap();
        let launched = started.elapsed();
        next_exit(&mut exits).await;
        times.push((started.elapsed(), launched));
        node.client.forget(&id).await.unwrap();
    }
    times.sort();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!(
        "launch to exit told: p50 {:?} p99 {:?} (launch alone {:?})",
        p50.0, p99.0, p50.1
    );
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
