//! The ClusterRoles that users expect to find: cluster-admin, admin, edit and view.

use serde_json::{Value, json};

const CORE: &[&str] = &[
    "configmaps",
    "endpoints",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "serviceaccounts",
    "services",
];
const WORKLOADS: &[&str] = &["daemonsets", "deployments", "replicasets", "statefulsets"];
const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

/// What is looked at, and not changed, by those who work in a namespace.
fn looked_at() -> Vec<Value> {
    vec![
        rule(
            &[""],
            &with(
                CORE,
                &[
                    "pods/log",
                    "pods/status",
                    "services/status",
                    "events",
                    "namespaces",
                ],
            ),
            READ,
        ),
        rule(
            &["apps"],
            &with(
                WORKLOADS,
                &[
                    "deployments/scale",
                    "deployments/status",
                    "replicasets/scale",
                    "replicasets/status",
                ],
            ),
            READ,
        ),
        rule(&["discovery.k8s.io"], &["endpointslices".to_owned()], READ),
        rule(
            &["batch"],
            &["cronjobs".to_owned(), "jobs".to_owned()],
            READ,
        ),
        rule(
            &["networking.k8s.io"],
            &["ingresses".to_owned(), "networkpolicies".to_owned()],
            READ,
        ),
    ]
}

fn changed() -> Vec<Value> {
    let owned = |words: &[&str]| with(words, &[]);
    vec![
        rule(&[""], &owned(&["secrets"]), READ),
        rule(&[""], &with(CORE, &["secrets"]), WRITE),
        rule(
            &[""],
            &owned(&[
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "services/proxy",
            ]),
            READ,
        ),
        rule(
            &[""],
            &owned(&[
                "pods/attach",
                "pods/exec",
                "pods/portforward",
                "pods/proxy",
                "services/proxy",
            ]),
            WRITE,
        ),
        rule(
            &[""],
            &owned(&["pods/eviction", "serviceaccounts/token"]),
            &["create"],
        ),
        rule(&[""], &owned(&["serviceaccounts"]), &["impersonate"]),
        rule(
            &["apps"],
            &with(WORKLOADS, &["deployments/scale", "replicasets/scale"]),
            WRITE,
        ),
        rule(&["batch"], &owned(&["cronjobs", "jobs"]), WRITE),
        rule(
            &["networking.k8s.io"],
            &owned(&["ingresses", "networkpolicies"]),
            WRITE,
        ),
    ]
}

/// Every ClusterRole that there is from the start.
pub fn cluster_roles() -> Vec<Value> {
    let roles = with(&["roles", "rolebindings"], &[]);
    let rbac = ["rbac.authorization.k8s.io"];
    let view = looked_at();
    let edit = [view.clone(), changed()].concat();
    let admin = [
        edit.clone(),
        vec![rule(&rbac, &roles, READ), rule(&rbac, &roles, WRITE)],
    ]
    .concat();
    let everything = vec![
        rule(&["*"], &["*".to_owned()], &["*"]),
        json!({"nonResourceURLs": ["*"], "verbs": ["*"]}),
    ];
    [
        ("cluster-admin", everything),
        ("admin", admin),
        ("edit", edit),
        ("view", view),
    ]
    .into_iter()
    .map(|(name, rules)| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
            "rules": rules,
        })
    })
    .collect()
}

/// What makes `system:masters` administrators, for those who look.
pub fn administrators() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "cluster-admin", "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:masters"}],
    })
}

fn with(words: &[&str], more: &[&str]) -> Vec<String> {
    words.iter().chain(more).map(|w| (*w).to_owned()).collect()
}

fn rule(groups: &[&str], resources: &[String], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}
