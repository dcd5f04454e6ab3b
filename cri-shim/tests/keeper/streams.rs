//! Launching, exits, logs, exec, attach, terminals.

use super::node::*;
use cri_shim::keeper::{ExecRequest, ExecStdio, KeeperError, Stream};
use oci_runtime::ExecTarget;
use std::io::Read;
use std::os::fd::OwnedFd;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_is_told_with_its_code_after_the_log_is_whole() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    node.run("a", "echo out; echo err >&2; printf unfinished; exit 42")
        .await;
    let exit = next_exit(&mut exits).await;
    assert_eq!(
        (exit.id.as_str(), exit.status, exit.oom),
        ("a", exited(42), false)
    );
    let mut lines: Vec<_> = std::fs::read_to_string(node.log_path("a"))
        .unwrap()
        .lines()
        .map(|l| l[31..].to_owned())
        .collect();
    lines.sort();
    assert_eq!(
        lines,
        ["stderr F err", "stdout F out", "stdout P unfinished"]
    );
    node.client.forget("a").await.unwrap();
    assert!(node.client.list().await.unwrap().is_empty());
    assert!(!node.dir.path().join("keeper/containers/a").exists());
    node.client.shutdown().await.unwrap();
    assert!(!node.dir.path().join("keeper").exists());
    assert!(
        matches!(node.client.list().await, Err(KeeperError::Disconnected)),
        "and no keeper is started again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_launch_tells_the_childs_error_and_leaves_nothing() {
    let node = Node::start().await;
    let (plan, fds) = node.plan_of("a", &["/no/such/program"], false);
    let request = node.request_with("a", plan, fds);
    let error = node.client.launch("a", request).await.unwrap_err();
    let KeeperError::Launch(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.exit_code, 127, "{error}");
    assert!(node.client.list().await.unwrap().is_empty());
    node.client.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_launches_at_once_all_end_up_held() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let ids: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
    let launches = ids.iter().map(|id| {
        node.client
            .launch(id, node.request(id, &format!("echo {id}")))
    });
    for result in futures::future::join_all(launches).await {
        result.unwrap();
    }
    let mut seqs = Vec::new();
    for _ in &ids {
        let exit = next_exit(&mut exits).await;
        assert_eq!(exit.status, exited(0));
        assert_eq!(node.log_text(&exit.id), format!("{}\n", exit.id));
        seqs.push(exit.seq);
    }
    assert!(seqs.is_sorted());
    let mut late = node.client.exits(seqs[10]);
    assert_eq!(next_exit(&mut late).await.seq, seqs[10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_launch_joins_the_first() {
    let node = Node::start().await;
    let first = node.run("a", "sleep 100").await;
    let second = node.run("a", "sleep 200").await;
    assert_eq!(first.pid, second.pid);
    kill(first.pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_outruns_the_log_loses_nothing() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    node.run("a", "seq 1 100000").await;
    next_exit(&mut exits).await;
    assert!(node.log_text("a") == (1..=100_000).map(|i| format!("{i}\n")).collect::<String>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reopen_log_leaves_the_renamed_file_alone() {
    let node = Node::start().await;
    let mut request = node.request("a", "while read line; do echo $line; done");
    request.stdin = true;
    node.client.launch("a", request).await.unwrap();
    let attached = node.client.attach("a").await.unwrap();
    attached.write(b"before\n").await.unwrap();
    eventually("the line is logged", || {
        node.log_text("a").contains("before").then_some(())
    })
    .await;
    let rotated = node.log_path("a").with_extension("rotated");
    std::fs::rename(node.log_path("a"), &rotated).unwrap();
    node.client.reopen_log("a").await.unwrap();
    attached.write(b"after\n").await.unwrap();
    eventually("the line is logged", || {
        node.log_text("a").contains("after").then_some(())
    })
    .await;
    assert_eq!(node.log_text("a"), "after\n");
    assert_eq!(contents(&std::fs::read(rotated).unwrap()), "before\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stdin_once_ends_with_the_first_attached_client_and_output_arrives_whole() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let mut request = node.request("a", "cat; echo done >&2");
    (request.stdin, request.stdin_once) = (true, true);
    node.client.launch("a", request).await.unwrap();
    let attached = node.client.attach("a").await.unwrap();
    let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
    let write = async {
        attached.write(text.as_bytes()).await.unwrap();
        attached.close_stdin();
    };
    let read = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some((stream, data)) = attached.read().await.unwrap() {
            match stream {
                Stream::Stdout => out.extend_from_slice(&data),
                Stream::Stderr => err.extend_from_slice(&data),
            }
        }
        (out, err)
    };
    let ((), (out, err)) = tokio::time::timeout(PATIENCE, async { tokio::join!(write, read) })
        .await
        .unwrap();
    assert!(out == text.as_bytes());
    assert_eq!(err, b"done\n");
    assert_eq!(next_exit(&mut exits).await.status, exited(0));
    // Between the two streams there is no order.
    let log = node.log_text("a").replacen("done\n", "", 1);
    assert!(log == text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attached_client_that_reads_nothing_does_not_stop_the_log() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let mut request = node.request("a", "cat >/dev/null; seq 1 300000");
    (request.stdin, request.stdin_once) = (true, true);
    node.client.launch("a", request).await.unwrap();
    let stuck = node.client.attach("a").await.unwrap();
    stuck.close_stdin();
    next_exit(&mut exits).await;
    assert!(node.log_text("a").ends_with("\n300000\n"));
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_logged_attached_and_resized() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    let (plan, fds) = node.plan("a", "tty; read size; stty size; exit 3", true);
    let mut request = node.request("a", "");
    (request.plan, request.fds, request.terminal, request.stdin) = (plan, fds, true, true);
    let reply = node.client.launch("a", request).await.unwrap();
    assert!(reply.terminal.is_some());
    let attached = node.client.attach("a").await.unwrap();
    assert!(attached.terminal);
    node.client.resize("a", 132, 50).await.unwrap();
    attached.write(b"go\n").await.unwrap();
    let mut seen = String::new();
    while let Some((_, data)) = tokio::time::timeout(PATIENCE, attached.read())
        .await
        .unwrap()
        .unwrap()
    {
        seen.push_str(&String::from_utf8_lossy(&data));
    }
    assert!(seen.contains("50 132"), "{seen:?}");
    assert_eq!(next_exit(&mut exits).await.status, exited(3));
    let log = node.log_text("a");
    assert!(log.contains("/dev/") && log.contains("50 132"), "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_has_its_own_streams_and_its_exit_code_is_told_once() {
    let node = Node::start().await;
    let container = node.run("a", "sleep 100").await;
    let target = ExecTarget {
        pid: container.pid,
        pidfd: container.pidfd.try_clone().unwrap(),
        cgroup: None,
        linux: None,
        keyring: None,
        preserve_fds: 0,
        resctrl: None,
    };
    let process = spec(&["/bin/sh", "-c", "echo hello; exit 7"], false)
        .process()
        .clone()
        .unwrap();
    let (plan, fds) = oci_runtime::plan_exec(&process, target).unwrap();
    let (mut output, stdout) = std::io::pipe().unwrap();
    let null = || {
        OwnedFd::from(
            std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .unwrap(),
        )
    };
    let stdio = ExecStdio::Fds {
        stdin: null(),
        stdout: stdout.into(),
        stderr: null(),
    };
    node.client
        .exec("a", "e", ExecRequest { plan, fds, stdio })
        .await
        .unwrap();
    assert_eq!(node.client.exec_exit("e").await.unwrap(), exited(7));
    assert!(matches!(
        node.client.exec_exit("e").await,
        Err(KeeperError::NotFound { .. })
    ));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
    assert!(matches!(
        node.client.forget("a").await,
        Err(KeeperError::WrongState { .. })
    ));
}

/// A cgroup of this test's own, which goes with it.
struct TestCgroup(linux::cgroup::Cgroup);

impl TestCgroup {
    fn with_memory(name: &str, bytes: i64) -> TestCgroup {
        let hierarchies = std::sync::Arc::new(linux::cgroup::Hierarchies::discover().unwrap());
        let path = format!("/orlop-test-{}-{name}", std::process::id());
        let cgroup = linux::cgroup::Cgroup::at(hierarchies, &path).unwrap();
        cgroup.ensure().unwrap();
        let resources = linux::cgroup::Resources {
            memory_limit_bytes: Some(bytes),
            ..Default::default()
        };
        cgroup.apply(&resources).unwrap();
        TestCgroup(cgroup)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait_empty(PATIENCE);
        self.0.delete().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_ran_out_of_memory_says_so_also_after_its_keeper_was_killed() {
    let node = Node::start().await;
    let mut exits = node.client.exits(0);
    for kill_keeper in [false, true] {
        let id = format!("hungry-{kill_keeper}");
        let cgroup = TestCgroup::with_memory(&id, 16 << 20);
        let script = "read go; tail /dev/zero; exit 1";
        let (plan, fds) = node.plan_in(&id, &["/bin/sh", "-c", script], cgroup.0.clone());
        let mut request = node.request_with(&id, plan, fds);
        request.stdin = true;
        request.memory_events = Some(cgroup.0.oom_counter().unwrap());
        node.client.launch(&id, request).await.unwrap();
        if kill_keeper {
            kill(node.keeper_pid());
        }
        let attached = eventually_attached(&node, &id).await;
        attached.write(b"go\n").await.unwrap();
        let exit = next_exit(&mut exits).await;
        assert_eq!(
            (exit.id.as_str(), exit.oom),
            (id.as_str(), true),
            "{:?}",
            exit.status
        );
    }
}

async fn eventually_attached(node: &Node, id: &str) -> cri_shim::keeper::AttachStreams {
    for _ in 0..100 {
        match node.client.attach(id).await {
            Ok(attached) => return attached,
            Err(KeeperError::Disconnected) => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no keeper came back")
}
