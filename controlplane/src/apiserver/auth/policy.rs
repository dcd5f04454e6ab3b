//! Who may do what, as rules: those that are built in, and those of Roles and their bindings
//! (`rbac.authorization.k8s.io/v1`).

use std::sync::Arc;

use api::selector::LabelSelector;
use serde_json::Value;

use super::super::cache::{Cache, Filter, Resource};
use super::super::route::Target;
use super::User;
use super::builtin;

pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The resources that a policy is made of.
pub const SOURCES: [&str; 4] = [
    "roles",
    "clusterroles",
    "rolebindings",
    "clusterrolebindings",
];

/// What is allowed (`rbac/v1 PolicyRule`). `*` is any; a subresource is written `pods/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    /// Only objects of these names; all when there is none.
    pub names: Vec<String>,
    /// Paths that are no resources; one that ends in `*` is all that begins like it.
    pub paths: Vec<String>,
}

impl Rule {
    pub fn parse(rule: &Value) -> Self {
        let texts = |field: &str| {
            let list = api::object::list(rule, &format!("/{field}"));
            list.iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        Self {
            verbs: texts("verbs"),
            groups: texts("apiGroups"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            paths: texts("nonResourceURLs"),
        }
    }

    pub fn permits(&self, target: &Target) -> bool {
        self.covers(
            target.verb,
            &target.group,
            &resource_path(target),
            &target.name,
        )
    }

    /// Whether the rule allows a verb on a resource (`pods/status`); each may be `*`, which only a `*` allows.
    pub fn covers(&self, verb: &str, group: &str, resource: &str, name: &str) -> bool {
        let any_of_subresource = resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
        has(&self.verbs, verb)
            && has(&self.groups, group)
            && (has(&self.resources, resource)
                || any_of_subresource.is_some_and(|any| self.resources.contains(&any)))
            && (self.names.is_empty() || self.names.iter().any(|n| n == name))
    }

    pub fn permits_path(&self, verb: &str, path: &str) -> bool {
        let verb = if verb == "head" { "get" } else { verb };
        has(&self.verbs, verb)
            && self
                .paths
                .iter()
                .any(|known| match known.strip_suffix('*') {
                    Some(prefix) => path.starts_with(prefix),
                    None => known == path,
                })
    }
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|item| item == "*" || item == value)
}

/// `pods/status`
pub fn resource_path(target: &Target) -> String {
    if target.subresource.is_empty() {
        target.resource.clone()
    } else {
        format!("{}/{}", target.resource, target.subresource)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    User(String),
    Group(String),
}

impl Subject {
    pub fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => user.name == *name,
            Self::Group(name) => user.is_in(name),
        }
    }

    /// A binding's subject; `namespace` is the binding's, for service accounts that name none.
    fn parse(subject: &Value, namespace: &str) -> Option<Self> {
        let name = subject["name"].as_str()?;
        Some(match subject["kind"].as_str()? {
            "User" => Self::User(name.to_owned()),
            "Group" => Self::Group(name.to_owned()),
            "ServiceAccount" => {
                let own = subject["namespace"].as_str().filter(|n| !n.is_empty());
                let namespace = own.unwrap_or(namespace);
                Self::User(format!("system:serviceaccount:{namespace}:{name}"))
            }
            _ => return None,
        })
    }
}

/// Rules that hold for subjects, in one namespace or everywhere.
#[derive(Clone, Debug)]
pub struct Grant {
    pub subjects: Vec<Subject>,
    pub namespace: Option<String>,
    pub rules: Arc<[Rule]>,
}

/// Every grant of a cluster.
#[derive(Debug)]
pub struct Policy {
    grants: Vec<Grant>,
}

impl Policy {
    /// The built-in grants, and those of every binding in the cache.
    pub fn of(cache: &Cache) -> Self {
        let mut grants = builtin::grants();
        for plural in ["clusterrolebindings", "rolebindings"] {
            for binding in objects(cache, plural) {
                let namespace = api::object::namespace(&binding).to_owned();
                let subjects = api::object::list(&binding, "/subjects").iter();
                grants.push(Grant {
                    subjects: subjects
                        .filter_map(|s| Subject::parse(s, &namespace))
                        .collect(),
                    rules: referenced_rules(cache, &binding["roleRef"], &namespace).into(),
                    namespace: (plural == "rolebindings").then_some(namespace),
                });
            }
        }
        Self { grants }
    }

    /// The rules that hold for a user in a namespace; those that hold everywhere when that is empty.
    pub fn rules(&self, user: &User, namespace: &str) -> impl Iterator<Item = &Rule> {
        self.grants
            .iter()
            .filter(move |grant| grant.namespace.as_deref().is_none_or(|n| n == namespace))
            .filter(|grant| grant.subjects.iter().any(|s| s.is(user)))
            .flat_map(|grant| grant.rules.iter())
    }
}

fn resource<'a>(cache: &'a Cache, plural: &str) -> Option<&'a Arc<Resource>> {
    cache.resource(GROUP, "v1", plural)
}

fn objects(cache: &Cache, plural: &str) -> Vec<Value> {
    let Some(resource) = resource(cache, plural) else {
        return Vec::new();
    };
    let (objects, _) = resource.list(&Filter::default(), cache.applied());
    objects.iter().map(|o| o.value()).collect()
}

/// The rules of the role that a binding in `namespace` refers to; none when there is no such role.
pub fn referenced_rules(cache: &Cache, reference: &Value, namespace: &str) -> Vec<Rule> {
    let name = reference["name"].as_str().unwrap_or_default();
    let role = match reference["kind"].as_str() {
        Some("Role") => resource(cache, "roles").and_then(|r| r.get(namespace, name)),
        Some("ClusterRole") => resource(cache, "clusterroles").and_then(|r| r.get("", name)),
        _ => None,
    };
    role.map(|role| role_rules(cache, &role.value()))
        .unwrap_or_default()
}

/// A role's own rules, and those of the ClusterRoles that it is an aggregate of.
pub fn role_rules(cache: &Cache, role: &Value) -> Vec<Rule> {
    let own = |role: &Value| -> Vec<Rule> {
        api::object::list(role, "/rules")
            .iter()
            .map(Rule::parse)
            .collect()
    };
    let mut rules = own(role);
    let selectors: Vec<LabelSelector> =
        api::object::list(role, "/aggregationRule/clusterRoleSelectors")
            .iter()
            .filter_map(|s| LabelSelector::from_object(s).ok())
            .collect();
    if !selectors.is_empty() {
        for other in objects(cache, "clusterroles") {
            let labels = &other["metadata"]["labels"];
            if selectors.iter().any(|s| s.matches_json(labels)) {
                rules.extend(own(&other));
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(verb: &'static str, resource: &str, subresource: &str, name: &str) -> Target {
        Target {
            verb,
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_rule_is_for_its_verbs_resources_and_names() {
        let rule = Rule::parse(&json!({
            "verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/scale"], "resourceNames": ["a"],
        }));
        assert!(rule.permits(&target("get", "pods", "", "a")));
        assert!(!rule.permits(&target("get", "pods", "", "b")));
        assert!(!rule.permits(&target("list", "pods", "", "")));
        assert!(!rule.permits(&target("get", "pods", "log", "a")));
        assert!(rule.permits(&target("get", "anything", "scale", "a")));
    }

    #[test]
    fn a_path_may_end_in_a_star() {
        let rule =
            Rule::parse(&json!({"verbs": ["get"], "nonResourceURLs": ["/metrics", "/logs/*"]}));
        assert!(rule.permits_path("head", "/metrics") && rule.permits_path("get", "/logs/a"));
        assert!(!rule.permits_path("get", "/metrics/a") && !rule.permits_path("post", "/metrics"));
    }

    #[test]
    fn a_service_account_is_a_user_of_its_namespace() {
        let subject = json!({"kind": "ServiceAccount", "name": "robot"});
        let expected = Subject::User("system:serviceaccount:x:robot".into());
        assert_eq!(Subject::parse(&subject, "x"), Some(expected));
    }
}
