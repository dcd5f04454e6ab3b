//! What becomes of a pod from its making to its end.

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::cluster::{condition, eventually, phase, status, with_cluster};

#[test]
fn a_pod_runs_and_says_so() {
    with_cluster(async |cluster| {
        assert!(
            cluster
                .node()
                .await
                .status
                .is_some_and(|s| s.capacity.is_some())
        );
        cluster
            .pod("web", json!({"containers": [{"name": "c", "image": "i"}]}))
            .await;
        let pod = cluster
            .until("web", |pod: Option<&Pod>| condition(pod, "Ready"))
            .await
            .expect("a pod");
        let status = status(&pod);
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["podIP"], "10.9.0.1");
        assert_eq!(status["hostIP"], "127.0.0.1");
        assert_eq!(
            status["containerStatuses"][0]["containerID"],
            "fake://container-2"
        );
        assert!(
            cluster
                .path("logs/containers")
                .read_dir()
                .expect("a folder")
                .count()
                == 1
        );
    });
}

#[test]
fn init_containers_come_first_and_a_job_completes() {
    with_cluster(async |cluster| {
        let spec = json!({"restartPolicy": "Never",
            "initContainers": [{"name": "i", "image": "exits-0"}], "containers": [{"name": "c", "image": "exits-0"}]});
        cluster.pod("job", spec).await;
        cluster
            .until("job", |pod: Option<&Pod>| phase(pod) == Some("Succeeded"))
            .await;
        eventually("the sandbox is stopped", || {
            cluster.cri.count("stop sandbox") == 1
        })
        .await;
        let calls = cluster.cri.state.lock().unwrap().calls.clone();
        let starts: Vec<&String> = calls.iter().filter(|c| c.starts_with("start")).collect();
        assert_eq!(starts, ["start i", "start c"]);
    });
}

#[test]
fn a_crash_is_restarted_once_at_once_and_then_backed_off() {
    with_cluster(async |cluster| {
        cluster
            .pod(
                "crash",
                json!({"containers": [{"name": "c", "image": "exits-3"}]}),
            )
            .await;
        let backing_off = |pod: Option<&Pod>| {
            let status = pod.map(status).unwrap_or_default();
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        };
        let pod = cluster.until("crash", backing_off).await.expect("a pod");
        let container = &status(&pod)["containerStatuses"][0];
        assert_eq!(container["restartCount"], 1);
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
        assert_eq!(cluster.cri.count("start"), 2);
    });
}

#[test]
fn an_image_that_is_missing_is_said_and_backed_off() {
    with_cluster(async |cluster| {
        cluster
            .pod(
                "pull",
                json!({"containers": [{"name": "c", "image": "missing"}]}),
            )
            .await;
        let backing_off = |pod: Option<&Pod>| {
            let status = pod.map(status).unwrap_or_default();
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff"
        };
        cluster.until("pull", backing_off).await;
        cluster.until_events("pull", &["Failed", "BackOff"]).await;
    });
}

#[test]
fn a_pod_waits_for_its_config_map_and_follows_its_changes() {
    with_cluster(async |cluster| {
        let spec = json!({"containers": [{"name": "c", "image": "i",
                "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}],
            "volumes": [{"name": "v", "configMap": {"name": "m"}}]});
        let pod = cluster.pod("late", spec).await;
        let uid = pod.metadata.uid.expect("a uid");
        eventually("the sandbox is there", || cluster.cri.count("run") == 1).await;
        let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": value}});
        cluster.make("configmaps", map("one")).await;
        cluster.until_running("late").await;
        let id = cluster.cri.running("late", "c").expect("a container");
        let env = cluster.cri.config(&id).envs;
        assert!(env.iter().any(|e| e.key == "K" && e.value == b"one"));
        let file = cluster.path(&format!("kubelet/volatile/{uid}/v/k"));
        assert_eq!(std::fs::read_to_string(&file).expect("a file"), "one");
        let api: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
            kube::Api::namespaced(cluster.client.clone(), "default");
        let patch = kube::api::Patch::Merge(json!({"data": {"k": "two"}}));
        api.patch("m", &Default::default(), &patch)
            .await
            .expect("patched");
        eventually("the file follows", || {
            std::fs::read_to_string(&file).is_ok_and(|text| text == "two")
        })
        .await;
    });
}

#[test]
fn a_deleted_pod_stops_in_time_and_leaves_nothing() {
    with_cluster(async |cluster| {
        let spec = json!({"containers": [{"name": "c", "image": "i",
            "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}], "volumes": [{"name": "e", "emptyDir": {}}]});
        let pod = cluster.pod("web", spec).await;
        let uid = pod.metadata.uid.expect("a uid");
        cluster.until_running("web").await;
        assert!(cluster.path(&format!("kubelet/pods/{uid}")).exists());
        cluster.delete("web", Some(7)).await;
        cluster.until_gone("web").await;
        let calls = cluster.cri.state.lock().unwrap().calls.clone();
        assert!(calls.contains(&"exec bye".to_owned()));
        assert!(calls.iter().any(|c| c == "stop container-2 7"), "{calls:?}");
        let state = cluster.cri.state.lock().unwrap();
        assert!(state.sandboxes.is_empty() && state.containers.is_empty());
        drop(state);
        assert!(!cluster.path(&format!("kubelet/pods/{uid}")).exists());
        assert_eq!(
            cluster
                .path("logs/pods")
                .read_dir()
                .expect("a folder")
                .count(),
            0
        );
        assert_eq!(
            cluster
                .path("logs/containers")
                .read_dir()
                .expect("a folder")
                .count(),
            0
        );
    });
}

#[test]
fn a_grace_period_cut_short_counts_at_once() {
    with_cluster(async |cluster| {
        cluster.cri.state.lock().unwrap().stubborn = true;
        cluster
            .pod("web", json!({"containers": [{"name": "c", "image": "i"}]}))
            .await;
        cluster.until_running("web").await;
        cluster.delete("web", Some(3600)).await;
        eventually("it is stopping", || {
            cluster.cri.count("stop container") == 1
        })
        .await;
        cluster.delete("web", Some(1)).await;
        cluster.until_gone("web").await;
    });
}

#[test]
fn a_failing_liveness_probe_restarts_the_container() {
    with_cluster(async |cluster| {
        cluster
            .cri
            .state
            .lock()
            .unwrap()
            .exec_codes
            .insert("alive".into(), 1);
        let probe =
            json!({"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 1});
        cluster
            .pod(
                "sick",
                json!({"containers": [{"name": "c", "image": "i", "livenessProbe": probe}]}),
            )
            .await;
        let restarted = |pod: Option<&Pod>| {
            let status = pod.map(status).unwrap_or_default();
            status["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)
        };
        cluster.until("sick", restarted).await;
        cluster
            .until_events("sick", &["Unhealthy", "Killing"])
            .await;
    });
}

#[test]
fn readiness_follows_its_probe() {
    with_cluster(async |cluster| {
        cluster
            .cri
            .state
            .lock()
            .unwrap()
            .exec_codes
            .insert("ready".into(), 1);
        let probe =
            json!({"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 1});
        cluster
            .pod(
                "slow",
                json!({"containers": [{"name": "c", "image": "i", "readinessProbe": probe}]}),
            )
            .await;
        let pod = cluster.until_running("slow").await;
        assert!(!condition(Some(&pod), "Ready"));
        cluster.cri.state.lock().unwrap().exec_codes.clear();
        cluster
            .until("slow", |pod: Option<&Pod>| condition(pod, "Ready"))
            .await;
    });
}

#[test]
fn a_deadline_ends_the_pod_as_failed() {
    with_cluster(async |cluster| {
        let spec = json!({"activeDeadlineSeconds": 1, "containers": [{"name": "c", "image": "i"}]});
        cluster.pod("brief", spec).await;
        let failed = |pod: Option<&Pod>| phase(pod) == Some("Failed");
        let pod = cluster.until("brief", failed).await.expect("a pod");
        assert_eq!(status(&pod)["reason"], "DeadlineExceeded");
    });
}
