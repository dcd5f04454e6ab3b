//! A kubelet that is killed and started again, static pods, and what is left behind.

use serde_json::json;

use crate::cluster::{eventually, status, with_cluster};

#[test]
fn a_restarted_kubelet_touches_no_running_container_and_keeps_counts() {
    with_cluster(async |mut cluster| {
        cluster
            .pod("web", json!({"containers": [{"name": "c", "image": "i"}]}))
            .await;
        cluster.until_running("web").await;
        let first = cluster.cri.running("web", "c").expect("a container");
        cluster.cri.exit(&first, 1);
        eventually("it runs again", || {
            cluster.cri.running("web", "c").is_some()
        })
        .await;
        let second = cluster.cri.running("web", "c").expect("a container");
        cluster.kill_kubelet();
        let starts = cluster.cri.count("start");
        cluster.start_kubelet(false).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(cluster.cri.count("start"), starts);
        assert_eq!(cluster.cri.running("web", "c"), Some(second));
        let pod = cluster.pods().get("web").await.expect("a pod");
        assert_eq!(status(&pod)["containerStatuses"][0]["restartCount"], 1);
    });
}

#[test]
fn what_ended_or_was_deleted_meanwhile_is_seen_to() {
    with_cluster(async |mut cluster| {
        cluster
            .pod("web", json!({"containers": [{"name": "c", "image": "i"}]}))
            .await;
        cluster
            .pod("gone", json!({"containers": [{"name": "c", "image": "i"}]}))
            .await;
        cluster.until_running("web").await;
        cluster.until_running("gone").await;
        let first = cluster.cri.running("web", "c").expect("a container");
        cluster.kill_kubelet();
        cluster.cri.exit(&first, 1);
        cluster.delete("gone", Some(0)).await;
        cluster.start_kubelet(false).await;
        eventually("web runs again", || {
            cluster.cri.running("web", "c").is_some()
        })
        .await;
        eventually("the other one is cleaned up", || {
            cluster.cri.state.lock().unwrap().sandboxes.len() == 1
        })
        .await;
    });
}

#[test]
fn a_static_pod_runs_has_a_mirror_and_goes_with_its_file() {
    with_cluster(async |cluster| {
        let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: s}\nspec: {containers: [{name: c, image: 'i:1'}]}\n";
        let path = cluster.path("manifests/s.yaml");
        std::fs::write(&path, manifest).expect("written");
        cluster.until_running("s-node").await;
        cluster.delete("s-node", Some(0)).await;
        let mirror = cluster.until_running("s-node").await;
        assert!(
            mirror
                .metadata
                .annotations
                .is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"))
        );
        assert_eq!(cluster.cri.count("run"), 1);
        std::fs::remove_file(&path).expect("removed");
        cluster.until_gone("s-node").await;
        eventually("nothing is left", || {
            cluster.cri.state.lock().unwrap().sandboxes.is_empty()
        })
        .await;
    });
}

#[test]
fn a_drain_leaves_nothing() {
    with_cluster(async |mut cluster| {
        cluster.kill_kubelet();
        cluster.start_kubelet(true).await;
        cluster
            .pod("web", json!({"containers": [{"name": "c", "image": "i"}]}))
            .await;
        cluster.until_running("web").await;
        cluster.stop_kubelet().await;
        assert!(cluster.cri.state.lock().unwrap().sandboxes.is_empty());
        assert!(!cluster.path("kubelet").exists());
    });
}
