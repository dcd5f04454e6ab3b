//! create, get, list, update, patch.

use serde_json::json;

use super::harness::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn an_update_needs_the_version_that_it_was_made_from() {
    let cluster = Cluster::start().await;
    let first = cluster.configmap("a", json!({})).await;
    let mut changed = first.clone();
    changed["data"]["key"] = "new".into();
    let second = cluster
        .put(&format!("{MAPS}/a"), changed.clone())
        .await
        .ok();
    assert_ne!(
        first["metadata"]["resourceVersion"],
        second["metadata"]["resourceVersion"]
    );
    assert_eq!(first["metadata"]["uid"], second["metadata"]["uid"]);

    let (code, reason, message) = cluster.put(&format!("{MAPS}/a"), changed).await.failure();
    assert_eq!((code, &*reason), (409, "Conflict"));
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );
}

#[tokio::test]
async fn a_write_that_changes_nothing_makes_no_new_version() {
    let cluster = Cluster::start().await;
    let first = cluster.configmap("a", json!({"x": "y"})).await;
    let same = cluster
        .merge(
            &format!("{MAPS}/a"),
            json!({"metadata": {"labels": {"x": "y"}}}),
        )
        .await
        .ok();
    assert_eq!(
        first["metadata"]["resourceVersion"],
        same["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn failures_are_worded_as_upstream_words_them() {
    let cluster = Cluster::start().await;
    cluster.configmap("a", json!({})).await;
    let again = cluster
        .post(MAPS, json!({"metadata": {"name": "a"}}))
        .await
        .failure();
    assert_eq!(
        again,
        (
            409,
            "AlreadyExists".into(),
            "configmaps \"a\" already exists".into()
        )
    );
    let missing = cluster
        .get("/apis/apps/v1/namespaces/default/deployments/web")
        .await
        .failure();
    assert_eq!(
        missing,
        (
            404,
            "NotFound".into(),
            "deployments.apps \"web\" not found".into()
        )
    );
    let namespace = cluster
        .post(
            "/api/v1/namespaces/none/configmaps",
            json!({"metadata": {"name": "a"}}),
        )
        .await
        .failure();
    assert_eq!(
        namespace,
        (
            404,
            "NotFound".into(),
            "namespaces \"none\" not found".into()
        )
    );
    let name = cluster
        .post(MAPS, json!({"metadata": {"name": "A_"}}))
        .await
        .failure();
    assert_eq!((name.0, &*name.1), (422, "Invalid"));
    assert!(
        name.2
            .starts_with("ConfigMap \"A_\" is invalid: metadata.name: Invalid value: \"A_\": "),
        "{}",
        name.2
    );
    let elsewhere = json!({"metadata": {"name": "b", "namespace": "kube-system"}});
    assert_eq!(cluster.post(MAPS, elsewhere).await.failure().0, 400);
    let kind = cluster
        .post(MAPS, json!({"kind": "Pod", "metadata": {"name": "b"}}))
        .await
        .failure();
    assert!(
        kind.2.contains("does not match the expected kind"),
        "{}",
        kind.2
    );
    assert_eq!(cluster.get("/apis/none/v1/things").await.failure().0, 404);
}

#[tokio::test]
async fn unknown_fields_are_refused_when_the_client_wants_that() {
    let cluster = Cluster::start().await;
    let object = json!({"metadata": {"name": "a"}, "date": {}});
    let path = format!("{MAPS}?fieldValidation=Strict");
    let (code, _, message) = cluster.post(&path, object.clone()).await.failure();
    assert_eq!(code, 400);
    assert!(
        message.ends_with("strict decoding error: unknown field \"date\""),
        "{message}"
    );
    cluster.post(MAPS, object).await.ok();
}

#[tokio::test]
async fn generated_names_are_the_prefix_and_five_letters() {
    let cluster = Cluster::start().await;
    let object = json!({"metadata": {"generateName": "web-"}});
    let name = cluster.post(MAPS, object).await.ok()["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
}

#[tokio::test]
async fn a_dry_run_does_everything_but_write() {
    let cluster = Cluster::start().await;
    let object = json!({"metadata": {"name": "a"}});
    let answer = cluster
        .post(&format!("{MAPS}?dryRun=All"), object)
        .await
        .ok();
    assert!(answer["metadata"]["uid"].is_string());
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await.failure().0, 404);
    cluster.configmap("a", json!({})).await;
    cluster.delete(&format!("{MAPS}/a?dryRun=All")).await.ok();
    cluster.get(&format!("{MAPS}/a")).await.ok();
}

#[tokio::test]
async fn a_list_in_pages_is_of_one_moment() {
    let cluster = Cluster::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        cluster
            .configmap(name, json!({"half": if name < "c" { "1" } else { "2" }}))
            .await;
    }
    let first = cluster.get(&format!("{MAPS}?limit=2")).await.ok();
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    cluster.delete(&format!("{MAPS}/d")).await.ok();
    cluster.configmap("f", json!({})).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = cluster
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .ok();
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = cluster
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .ok();
    let names: Vec<_> = [&first, &second, &third]
        .iter()
        .flat_map(|page| page["items"].as_array().unwrap())
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(
        first["metadata"]["resourceVersion"],
        third["metadata"]["resourceVersion"]
    );
    assert!(third["metadata"].get("continue").is_none());

    let selected = cluster
        .get(&format!("{MAPS}?labelSelector=half%3D2&limit=1"))
        .await
        .ok();
    assert_eq!(selected["items"][0]["metadata"]["name"], "c");
    let token = selected["metadata"]["continue"].as_str().unwrap();
    let rest = cluster
        .get(&format!(
            "{MAPS}?labelSelector=half%3D2&limit=5&continue={token}"
        ))
        .await
        .ok();
    assert_eq!(rest["items"][0]["metadata"]["name"], "e");
    assert_eq!(
        cluster
            .get(&format!("{MAPS}?continue=nonsense"))
            .await
            .failure()
            .0,
        400
    );
}

#[tokio::test]
async fn services_get_an_address_and_give_it_back() {
    let cluster = Cluster::start().await;
    let path = "/api/v1/namespaces/default/services";
    let object = |name: &str, address: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": [{"port": 80}], "type": "NodePort"}});
    let a = cluster.post(path, object("a", "10.96.7.7")).await.ok();
    assert!((30000..=32767).contains(&a["spec"]["ports"][0]["nodePort"].as_i64().unwrap()));
    let (code, _, message) = cluster.post(path, object("b", "10.96.7.7")).await.failure();
    assert_eq!(code, 422);
    assert!(
        message.contains("provided IP is already allocated"),
        "{message}"
    );
    let cluster = cluster.restart().await;
    assert_eq!(
        cluster
            .post(path, object("b", "10.96.7.7"))
            .await
            .failure()
            .0,
        422
    );
    cluster.delete(&format!("{path}/a")).await.ok();
    cluster.post(path, object("b", "10.96.7.7")).await.ok();
    let kubernetes = cluster.get(&format!("{path}/kubernetes")).await.ok();
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn scale_is_the_replicas_of_a_deployment() {
    let cluster = Cluster::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let object = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    let created = cluster.post(path, object).await.ok();
    assert_eq!(created["metadata"]["generation"], 1);
    let scale = cluster.get(&format!("{path}/web/scale")).await.ok();
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(2), &json!("app=web"))
    );
    let scaled = cluster
        .merge(
            &format!("{path}/web/scale"),
            json!({"spec": {"replicas": 5}}),
        )
        .await
        .ok();
    assert_eq!(scaled["spec"]["replicas"], 5);
    let web = cluster.get(&format!("{path}/web")).await.ok();
    assert_eq!(
        (&web["spec"]["replicas"], &web["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_concurrent_patches_none_is_lost() {
    let cluster = Cluster::start().await;
    cluster.configmap("a", json!({})).await;
    let path = format!("{MAPS}/a");
    let patches = (0..40).map(|count| {
        let key = format!("k{count}");
        cluster.merge(&path, json!({"data": {key: "x"}}))
    });
    for answer in futures::future::join_all(patches).await {
        answer.ok();
    }
    let data = cluster.get(&path).await.ok()["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 41);
}

#[tokio::test]
async fn a_long_list_is_whole() {
    let cluster = Cluster::start().await;
    let padding = "x".repeat(3000);
    for count in 0..100 {
        let object = json!({"metadata": {"name": format!("m{count:03}")}, "data": {"k": padding}});
        cluster.post(MAPS, object).await.ok();
    }
    let list = cluster.get(MAPS).await.ok();
    let names: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["metadata"]["name"].clone())
        .collect();
    let expected: Vec<_> = (0..100)
        .map(|count| json!(format!("m{count:03}")))
        .collect();
    assert_eq!(names, expected);
    let mut events = cluster.watch(&format!("{MAPS}?watch=1")).await;
    assert_eq!(events.names(100).await.last().unwrap(), "ADDED m099");
}
