//! Who may be killed, and what remains.

use super::node::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_is_lost_or_doubled_when_the_scribe_is_killed_again_and_again() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    node.run("a", "seq 1 100000; sleep 0.3; seq 100001 200000")
        .await;
    let mut last = None;
    for round in 0..8 {
        let pid = node.wait_for_scribe(last).await;
        tokio::time::sleep(std::time::Duration::from_micros(1_500 * round)).await;
        kill(pid);
        last = Some(pid);
    }
    assert_eq!(next_exit(&mut exits).await.status, exited(0));
    let expected: String = (1..=200_000).map(|i| format!("{i}\n")).collect();
    let text = eventually("the log is whole", || {
        Some(node.log_text("a")).filter(|text| text.len() >= expected.len())
    })
    .await;
    assert!(text == expected, "the log differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_finds_the_same_containers_and_missed_exits() {
    let node = Node::start().await;
    let running = node.run("a", "sleep 100").await;
    {
        let other = connect(node.dir.path()).await;
        other
            .launch("b", node.request("b", "exit 5"))
            .await
            .unwrap();
    } // gone, as a killed CRI server is
    let back = connect(node.dir.path()).await;
    let mut exits = back.exits(0);
    let exit = next_exit(&mut exits).await;
    assert_eq!((exit.id.as_str(), exit.status), ("b", exited(5)));
    let held = back.list().await.unwrap();
    assert_eq!(
        held.iter().map(|held| held.id.as_str()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert_eq!(held[0].pid, running.pid);
    assert!(held[0].pidfd.is_some() && held[1].exit.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_outlive_a_killed_keeper_and_its_successor_adopts_them() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let script =
        "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; exit 9";
    let container = node.run("a", script).await;
    let ended = node.run("b", "exit 4").await;
    let first = next_exit(&mut exits).await;
    assert_eq!((first.id.as_str(), first.status), ("b", exited(4)));
    let keeper = node.keeper_pid();
    kill(keeper);
    eventually("the keeper is gone", || (!is_running(keeper)).then_some(())).await;
    assert!(is_running(container.pid) && !is_running(ended.pid));
    let held = loop {
        match node.client.list().await {
            Ok(held) => break held,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    };
    assert_eq!(held.len(), 2);
    assert_eq!((held[0].pid, held[0].exit.clone()), (container.pid, None));
    assert_eq!(held[1].exit, Some(first.clone()));
    let exit = next_exit(&mut exits).await;
    assert_eq!(exit.id, "a");
    assert!(exit.seq > first.seq);
    assert_eq!(exit.status, exited(9));
    assert_eq!(
        node.log_text("a"),
        (0..400).map(|i| format!("line {i}\n")).collect::<String>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_ended_between_two_keepers_is_reported_unknown() {
    let node = Node::start().await;
    let container = node.run("a", "sleep 100").await;
    // Another directory's client would start the successor at once: here nobody does until the container has ended.
    let (dir, keeper) = (node.dir.path().to_owned(), node.keeper_pid());
    let pidfd = container.pidfd.clone();
    let stopped = linux::pidfd::open(keeper).unwrap();
    linux::pidfd::send_signal(&stopped, 19).unwrap();
    linux::pidfd::kill(&pidfd).unwrap();
    kill(keeper);
    let client = connect(&dir).await;
    let mut exits = client.exits(0);
    let exit = next_exit(&mut exits).await;
    assert_eq!(exit.id, "a");
    assert!(
        exit.status.unknown || exit.status.signal == Some(9),
        "{:?}",
        exit.status
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keeper_is_upgraded_in_place_and_nobody_notices() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let mut request = node.request("a", "while read line; do echo got $line; done; exit 6");
    (request.stdin, request.stdin_once) = (true, true);
    let container = node.client.launch("a", request).await.unwrap();
    node.run("ended", "exit 3").await;
    let ended = next_exit(&mut exits).await;
    let attached = node.client.attach("a").await.unwrap();
    attached.write(b"before\n").await.unwrap();
    let (keeper, scribe) = (node.keeper_pid(), node.scribe_pid());
    for _ in 0..3 {
        node.client.upgrade(&node.program()).await.unwrap();
    }
    assert_eq!((node.keeper_pid(), node.scribe_pid()), (keeper, scribe));
    let held = node.client.list().await.unwrap();
    assert_eq!(held.len(), 2);
    assert_eq!((held[0].pid, held[0].exit.clone()), (container.pid, None));
    assert_eq!(held[1].exit, Some(ended.clone()));
    attached.write(b"after\n").await.unwrap();
    attached.close_stdin();
    let exit = next_exit(&mut exits).await;
    assert_eq!((exit.id.as_str(), exit.status), ("a", exited(6)));
    assert!(exit.seq > ended.seq);
    assert_eq!(node.log_text("a"), "got before\ngot after\n");
    node.run("later", "exit 1").await;
    assert_eq!(next_exit(&mut exits).await.status, exited(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_can_not_take_over_is_refused() {
    let node = Node::start().await;
    let container = node.run("a", "sleep 100").await;
    for program in ["/bin/true", "/bin/false", "/etc/passwd"] {
        let result = node.client.upgrade(std::path::Path::new(program)).await;
        // `true` says yes to the check and then isn't a keeper: nothing can be done about a program that lies.
        if program != "/bin/true" {
            result.unwrap_err();
        }
        if program == "/bin/true" {
            let held = loop {
                match node.client.list().await {
                    Ok(held) => break held,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                }
            };
            assert_eq!(held[0].pid, container.pid, "a successor has adopted it");
        }
    }
    assert!(is_running(container.pid));
    assert_eq!(node.client.list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_outlives_its_keeper_and_what_ended_unseen_is_told_by_the_clients_pidfd() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let (plan, fds) = node.plan("t", "while read line; do echo got $line; done", true);
    let mut request = node.request_with("t", plan, fds);
    (request.terminal, request.stdin) = (true, true);
    node.client.launch("t", request).await.unwrap();
    let gone = node.run("gone", "sleep 100").await;
    let keeper = node.keeper_pid();
    // Both in one moment, so that no keeper sees the end.
    linux::pidfd::send_signal(linux::pidfd::open(keeper).unwrap(), 19).unwrap();
    kill(gone.pid);
    kill(keeper);
    let exit = next_exit(&mut exits).await;
    assert_eq!(exit.id, "gone");
    assert!(
        exit.status.signal == Some(9) || exit.status.unknown,
        "{:?}",
        exit.status
    );
    let attached = node.client.attach("t").await.unwrap();
    attached.write(b"still\n").await.unwrap();
    eventually("the terminal answers", || {
        node.log_text("t").contains("got still").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keeper_has_a_small_mount_table_and_a_program_that_nobody_can_write() {
    let node = Node::start().await;
    let keeper = node.keeper_pid();
    for program in [
        format!("/proc/{keeper}/exe"),
        format!("/proc/{}/exe", node.wait_for_scribe(None).await),
    ] {
        let error = std::fs::File::options()
            .write(true)
            .open(&program)
            .unwrap_err();
        let (read_only, busy) = (30, 26);
        assert!(
            [read_only, busy].contains(&error.raw_os_error().unwrap()),
            "{program}: {error}"
        );
    }
    let table = std::fs::read_to_string(format!("/proc/{keeper}/mountinfo")).unwrap();
    let cgroups = table
        .lines()
        .filter(|line| line.contains("/sys/fs/cgroup"))
        .count();
    assert!(table.lines().count() - cgroups < 15, "{table}");
    node.run("a", "true").await;
}
