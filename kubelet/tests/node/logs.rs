//! The kubelet's own API, asked through the API server.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt};
use kube::api::LogParams;
use serde_json::{Value, json};

use crate::cluster::{Cluster, with_cluster};

fn append(path: &Path, line: &str) {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .expect("a log");
    writeln!(file, "2026-01-01T00:00:00Z stdout F {line}").expect("written");
}

async fn running_with_log(cluster: &Cluster) -> (String, PathBuf) {
    cluster
        .pod("web", json!({"containers": [{"name": "c", "image": "i"}]}))
        .await;
    cluster.until_running("web").await;
    let id = cluster.cri.running("web", "c").expect("a container");
    let path = cluster.cri.state.lock().unwrap().containers[&id]
        .0
        .log_path
        .clone();
    (id, path.into())
}

#[test]
fn logs_are_read_and_those_before_a_restart_too() {
    with_cluster(async |cluster| {
        let (id, path) = running_with_log(&cluster).await;
        append(&path, "more");
        let params = LogParams {
            tail_lines: Some(1),
            ..LogParams::default()
        };
        assert_eq!(
            cluster.pods().logs("web", &params).await.expect("a log"),
            "more\n"
        );
        cluster.cri.exit(&id, 1);
        crate::cluster::eventually("it runs again", || {
            cluster.cri.running("web", "c").is_some()
        })
        .await;
        let params = LogParams {
            previous: true,
            ..LogParams::default()
        };
        assert_eq!(
            cluster.pods().logs("web", &params).await.expect("a log"),
            "hello\nmore\n"
        );
    });
}

#[test]
fn a_follower_sees_each_line_once_over_a_rotation_and_ends_with_the_container() {
    with_cluster(async |cluster| {
        let (_, path) = running_with_log(&cluster).await;
        let params = LogParams {
            follow: true,
            ..LogParams::default()
        };
        let mut lines = cluster
            .pods()
            .log_stream("web", &params)
            .await
            .expect("a log")
            .lines();
        let mut next = async || {
            let line = tokio::time::timeout(Duration::from_secs(10), lines.next())
                .await
                .expect("in time");
            line.map(|line| line.expect("a line"))
        };
        assert_eq!(next().await.as_deref(), Some("hello"));
        append(&path, "one");
        assert_eq!(next().await.as_deref(), Some("one"));
        append(&path, "two");
        std::fs::rename(&path, path.with_extension("log.20260101-000000")).expect("renamed");
        append(&path, "three");
        assert_eq!(next().await.as_deref(), Some("two"));
        assert_eq!(next().await.as_deref(), Some("three"));
        append(&path, "last");
        cluster.delete("web", Some(1)).await;
        assert_eq!(next().await.as_deref(), Some("last"));
        assert_eq!(next().await, None);
    });
}

#[test]
fn stages_are_told_for_status() {
    with_cluster(async |cluster| {
        running_with_log(&cluster).await;
        let path = "/api/v1/nodes/node/proxy/orlop/pods";
        let request = http::Request::get(path)
            .body(Vec::new())
            .expect("a request");
        let told: Value = cluster.client.request(request).await.expect("an answer");
        let pod = &told["pods"][0];
        assert_eq!(
            (&pod["name"], &pod["phase"]),
            (&json!("web"), &json!("Running"))
        );
        let stages: Vec<&str> = pod["stages"]
            .as_array()
            .expect("stages")
            .iter()
            .filter_map(|s| s["name"].as_str())
            .collect();
        for stage in [
            "sandbox", "volumes", "image c", "create c", "start c", "running", "ready",
        ] {
            assert!(stages.contains(&stage), "{stages:?}");
        }
    });
}
