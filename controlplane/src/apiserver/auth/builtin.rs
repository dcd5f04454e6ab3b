//! What the cluster's own components may do, as upstream's bootstrap policy has it.

use super::policy::{Grant, Rule, Subject};

/// Verbs on resources of groups.
struct Words {
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
}

enum Who {
    User(&'static str),
    Group(&'static str),
}

/// Paths that anybody may read (`system:public-info-viewer`).
const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

/// Paths that every authenticated user may read, with all below them (`system:discovery`).
const DISCOVERY_PATHS: &[&str] = &["/api", "/apis", "/openapi", "/.well-known", "/openid"];

const READ: &[&str] = &["get", "list", "watch"];
const ANY: &[&str] = &["*"];

const fn rule(
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Words {
    Words {
        groups,
        resources,
        verbs,
    }
}

const EVENTS: Words = rule(
    &["", "events.k8s.io"],
    &["events"],
    &["create", "patch", "update"],
);
const LEASES: Words = rule(&["coordination.k8s.io"], &["leases"], ANY);
const REVIEWS: Words = rule(
    &["authentication.k8s.io", "authorization.k8s.io"],
    &[
        "tokenreviews",
        "subjectaccessreviews",
        "localsubjectaccessreviews",
    ],
    &["create"],
);

const COMPONENTS: &[(Who, &[Words])] = &[
    (Who::Group("system:masters"), &[rule(ANY, ANY, ANY)]),
    (
        Who::Group("system:authenticated"),
        &[
            rule(
                &["authorization.k8s.io"],
                &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                &["create"],
            ),
            rule(
                &["authentication.k8s.io"],
                &["selfsubjectreviews"],
                &["create"],
            ),
        ],
    ),
    (
        Who::Group("system:nodes"),
        &[
            REVIEWS,
            EVENTS,
            LEASES,
            rule(
                &[""],
                &[
                    "services",
                    "configmaps",
                    "secrets",
                    "persistentvolumeclaims",
                    "persistentvolumes",
                ],
                READ,
            ),
            rule(&["discovery.k8s.io"], &["endpointslices"], READ),
            rule(&["node.k8s.io"], &["runtimeclasses"], READ),
            rule(
                &["storage.k8s.io"],
                &["csidrivers", "csinodes", "volumeattachments"],
                READ,
            ),
            rule(
                &["storage.k8s.io"],
                &["csinodes"],
                &["create", "delete", "patch", "update"],
            ),
            rule(
                &[""],
                &["nodes"],
                &[
                    "create", "get", "list", "watch", "update", "patch", "delete",
                ],
            ),
            rule(&[""], &["nodes/status"], &["update", "patch"]),
            rule(
                &[""],
                &["pods"],
                &["create", "get", "list", "watch", "delete"],
            ),
            rule(&[""], &["pods/status"], &["update", "patch"]),
            rule(
                &[""],
                &["pods/eviction", "serviceaccounts/token"],
                &["create"],
            ),
            rule(
                &["certificates.k8s.io"],
                &["certificatesigningrequests"],
                &["create", "get", "list", "watch"],
            ),
        ],
    ),
    (
        Who::User("system:kube-scheduler"),
        &[
            EVENTS,
            LEASES,
            REVIEWS,
            rule(
                &[""],
                &[
                    "pods",
                    "nodes",
                    "namespaces",
                    "services",
                    "replicationcontrollers",
                ],
                READ,
            ),
            rule(
                &[""],
                &["persistentvolumeclaims", "persistentvolumes"],
                READ,
            ),
            rule(&[""], &["pods"], &["delete"]),
            rule(&[""], &["pods/binding", "bindings"], &["create"]),
            rule(&[""], &["pods/status"], &["patch", "update"]),
            rule(
                &["apps", "policy", "storage.k8s.io", "resource.k8s.io"],
                ANY,
                READ,
            ),
        ],
    ),
    (
        Who::User("system:kube-controller-manager"),
        &[rule(ANY, ANY, ANY)],
    ),
    (
        Who::User("system:kube-proxy"),
        &[
            EVENTS,
            rule(&[""], &["services", "endpoints", "nodes"], READ),
            rule(&["discovery.k8s.io"], &["endpointslices"], READ),
            rule(
                &["networking.k8s.io"],
                &["servicecidrs", "networkpolicies"],
                READ,
            ),
            rule(&[""], &["pods", "namespaces"], READ),
        ],
    ),
];

/// The grants of the cluster's components, and what everybody may read.
pub fn grants() -> Vec<Grant> {
    let mut grants: Vec<Grant> = COMPONENTS
        .iter()
        .map(|(who, words)| {
            let subject = match who {
                Who::User(name) => Subject::User((*name).to_owned()),
                Who::Group(name) => Subject::Group((*name).to_owned()),
            };
            everywhere(vec![subject], words.iter().map(Words::rule).collect())
        })
        .collect();
    let group = |name: &str| Subject::Group(name.to_owned());
    let everybody = vec![
        group("system:authenticated"),
        group("system:unauthenticated"),
    ];
    grants.push(everywhere(everybody, vec![reads(PUBLIC_PATHS)]));
    let known = vec![group("system:authenticated")];
    grants.push(everywhere(known, vec![reads(DISCOVERY_PATHS)]));
    let all_paths = Rule {
        verbs: vec!["*".into()],
        paths: vec!["*".into()],
        ..Rule::default()
    };
    grants.push(everywhere(vec![group("system:masters")], vec![all_paths]));
    grants
}

fn everywhere(subjects: Vec<Subject>, rules: Vec<Rule>) -> Grant {
    Grant {
        subjects,
        namespace: None,
        rules: rules.into(),
    }
}

/// Reading paths, and all below them.
fn reads(paths: &[&str]) -> Rule {
    Rule {
        verbs: vec!["get".into()],
        paths: paths
            .iter()
            .flat_map(|p| [(*p).to_owned(), format!("{p}/*")])
            .collect(),
        ..Rule::default()
    }
}

impl Words {
    fn rule(&self) -> Rule {
        let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        Rule {
            verbs: owned(self.verbs),
            groups: owned(self.groups),
            resources: owned(self.resources),
            ..Rule::default()
        }
    }
}
