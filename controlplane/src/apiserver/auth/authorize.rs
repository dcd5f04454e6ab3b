//! Whether a user may do what a request asks, by the rules of the [`policy`](super::policy).

use std::sync::{Arc, Mutex};

use http::StatusCode;

use super::super::cache::Cache;
use super::super::failure::{Failure, Result, qualified};
use super::super::route::Route;
use super::User;
use super::node;
use super::policy::{GROUP, Policy, SOURCES, resource_path};
use crate::store::Revision;

/// Decides, by a policy that is made anew when a role or binding has changed.
pub struct Authorizer {
    cache: Arc<Cache>,
    policy: Mutex<Option<(Stamp, Arc<Policy>)>>,
}

/// The last change of each source of a policy.
type Stamp = [Revision; SOURCES.len()];

impl Authorizer {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            policy: Mutex::new(None),
        }
    }

    /// # Errors
    /// 403 in upstream's words.
    pub fn authorize(&self, user: &User, route: &Route) -> Result<()> {
        if self.allows(user, route) {
            Ok(())
        } else {
            Err(denial(user, route))
        }
    }

    /// Whether `user` may do it.
    pub fn allows(&self, user: &User, route: &Route) -> bool {
        if user.is_in("system:masters") {
            return true;
        }
        let policy = self.policy();
        match route {
            Route::Path { verb, path } => policy
                .rules(user, "")
                .any(|rule| rule.permits_path(verb, path)),
            Route::Resource(target) => {
                let mut rules = policy.rules(user, &target.namespace);
                rules.any(|rule| rule.permits(target)) && node::permits(&self.cache, user, target)
            }
        }
    }

    /// The rules as they are now.
    pub fn policy(&self) -> Arc<Policy> {
        let changed = |plural: &str| {
            let resource = self.cache.resource(GROUP, "v1", plural);
            resource.map(|r| r.revision()).unwrap_or_default()
        };
        let stamp: Stamp = SOURCES.map(changed);
        let mut kept = self
            .policy
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((of, policy)) = &*kept
            && *of == stamp
        {
            return policy.clone();
        }
        let policy = Arc::new(Policy::of(&self.cache));
        *kept = Some((stamp, policy.clone()));
        policy
    }
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
pub(super) mod tests {
    use http::Method;

    use super::super::super::query::Query;
    use super::super::super::route::route;
    use super::*;
    use crate::apiserver::kinds::kinds;
    use crate::store::sqlite::Sqlite;

    pub async fn authorizer(folder: &std::path::Path) -> Authorizer {
        let store = Arc::new(Sqlite::open(&folder.join("store.db")).unwrap());
        Authorizer::new(
            Cache::start(store, kinds(), Default::default())
                .await
                .unwrap(),
        )
    }

    fn asked(method: Method, path: &str) -> Route {
        route(&method, path, &Query::default())
    }

    #[tokio::test]
    async fn a_node_writes_its_own_node_only() {
        let folder = tempfile::tempdir().unwrap();
        let authorizer = authorizer(folder.path()).await;
        let node = User::authenticated("system:node:a", ["system:nodes"]);
        let may = |method, path| authorizer.allows(&node, &asked(method, path));
        assert!(may(Method::PATCH, "/api/v1/nodes/a/status"));
        assert!(!may(Method::PATCH, "/api/v1/nodes/b/status"));
        assert!(may(Method::GET, "/api/v1/nodes/b"));
        assert!(!may(Method::DELETE, "/api/v1/namespaces/default"));
    }

    #[tokio::test]
    async fn a_stranger_gets_upstreams_words() {
        let folder = tempfile::tempdir().unwrap();
        let authorizer = authorizer(folder.path()).await;
        let robot = User::authenticated(
            "system:serviceaccount:default:default",
            ["system:serviceaccounts"],
        );
        let path = "/apis/apps/v1/namespaces/x/deployments";
        let failure = authorizer
            .authorize(&robot, &asked(Method::GET, path))
            .unwrap_err();
        assert_eq!(
            failure.message,
            "deployments.apps is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \
             \"deployments\" in API group \"apps\" in the namespace \"x\""
        );
        for path in ["/apis/apps/v1", "/openapi/v3", "/version"] {
            assert!(
                authorizer.allows(&robot, &asked(Method::GET, path)),
                "{path}"
            );
        }
        let anonymous = User::anonymous();
        assert!(!authorizer.allows(&anonymous, &asked(Method::GET, "/apis")));
        assert!(authorizer.allows(&anonymous, &asked(Method::GET, "/livez")));
    }
}
