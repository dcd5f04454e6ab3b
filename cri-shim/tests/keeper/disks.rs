//! Log disks that are full, or that answer nothing.

use super::node::*;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_disk_stops_a_log_and_no_program() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let mut request = node.request("full", "seq 1 100000; exit 3");
    request.log_path = Some(PathBuf::from("/dev/full"));
    node.client.launch("full", request).await.unwrap();
    node.run("other", "seq 1 1000; exit 4").await;
    let mut ended = [next_exit(&mut exits).await, next_exit(&mut exits).await];
    ended.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!((ended[0].id.as_str(), ended[0].status), ("full", exited(3)));
    assert_eq!(
        (ended[1].id.as_str(), ended[1].status),
        ("other", exited(4))
    );
    assert_eq!(node.log_text("other").lines().count(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_disk_that_answers_nothing_holds_up_logs_and_nothing_else() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    // Opening a FIFO for writing waits for its reader, as a frozen disk waits for its thaw.
    let frozen = node.dir.path().join("frozen.log");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &frozen,
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    let mut request = node.request("frozen", "echo lost in the ice; sleep 100");
    request.log_path = Some(frozen.clone());
    let container = node.client.launch("frozen", request).await.unwrap();
    let started = Instant::now();
    node.run("other", "seq 1 1000; exit 4").await;
    let exit = next_exit(&mut exits).await;
    assert_eq!((exit.id.as_str(), exit.status), ("other", exited(4)));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(node.client.list().await.unwrap().len(), 2);
    kill(container.pid);
    assert_eq!(next_exit(&mut exits).await.status.signal, Some(9));
    let thaw = std::fs::File::options()
        .read(true)
        .write(true)
        .open(frozen)
        .unwrap();
    eventually("the other's log is whole after the thaw", || {
        (node.log_text("other").lines().count() == 1000).then_some(())
    })
    .await;
    drop(thaw);
}
