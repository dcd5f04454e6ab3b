//! `kill -9` of the server, and what its successor finds.

use cri_api::v1::*;

use crate::node::{Node, script_config};
use crate::user_namespaces;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_leaves_its_pods_running_and_its_successor_knows_them() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("lasting");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let lasting = node.run(&sandbox, &config, "lasting", script).await;
    let ending = node
        .run(
            &sandbox,
            &config,
            "ending",
            "while [ ! -e /dev/shm/go ]; do sleep 0.01; done; exit 9",
        )
        .await;
    let created = node
        .create(
            &sandbox,
            &config,
            script_config("created", "exec sleep 1000"),
        )
        .await
        .unwrap();
    let before = node.remains();
    let ending_pid = node.pid(&ending).await;
    let (pid, ip) = (
        node.pid(&lasting).await,
        node.sandbox_status(&sandbox).await.network.unwrap().ip,
    );
    let go = format!("/proc/{pid}/root/dev/shm/go");
    node.kill();
    node.restart().await;
    assert_eq!(node.remains(), before);
    node.kill();
    // While nobody serves, one container ends.
    std::fs::write(go, "").unwrap();
    while std::path::Path::new(&format!("/proc/{ending_pid}")).exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    node.restart().await;
    let status = node.status(&lasting).await;
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(node.pid(&lasting).await, pid);
    assert_eq!(node.sandbox_status(&sandbox).await.network.unwrap().ip, ip);
    assert_eq!(node.wait_for_exit(&ending).await.exit_code, 9);
    node.start_container(&created).await.unwrap();
    assert_eq!(
        node.status(&created).await.state(),
        ContainerState::ContainerRunning
    );
    assert_eq!(
        node.exec_text(&lasting, &["/bin/sh", "-c", "echo again"])
            .await,
        "again\n"
    );
    // No line was lost or doubled.
    node.stop_container(&lasting, 0).await;
    let log = std::fs::read_to_string(node.status(&lasting).await.log_path).unwrap();
    let lines: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split(" F ").nth(1))
        .collect();
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {index}"));
    }
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_the_middle_of_anything_leaks_nothing() {
    let mut node = Node::start().await;
    // Every other round kills it a little later into the life of a pod, of one with a user namespace too.
    for round in 0..24_u64 {
        let (name, script) = (format!("round{round}"), "exec sleep 1000");
        let (config, container) = if round % 2 == 0 {
            (node.sandbox_config(&name), script_config("main", script))
        } else {
            let options = user_namespaces::options(NamespaceMode::Container);
            let config = user_namespaces::sandbox_config(&node, &name, options);
            (config, user_namespaces::container_config("main", script))
        };
        let late = (round / 2) * (round / 2) / 2;
        let mut runtime = node.runtime.clone();
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let life = tokio::spawn(async move {
            let sandbox = runtime
                .run_pod_sandbox(request)
                .await?
                .into_inner()
                .pod_sandbox_id;
            let create = CreateContainerRequest {
                pod_sandbox_id: sandbox.clone(),
                config: Some(container),
                sandbox_config: Some(config),
            };
            let id = runtime
                .create_container(create)
                .await?
                .into_inner()
                .container_id;
            runtime
                .start_container(StartContainerRequest { container_id: id })
                .await?;
            runtime
                .remove_pod_sandbox(RemovePodSandboxRequest {
                    pod_sandbox_id: sandbox,
                })
                .await?;
            Ok::<_, tonic::Status>(())
        });
        tokio::time::sleep(std::time::Duration::from_millis(late)).await;
        node.kill_and_restart().await;
        let _ = life.await.unwrap();
        let list = node
            .runtime
            .list_pod_sandbox(ListPodSandboxRequest::default())
            .await
            .unwrap()
            .into_inner();
        for sandbox in list.items {
            node.remove_sandbox(&sandbox.id).await;
        }
        node.assert_nothing_remains();
    }
    node.shut_down();
}
