//! What the cluster's own components may do, as upstream's bootstrap policy has it.

/// Verbs on resources. `*` is any; a subresource is written `pods/status`.
pub struct Rule {
    pub groups: &'static [&'static str],
    pub resources: &'static [&'static str],
    pub verbs: &'static [&'static str],
}

pub enum Subject {
    User(&'static str),
    Group(&'static str),
}

/// Rules that hold for a subject.
pub struct Grant {
    pub subject: Subject,
    pub rules: &'static [Rule],
}

/// Paths that anybody may read (`system:public-info-viewer`).
pub const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

/// Paths that every authenticated user may read, with all below them (`system:discovery`).
pub const DISCOVERY_PATHS: &[&str] = &["/api", "/apis", "/openapi", "/.well-known", "/openid"];

const READ: &[&str] = &["get", "list", "watch"];
const ANY: &[&str] = &["*"];

const fn rule(
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Rule {
    Rule {
        groups,
        resources,
        verbs,
    }
}

const EVENTS: Rule = rule(
    &["", "events.k8s.io"],
    &["events"],
    &["create", "patch", "update"],
);
const LEASES: Rule = rule(&["coordination.k8s.io"], &["leases"], ANY);
const REVIEWS: Rule = rule(
    &["authentication.k8s.io", "authorization.k8s.io"],
    &[
        "tokenreviews",
        "subjectaccessreviews",
        "localsubjectaccessreviews",
    ],
    &["create"],
);

pub const GRANTS: &[Grant] = &[
    Grant {
        subject: Subject::Group("system:masters"),
        rules: &[rule(ANY, ANY, ANY)],
    },
    Grant {
        subject: Subject::Group("system:authenticated"),
        rules: &[
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
    },
    Grant {
        subject: Subject::Group("system:nodes"),
        rules: &[
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
    },
    Grant {
        subject: Subject::User("system:kube-scheduler"),
        rules: &[
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
    },
    Grant {
        subject: Subject::User("system:kube-controller-manager"),
        rules: &[rule(ANY, ANY, ANY)],
    },
    Grant {
        subject: Subject::User("system:kube-proxy"),
        rules: &[
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
    },
];
