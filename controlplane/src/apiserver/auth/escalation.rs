//! Nobody gives away what they don't have: whoever writes a role, or binds one, must have every right in it, or the
//! right to `escalate` or `bind`.

use serde_json::Value;

use super::super::api::Api;
use super::super::failure::{Failure, Result};
use super::super::kind::Kind;
use super::super::route::{Route, Target};
use super::User;
use super::policy::{GROUP, Policy, Rule, referenced_rules, role_rules};

/// Checks a role or binding that is to be written.
///
/// # Errors
/// 403 with the rights that the user lacks, 404 for a binding to a role that is not there.
pub fn check(api: &Api, kind: &Kind, user: &User, new: &Value, old: Option<&Value>) -> Result<()> {
    if kind.group != GROUP || user.is_in("system:masters") {
        return Ok(());
    }
    let unchanged = |field: &str| old.is_some_and(|old| old[field] == new[field]);
    let (namespace, name) = (api::object::namespace(new), api::object::name(new));
    let granted = if kind.plural.ends_with("bindings") {
        if unchanged("subjects") && unchanged("roleRef") {
            return Ok(());
        }
        let reference = &new["roleRef"];
        let (role, plural) = match reference["kind"].as_str() {
            Some("Role") => (reference["name"].as_str(), "roles"),
            _ => (reference["name"].as_str(), "clusterroles"),
        };
        let role = role.unwrap_or_default();
        if may(api, user, "bind", plural, namespace, role) {
            return Ok(());
        }
        let scope = if plural == "roles" { namespace } else { "" };
        let resource = api
            .cache
            .resource(GROUP, "v1", plural)
            .ok_or_else(Failure::no_such_path)?;
        if resource.get(scope, role).is_none() {
            return Err(Failure::not_found(resource.kind, role));
        }
        referenced_rules(&api.cache, reference, namespace)
    } else {
        if unchanged("rules") && unchanged("aggregationRule") {
            return Ok(());
        }
        if may(api, user, "escalate", kind.plural, namespace, name) {
            return Ok(());
        }
        role_rules(&api.cache, new)
    };
    let policy = api.authorizer.policy();
    let lacking: Vec<String> = granted
        .iter()
        .filter(|rule| !has_all_of(&policy, user, namespace, rule))
        .map(describe)
        .collect();
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(refusal(kind, user, name, &lacking))
    }
}

fn may(
    api: &Api,
    user: &User,
    verb: &'static str,
    plural: &str,
    namespace: &str,
    name: &str,
) -> bool {
    let target = Target {
        verb,
        group: GROUP.into(),
        version: "v1".into(),
        resource: plural.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Target::default()
    };
    api.authorizer.allows(user, &Route::Resource(target))
}

/// Whether the user has every right in `rule`.
fn has_all_of(policy: &Policy, user: &User, namespace: &str, rule: &Rule) -> bool {
    let any_name = [String::new()];
    let names = if rule.names.is_empty() {
        &any_name[..]
    } else {
        &rule.names
    };
    let covered = |verb: &str, group: &str, resource: &str, name: &str| {
        policy
            .rules(user, namespace)
            .any(|own| own.covers(verb, group, resource, name))
    };
    rule.verbs.iter().all(|verb| {
        rule.paths.iter().all(|path| {
            policy
                .rules(user, namespace)
                .any(|own| own.permits_path(verb, path))
        }) && rule.groups.iter().all(|group| {
            rule.resources.iter().all(|resource| {
                names
                    .iter()
                    .all(|name| covered(verb, group, resource, name))
            })
        })
    })
}

fn refusal(kind: &Kind, user: &User, name: &str, lacking: &[String]) -> Failure {
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lacking.join("\n")
    );
    Failure::forbidden(kind, name, &why)
}

/// A rule as upstream prints it.
fn describe(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("NonResourceURLs", &rule.paths),
        ("Verbs", &rule.verbs),
    ];
    let told: Vec<String> = parts
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted(list)))
        .collect();
    format!("{{{}}}", told.join(", "))
}

fn quoted(list: &[String]) -> String {
    let words: Vec<String> = list.iter().map(|w| format!("{w:?}")).collect();
    format!("[{}]", words.join(" "))
}
