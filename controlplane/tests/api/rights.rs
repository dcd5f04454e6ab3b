//! Roles and bindings: who may do what, and who may say so.

use http::Method;
use serde_json::{Value, json};

use super::harness::{Cluster, send};

const GROUP: &str = "/apis/rbac.authorization.k8s.io/v1";

fn reader() -> Value {
    json!({"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]})
}

fn binding(role: &str, subject: &Value) -> Value {
    let reference =
        json!({"kind": role, "name": "reader", "apiGroup": "rbac.authorization.k8s.io"});
    json!({"metadata": {"name": "b"}, "roleRef": reference, "subjects": [subject]})
}

async fn may(client: &kube::Client, method: Method, path: &str) -> bool {
    match send(client, method, path, None, "").await.0 {
        Ok(_) => true,
        Err(status) => status["code"] != 403,
    }
}

#[tokio::test]
async fn a_role_holds_in_its_namespace_as_long_as_it_is_bound() {
    let cluster = Cluster::start().await;
    let roles = format!("{GROUP}/namespaces/default");
    cluster.post(&format!("{roles}/roles"), reader()).await.ok();
    let robot = cluster.server.client(
        "system:serviceaccount:default:robot",
        &["system:serviceaccounts"],
    );
    let pods = "/api/v1/namespaces/default/pods";
    assert!(!may(&robot, Method::GET, pods).await);
    let subject = json!({"kind": "ServiceAccount", "name": "robot", "namespace": "default"});
    cluster
        .post(&format!("{roles}/rolebindings"), binding("Role", &subject))
        .await
        .ok();
    assert!(may(&robot, Method::GET, pods).await);
    assert!(!may(&robot, Method::DELETE, pods).await);
    assert!(!may(&robot, Method::GET, "/api/v1/namespaces/kube-system/pods").await);
    assert!(!may(&robot, Method::GET, "/api/v1/pods").await);
    cluster
        .delete(&format!("{roles}/rolebindings/b"))
        .await
        .ok();
    assert!(!may(&robot, Method::GET, pods).await);
}

#[tokio::test]
async fn a_cluster_role_holds_everywhere_or_where_it_is_bound() {
    let cluster = Cluster::start().await;
    cluster
        .post(&format!("{GROUP}/clusterroles"), reader())
        .await
        .ok();
    let jane = cluster.server.client("jane", &["dev"]);
    let group = json!({"kind": "Group", "name": "dev"});
    let local = format!("{GROUP}/namespaces/kube-system/rolebindings");
    cluster
        .post(&local, binding("ClusterRole", &group))
        .await
        .ok();
    assert!(may(&jane, Method::GET, "/api/v1/namespaces/kube-system/pods").await);
    assert!(!may(&jane, Method::GET, "/api/v1/pods").await);
    cluster
        .post(
            &format!("{GROUP}/clusterrolebindings"),
            binding("ClusterRole", &group),
        )
        .await
        .ok();
    assert!(may(&jane, Method::GET, "/api/v1/pods").await);
    let path = format!("{GROUP}/clusterrolebindings/b");
    let other = json!({"roleRef": {"name": "other"}});
    assert!(
        cluster
            .merge(&path, other)
            .await
            .failure()
            .2
            .contains("cannot change roleRef")
    );
}

#[tokio::test]
async fn nobody_gives_away_what_they_do_not_have() {
    let cluster = Cluster::start().await;
    let roles = format!("{GROUP}/clusterroles");
    let writer = json!({"metadata": {"name": "writer"}, "rules": [
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"], "verbs": ["*"],
         "resourceNames": ["reader", "b"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["create"]},
    ]});
    // To write roles is not to have the rights that are in them.
    let mut rules = writer.clone();
    rules["rules"][0]["verbs"] = json!(["get", "update", "patch"]);
    cluster.post(&roles, rules).await.ok();
    let subject = json!({"kind": "User", "name": "jane"});
    let mut bound = binding("ClusterRole", &subject);
    bound["roleRef"]["name"] = "writer".into();
    cluster
        .post(&format!("{GROUP}/clusterrolebindings"), bound)
        .await
        .ok();
    let jane = cluster.server.client("jane", &[]);
    let answer = send(
        &jane,
        Method::POST,
        &roles,
        Some(reader()),
        "application/json",
    )
    .await;
    let (code, _, message) = answer.failure();
    assert_eq!(code, 403);
    assert!(message.contains("is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}"), "{message}");
}

#[tokio::test]
async fn the_first_roles_are_those_that_users_expect() {
    let cluster = Cluster::start().await;
    for role in ["cluster-admin", "admin", "edit", "view"] {
        cluster
            .get(&format!("{GROUP}/clusterroles/{role}"))
            .await
            .ok();
    }
    let mut viewer = binding("ClusterRole", &json!({"kind": "User", "name": "jane"}));
    viewer["roleRef"]["name"] = "view".into();
    cluster
        .post(&format!("{GROUP}/namespaces/default/rolebindings"), viewer)
        .await
        .ok();
    let jane = cluster.server.client("jane", &[]);
    assert!(
        may(
            &jane,
            Method::GET,
            "/apis/apps/v1/namespaces/default/deployments"
        )
        .await
    );
    assert!(may(&jane, Method::GET, "/api/v1/namespaces/default/pods/x/log").await);
    assert!(!may(&jane, Method::GET, "/api/v1/namespaces/default/secrets").await);
    assert!(
        !may(
            &jane,
            Method::DELETE,
            "/apis/apps/v1/namespaces/default/deployments"
        )
        .await
    );
}
