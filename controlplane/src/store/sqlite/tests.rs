use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use super::*;
use crate::store::suite;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    suite::run(|| {
        count.set(count.get() + 1);
        Sqlite::open(&folder.path().join(format!("{}.db", count.get()))).unwrap()
    })
    .await;
}

#[tokio::test]
async fn the_revision_does_not_fall_at_a_restart_after_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let last = {
        let store = Sqlite::open(&path).unwrap();
        let first = store.create("/a", Bytes::from_static(b"1")).await.unwrap();
        let last = store
            .delete("/a", Bytes::from_static(b"1"), first)
            .await
            .unwrap();
        store.compact(last).await.unwrap();
        last
    };
    assert_eq!(Sqlite::open(&path).unwrap().revision().await.unwrap(), last);
}

#[tokio::test]
async fn only_its_user_may_read_it_and_only_one_process_opens_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = Sqlite::open(&path).unwrap();
    store.create("/a", Bytes::from_static(b"1")).await.unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        assert_eq!(
            entry.unwrap().metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    assert!(matches!(Sqlite::open(&path), Err(OpenError::Busy { .. })));
}

/// The victim of the test below, in a process of its own: writes, and prints each key once acknowledged.
#[tokio::test]
#[ignore = "started by an_acknowledged_write_survives_kill_9"]
async fn writes_until_killed() {
    let Ok(path) = std::env::var("ORLOP_TEST_STORE") else {
        return;
    };
    let store = Sqlite::open(Path::new(&path)).unwrap();
    for count in 0.. {
        let key = format!("/key/{count}");
        store
            .create(&key, Bytes::from(vec![b'x'; 1024]))
            .await
            .unwrap();
        println!("wrote {key}");
    }
}

#[tokio::test]
async fn an_acknowledged_write_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::sqlite::tests::writes_until_killed",
            "--ignored",
            "--nocapture",
        ])
        .env("ORLOP_TEST_STORE", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    for line in lines {
        let line = line.unwrap();
        let Some((_, key)) = line.split_once("wrote ") else {
            continue;
        };
        acknowledged.push(key.to_owned());
        if acknowledged.len() == 200 {
            victim.kill().unwrap(); // SIGKILL; what is in the pipe is still read
        }
    }
    victim.wait().unwrap();
    assert!(acknowledged.len() >= 200);
    let store = Sqlite::open(&path).unwrap();
    for key in acknowledged {
        assert!(
            store.get(&key).await.unwrap().is_some(),
            "{key} was acknowledged and is lost"
        );
    }
}
