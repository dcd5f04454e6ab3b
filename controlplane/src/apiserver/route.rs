//! What a request's method and path ask for, in the API's terms.

use http::Method;

use super::query::{Query, decode};

/// A request in the terms that authorization and dispatch work with (upstream's `RequestInfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Resource(Target),
    /// Anything outside `/api/v1/…` and `/apis/GROUP/VERSION/…`; the verb is the method in lower case.
    Path {
        verb: String,
        path: String,
    },
}

/// A resource, or one object of it, and what to do with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    /// Plural name.
    pub resource: String,
    pub subresource: String,
    /// What follows the subresource, for `proxy`.
    pub rest: String,
    pub namespace: String,
    pub name: String,
}

/// Sorts a request by its method, path and query.
pub fn route(method: &Method, path: &str, query: &Query) -> Route {
    target(method, path, query).map_or_else(
        || Route::Path {
            verb: method.as_str().to_ascii_lowercase(),
            path: path.to_owned(),
        },
        Route::Resource,
    )
}

fn target(method: &Method, path: &str, query: &Query) -> Option<Target> {
    let mut parts = path.trim_matches('/').split('/').peekable();
    let (group, version) = match parts.next()? {
        "api" => ("", parts.next()?),
        "apis" => (parts.next()?, parts.next()?),
        _ => return None,
    };
    let mut target = Target {
        group: group.into(),
        version: version.into(),
        ..Default::default()
    };
    // The old form of a watch, which some clients still use.
    let watch = parts.next_if_eq(&"watch").is_some() || query.flag("watch");
    let first = parts.next().filter(|p| !p.is_empty())?;
    if first == "namespaces"
        && let Some(namespace) = parts.next()
    {
        target.namespace = decode(namespace, false);
        match parts.next() {
            Some(resource) if !matches!(resource, "status" | "finalize") => {
                target.resource = resource.into()
            }
            subresource => {
                target.resource = first.into();
                target.name = target.namespace.clone();
                target.subresource = subresource.unwrap_or_default().into();
            }
        }
    } else {
        target.resource = first.into();
    }
    if target.name.is_empty() {
        target.name = parts.next().map(|p| decode(p, false)).unwrap_or_default();
        target.subresource = parts.next().unwrap_or_default().into();
    }
    target.rest = parts.collect::<Vec<_>>().join("/");
    if path.ends_with('/') && !target.rest.is_empty() {
        target.rest.push('/');
    }
    target.verb = verb(
        method,
        !target.name.is_empty(),
        watch && target.subresource.is_empty(),
    )?;
    if target.resource == "pods"
        && matches!(&*target.subresource, "exec" | "attach" | "portforward")
    {
        // A WebSocket begins with GET, but to run something in a pod is no reading.
        target.verb = "create";
    }
    if target.verb == "list" || target.verb == "watch" || target.verb == "deletecollection" {
        // `metadata.name=x` narrows a list to one object, for which alone one may have permission.
        let selected = query
            .get("fieldSelector")
            .and_then(|s| s.strip_prefix("metadata.name="));
        target.name = selected
            .filter(|s| !s.contains(','))
            .unwrap_or_default()
            .to_owned();
    }
    Some(target)
}

fn verb(method: &Method, named: bool, watch: bool) -> Option<&'static str> {
    Some(match (method.as_str(), named) {
        ("GET" | "HEAD", _) if watch => "watch",
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        ("OPTIONS", _) => "options",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(method: Method, path: &str, query: &str) -> Target {
        match route(&method, path, &Query::parse(query)) {
            Route::Resource(target) => target,
            Route::Path { path, .. } => panic!("{path} is not a resource"),
        }
    }

    #[test]
    fn paths_name_a_resource_and_what_to_do() {
        let cases = [
            (Method::GET, "/api/v1/pods", "", "list pods  /"),
            (Method::GET, "/api/v1/pods", "watch=true", "watch pods  /"),
            (Method::GET, "/api/v1/watch/pods", "", "watch pods  /"),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/b",
                "",
                "get pods a b/",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/b/log",
                "",
                "get pods a b/log",
            ),
            (
                Method::POST,
                "/api/v1/namespaces/a/pods/b/binding",
                "",
                "create pods a b/binding",
            ),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/a/deployments",
                "",
                "deletecollection deployments a /",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                "",
                "get namespaces a a/",
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                "",
                "update namespaces a a/finalize",
            ),
            (
                Method::GET,
                "/api/v1/namespaces",
                "fieldSelector=metadata.name%3Dx",
                "list namespaces  x/",
            ),
            (
                Method::PATCH,
                "/api/v1/nodes/n/status",
                "",
                "patch nodes  n/status",
            ),
            (
                Method::GET,
                "/api/v1/nodes/n/proxy/orlop/pods",
                "",
                "get nodes  n/proxy",
            ),
        ];
        for (method, path, query, expected) in cases {
            let t = routed(method, path, query);
            let found = format!(
                "{} {} {} {}/{}",
                t.verb, t.resource, t.namespace, t.name, t.subresource
            );
            assert_eq!(found, expected, "{path}");
        }
        assert_eq!(
            routed(Method::GET, "/api/v1/nodes/n/proxy/orlop/pods", "").rest,
            "orlop/pods"
        );
    }

    #[test]
    fn other_paths_are_just_paths() {
        for path in [
            "/",
            "/version",
            "/api",
            "/api/v1",
            "/apis/apps/v1",
            "/openapi/v3/apis/apps/v1",
        ] {
            assert!(
                matches!(
                    route(&Method::GET, path, &Query::default()),
                    Route::Path { .. }
                ),
                "{path}"
            );
        }
    }
}
