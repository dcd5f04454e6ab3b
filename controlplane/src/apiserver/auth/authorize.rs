//! Whether a user may do what a request asks.
//!
//! Built-in rules for the cluster's components come first and, for everybody else, nothing is allowed yet but
//! discovery; Role-based rules join here, in [`allows`], as one more source of [`Rule`]s.

use super::super::failure::{Failure, Result, qualified};
use super::super::route::{Route, Target};
use super::User;
use super::rules::{DISCOVERY_PATHS, GRANTS, PUBLIC_PATHS, Rule, Subject};
use http::StatusCode;

/// # Errors
/// 403 in upstream's words.
pub fn authorize(user: &User, route: &Route) -> Result<()> {
    if allows(user, route) {
        Ok(())
    } else {
        Err(denial(user, route))
    }
}

/// Whether `user` may do it.
pub fn allows(user: &User, route: &Route) -> bool {
    match route {
        _ if user.is_in("system:masters") => true,
        Route::Path { verb, path } => {
            let under = |root: &str| {
                path.strip_prefix(root)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            matches!(verb.as_str(), "get" | "head") && readable_paths(user).any(under)
        }
        Route::Resource(target) => {
            rules(user).any(|rule| permits(rule, target)) && !touches_another_node(user, target)
        }
    }
}

/// The rules that hold for a user.
pub fn rules(user: &User) -> impl Iterator<Item = &'static Rule> {
    GRANTS
        .iter()
        .filter(|grant| match grant.subject {
            Subject::User(name) => user.name == name,
            Subject::Group(name) => user.is_in(name),
        })
        .flat_map(|grant| grant.rules)
}

/// The paths that a user may read, with all below them.
pub fn readable_paths(user: &User) -> impl Iterator<Item = &'static str> {
    let discovery = user.is_in("system:authenticated");
    let more = if discovery { DISCOVERY_PATHS } else { &[] };
    PUBLIC_PATHS.iter().chain(more).copied()
}

fn permits(rule: &Rule, target: &Target) -> bool {
    let has = |list: &[&str], value: &str| list.iter().any(|item| *item == "*" || *item == value);
    let resource = resource_path(target);
    has(rule.groups, &target.group)
        && has(rule.resources, &resource)
        && has(rule.verbs, target.verb)
}

fn resource_path(target: &Target) -> String {
    if target.subresource.is_empty() {
        target.resource.clone()
    } else {
        format!("{}/{}", target.resource, target.subresource)
    }
}

/// A kubelet writes no node but its own (upstream's NodeRestriction).
fn touches_another_node(user: &User, target: &Target) -> bool {
    let Some(node) = user.name.strip_prefix("system:node:") else {
        return false;
    };
    let writes = !matches!(target.verb, "get" | "list" | "watch");
    let named = !target.name.is_empty() && target.name != node;
    writes && named && target.group.is_empty() && target.resource == "nodes"
}

fn denial(user: &User, route: &Route) -> Failure {
    match route {
        Route::Path { verb, path } => {
            let message = format!(
                "forbidden: User {:?} cannot {verb} path {path:?}",
                user.name
            );
            let mut failure = Failure::new(StatusCode::FORBIDDEN, "Forbidden", message);
            failure.details = serde_json::json!({});
            failure
        }
        Route::Resource(target) => {
            let resource = qualified(&target.group, &target.resource);
            let subject = if target.name.is_empty() {
                resource
            } else {
                format!("{resource} {:?}", target.name)
            };
            let scope = if target.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {:?}", target.namespace)
            };
            let message = format!(
                "{subject} is forbidden: User {:?} cannot {} resource {:?} in API group {:?} {scope}",
                user.name,
                target.verb,
                resource_path(target),
                target.group,
            );
            let mut failure = Failure::new(StatusCode::FORBIDDEN, "Forbidden", message);
            failure.details = serde_json::json!({"kind": target.resource});
            for (field, value) in [("name", &target.name), ("group", &target.group)] {
                if !value.is_empty() {
                    failure.details[field] = value.as_str().into();
                }
            }
            failure
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::super::super::query::Query;
    use super::super::super::route::route;
    use super::*;

    fn may(user: &User, method: Method, path: &str) -> bool {
        allows(user, &route(&method, path, &Query::default()))
    }

    #[test]
    fn a_node_writes_its_own_node_only() {
        let node = User::authenticated("system:node:a", ["system:nodes"]);
        assert!(may(&node, Method::PATCH, "/api/v1/nodes/a/status"));
        assert!(!may(&node, Method::PATCH, "/api/v1/nodes/b/status"));
        assert!(may(&node, Method::GET, "/api/v1/nodes/b"));
        assert!(!may(&node, Method::DELETE, "/api/v1/namespaces/default"));
    }

    #[test]
    fn a_stranger_gets_upstreams_words() {
        let user = User::authenticated(
            "system:serviceaccount:default:default",
            ["system:serviceaccounts"],
        );
        let path = "/apis/apps/v1/namespaces/x/deployments";
        let failure = authorize(&user, &route(&Method::GET, path, &Query::default())).unwrap_err();
        assert_eq!(
            failure.message,
            "deployments.apps is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \
             \"deployments\" in API group \"apps\" in the namespace \"x\""
        );
        assert!(may(&user, Method::GET, "/apis/apps/v1") && may(&user, Method::GET, "/openapi/v3"));
        assert!(
            !may(&User::anonymous(), Method::GET, "/apis")
                && may(&User::anonymous(), Method::GET, "/livez")
        );
    }
}
