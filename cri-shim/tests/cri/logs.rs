//! Containers' log files.

use std::os::unix::fs::MetadataExt;

use crate::node::{Node, script_config};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_there_when_start_container_answers() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("silent");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let id = node.run(&sandbox, &config, "main", "sleep 100").await;
    let path = node.status(&id).await.log_path;
    let made = std::fs::metadata(&path).unwrap();
    assert_eq!((made.len(), made.mode() & 0o777), (0, 0o640));
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_can_not_be_made_is_named() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("lost");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    std::fs::create_dir_all(&config.log_directory).unwrap();
    let folder = std::path::Path::new(&config.log_directory).join("main.log");
    std::fs::create_dir(&folder).unwrap();
    let id = node
        .create(&sandbox, &config, script_config("main", "true"))
        .await
        .unwrap();
    let error = node.start_container(&id).await.unwrap_err();
    assert!(
        error.message().contains(&*folder.to_string_lossy()),
        "{error}"
    );
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}
