//! Over the socket, with the kubeconfig and with a service account's token.

use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::Api;
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use super::harness::{Cluster, send};

async fn config(cluster: &Cluster) -> kube::Config {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(cluster.server.kubeconfig_path()).unwrap();
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap()
}

#[tokio::test]
async fn the_kubeconfig_is_the_administrators() {
    let cluster = Cluster::start().await;
    let client = kube::Client::try_from(config(&cluster).await).unwrap();
    assert_eq!(client.apiserver_version().await.unwrap().minor, "36");
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let map = ConfigMap {
        metadata: kube::core::ObjectMeta {
            name: Some("a".into()),
            ..Default::default()
        },
        ..Default::default()
    };
    maps.create(&PostParams::default(), &map).await.unwrap();
    assert_eq!(
        maps.list(&ListParams::default()).await.unwrap().items.len(),
        1
    );
    assert!(
        Api::<Node>::all(client)
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn a_service_accounts_token_is_known_until_the_account_is_gone() {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster
        .post(accounts, json!({"metadata": {"name": "robot"}}))
        .await
        .ok();
    let request = json!({"spec": {"expirationSeconds": 600}});
    let answer = cluster
        .post(&format!("{accounts}/robot/token"), request)
        .await
        .ok();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();

    let mut config = config(&cluster).await;
    config.auth_info = kube::config::AuthInfo {
        token: Some(token.clone().into()),
        ..Default::default()
    };
    let robot = kube::Client::try_from(config).unwrap();
    let (code, _, message) = send(&robot, Method::GET, "/api/v1/pods", None, "")
        .await
        .failure();
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "pods is forbidden: User \"system:serviceaccount:default:robot\" cannot list resource \"pods\" in API group \
         \"\" at the cluster scope"
    );
    let review = json!({"spec": {"token": token}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = cluster.post(reviews, review.clone()).await.ok()["status"].clone();
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:default:robot"
    );

    cluster.delete(&format!("{accounts}/robot")).await.ok();
    assert_eq!(
        send(&robot, Method::GET, "/api/v1/pods", None, "")
            .await
            .failure()
            .0,
        401
    );
    assert!(
        cluster.post(reviews, review).await.ok()["status"]
            .get("authenticated")
            .is_none()
    );
}

#[tokio::test]
async fn strangers_see_only_that_the_server_is_there() {
    let cluster = Cluster::start().await;
    let mut config = config(&cluster).await;
    config.auth_info = kube::config::AuthInfo::default();
    let stranger = kube::Client::try_from(config).unwrap();
    assert!(
        stranger
            .request_text(http::Request::get("/livez").body(Vec::new()).unwrap())
            .await
            .is_ok()
    );
    assert_eq!(
        send(&stranger, Method::GET, "/api/v1/secrets", None, "")
            .await
            .failure()
            .0,
        403
    );
}
