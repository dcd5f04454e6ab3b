//! Questions that are answered and not stored: who am I, may I, whose token is this
//! (`authentication.k8s.io/v1`, `authorization.k8s.io/v1`).

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::api::Api;
use super::auth::User;
use super::failure::{Failure, Result};
use super::negotiate;
use super::reply::{self, Reply};
use super::route::{Route, Target};

pub struct Review {
    pub group: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
    schema: &'static str,
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

pub const REVIEWS: &[Review] = &[
    Review {
        group: AUTHENTICATION,
        kind: "TokenReview",
        plural: "tokenreviews",
        namespaced: false,
        schema: "authentication/v1.TokenReview",
    },
    Review {
        group: AUTHENTICATION,
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        namespaced: false,
        schema: "authentication/v1.SelfSubjectReview",
    },
    Review {
        group: AUTHORIZATION,
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        namespaced: false,
        schema: "authorization/v1.SubjectAccessReview",
    },
    Review {
        group: AUTHORIZATION,
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        namespaced: false,
        schema: "authorization/v1.SelfSubjectAccessReview",
    },
    Review {
        group: AUTHORIZATION,
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        namespaced: false,
        schema: "authorization/v1.SelfSubjectRulesReview",
    },
    Review {
        group: AUTHORIZATION,
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        namespaced: true,
        schema: "authorization/v1.LocalSubjectAccessReview",
    },
];

fn find(target: &Target) -> Option<&'static Review> {
    REVIEWS
        .iter()
        .find(|r| r.group == target.group && r.plural == target.resource && target.version == "v1")
}

pub fn is_review(target: &Target) -> bool {
    find(target).is_some()
}

/// # Errors
/// 405 for anything but create, 400 for a body that is none.
pub fn answer(
    api: &Api,
    user: &User,
    target: &Target,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Reply> {
    let review = find(target).ok_or_else(Failure::no_such_path)?;
    if target.verb != "create" || !target.name.is_empty() {
        return Err(Failure::method_not_allowed());
    }
    let mut object = negotiate::decode_as(review.schema, headers, body)?;
    object["kind"] = review.kind.into();
    object["apiVersion"] = format!("{}/v1", review.group).into();
    object["status"] = match review.kind {
        "TokenReview" => token_status(api, &object),
        "SelfSubjectReview" => json!({"userInfo": user.to_json()}),
        "SelfSubjectRulesReview" => rules_status(api, user, &object),
        "SelfSubjectAccessReview" => access_status(api, user, &object)?,
        _ => access_status(api, &subject(&object), &object)?,
    };
    Ok(reply::json(StatusCode::CREATED, &object))
}

fn token_status(api: &Api, review: &Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let audiences: Vec<String> = api::object::list(review, "/spec/audiences")
        .iter()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    match api.tokens.verify(token, &audiences, &api.cache) {
        Ok(user) => {
            let audiences = if audiences.is_empty() {
                vec![api.tokens.issuer().to_owned()]
            } else {
                audiences
            };
            json!({"authenticated": true, "user": user.to_json(), "audiences": audiences})
        }
        Err(error) => json!({"error": error.to_string()}),
    }
}

fn subject(review: &Value) -> User {
    let spec = &review["spec"];
    User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: api::object::list(spec, "/groups")
            .iter()
            .filter_map(|g| g.as_str().map(str::to_owned))
            .collect(),
        extra: Vec::new(),
    }
}

fn access_status(api: &Api, user: &User, review: &Value) -> Result<Value> {
    let spec = &review["spec"];
    let route = if let Some(path) = spec["nonResourceAttributes"].as_object() {
        let text = |field: &str| {
            path.get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        Route::Path {
            verb: text("verb"),
            path: text("path"),
        }
    } else if spec["resourceAttributes"].is_object() {
        let text = |field: &str| {
            api::object::text(&spec["resourceAttributes"], &format!("/{field}")).to_owned()
        };
        Route::Resource(Target {
            verb: verb(&text("verb")),
            group: text("group"),
            version: text("version"),
            resource: text("resource"),
            subresource: text("subresource"),
            rest: String::new(),
            namespace: text("namespace"),
            name: text("name"),
        })
    } else {
        return Err(Failure::bad_request(
            "spec: Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    };
    let allowed = api.authorizer.allows(user, &route);
    Ok(if allowed {
        json!({"allowed": true})
    } else {
        json!({"allowed": false, "reason": ""})
    })
}

/// Everything that `user` may do in a namespace, for `kubectl auth can-i --list`.
fn rules_status(api: &Api, user: &User, review: &Value) -> Value {
    let namespace = api::object::text(review, "/spec/namespace");
    let policy = api.authorizer.policy();
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in policy.rules(user, namespace) {
        if rule.paths.is_empty() {
            let mut shown =
                json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                shown["resourceNames"] = json!(rule.names);
            }
            resources.push(shown);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths}));
        }
    }
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

/// The verbs that rules know; any other is asked for in vain by all but those who may do everything.
fn verb(text: &str) -> &'static str {
    const VERBS: &[&str] = &[
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "proxy",
        "use",
        "bind",
        "escalate",
        "impersonate",
    ];
    VERBS
        .iter()
        .find(|v| **v == text)
        .copied()
        .unwrap_or("other")
}
