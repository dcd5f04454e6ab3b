//! A kubelet that is killed and started again, static pods, and what is left behind.

use serde_json::json;

use cri_api::v1;

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

#[test]
fn pods_without_the_hosts_users_have_ids_of_their_own_and_keep_them() {
    with_cluster(async |mut cluster| {
        let spec = json!({"hostUsers": false, "containers": [{"name": "c", "image": "i"}]});
        // Not where the runtime can't.
        cluster.pod("never", spec.clone()).await;
        cluster
            .until_events("never", &["FailedCreatePodSandBox"])
            .await;
        assert_eq!(cluster.cri.count("run"), 0);
        cluster.delete("never", Some(0)).await;
        let gone = |pod: Option<&k8s_openapi::api::core::v1::Pod>| pod.is_none();
        cluster.until("never", gone).await;
        cluster.cri.state.lock().unwrap().user_namespaces = true;
        cluster.pod("one", spec.clone()).await;
        cluster.until_running("one").await;
        cluster.pod("two", spec.clone()).await;
        cluster
            .pod("host", json!({"containers": [{"name": "c", "image": "i"}]}))
            .await;
        cluster.until_running("two").await;
        cluster.until_running("host").await;

        let cri = cluster.cri.clone();
        let ids = |pod: &str| {
            let of_sandbox = {
                let state = cri.state.lock().unwrap();
                let config = state.sandboxes.values().map(|(_, config)| config);
                let mut ours =
                    config.filter(|c| c.metadata.as_ref().is_some_and(|m| m.name == pod));
                let linux = ours.next().expect("a sandbox").linux.clone();
                let security = linux.expect("linux").security_context;
                security.expect("a context").namespace_options
            };
            let container = cri.config(&cri.running(pod, "c").expect("a container"));
            let linux = container.linux.expect("linux");
            let security = linux.security_context.expect("a context");
            let user = of_sandbox.expect("options").userns_options;
            let own = security.namespace_options.expect("options").userns_options;
            assert_eq!(user, own);
            let user = user?;
            assert_eq!(user.mode(), v1::NamespaceMode::Pod);
            assert!(!container.mounts.is_empty());
            for mount in &container.mounts {
                assert_eq!(mount.uid_mappings, user.uids);
                assert_eq!(mount.gid_mappings, user.gids);
            }
            Some(user.uids[0])
        };
        let (one, two) = (ids("one").expect("ids"), ids("two").expect("ids"));
        assert_eq!(
            (one.host_id, one.container_id, one.length),
            (65_536, 0, 65_536)
        );
        assert_eq!(two.host_id, 131_072);
        assert_eq!(ids("host"), None);

        let first = cluster.cri.running("one", "c").expect("a container");
        cluster.kill_kubelet();
        cluster.cri.exit(&first, 1);
        cluster.start_kubelet(false).await;
        eventually("it runs again", || {
            cluster.cri.running("one", "c").is_some()
        })
        .await;
        assert_eq!(ids("one"), Some(one));
        cluster.pod("three", spec.clone()).await;
        cluster.until_running("three").await;
        assert_eq!(ids("three").expect("ids").host_id, 196_608);
        cluster.delete("two", Some(0)).await;
        let gone = || cri.state.lock().unwrap().sandboxes.len() == 3;
        eventually("two is gone", gone).await;
        let folders = || std::fs::read_dir(cluster.path("kubelet/pods")).map(Iterator::count);
        eventually("so is its folder", || {
            folders().is_ok_and(|count| count == 3)
        })
        .await;
        cluster.pod("four", spec).await;
        cluster.until_running("four").await;
        assert_eq!(ids("four").expect("ids"), two);
    });
}
