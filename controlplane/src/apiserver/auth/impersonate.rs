//! `kubectl --as`: a request made as somebody else, by who may do that.

use http::HeaderMap;

use super::super::failure::{Failure, Result};
use super::super::query::decode;
use super::super::route::{Route, Target};
use super::User;
use super::authorize::Authorizer;

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

/// The user that the request is to be taken as made by: `user`, unless its headers say otherwise.
///
/// # Errors
/// 403 when `user` may not speak for that one, 400 for groups without a user.
pub fn impersonate(authorizer: &Authorizer, user: User, headers: &HeaderMap) -> Result<User> {
    let check = |resource: &str, namespace: &str, name: &str| {
        check(authorizer, &user, resource, namespace, name)
    };
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let Some(name) = text(USER).filter(|name| !name.is_empty()) else {
        let alone = headers
            .keys()
            .any(|h| h == GROUP || h == UID || h.as_str().starts_with(EXTRA));
        if alone {
            let message = "requested impersonation without impersonating a user";
            return Err(Failure::bad_request(message));
        }
        return Ok(user);
    };
    let groups: Vec<&str> = headers
        .get_all(GROUP)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => check("serviceaccounts", namespace, name)?,
        None => check("users", "", name)?,
    }
    for group in &groups {
        check("groups", "", group)?;
    }
    let mut other = User::authenticated(name, groups.iter().copied());
    if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
        let own = [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ];
        other = User::authenticated(name, own);
    }
    if let Some(uid) = text(UID) {
        check("uids", "", uid)?;
        other.uid = uid.to_owned();
    }
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            let value = value.to_str().unwrap_or_default();
            check("userextras", "", value)?;
            let key = decode(key, false);
            match other.extra.iter_mut().find(|(k, _)| *k == key) {
                Some((_, values)) => values.push(value.to_owned()),
                None => other.extra.push((key, vec![value.to_owned()])),
            }
        }
    }
    Ok(other)
}

fn check(
    authorizer: &Authorizer,
    user: &User,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Result<()> {
    let authentication = matches!(resource, "uids" | "userextras");
    authorizer.authorize(
        user,
        &Route::Resource(Target {
            verb: "impersonate",
            group: if authentication {
                "authentication.k8s.io"
            } else {
                ""
            }
            .into(),
            version: "v1".into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Default::default()
        }),
    )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::authorize::tests::authorizer;
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[tokio::test]
    async fn the_administrator_may_speak_for_others_and_others_may_not() {
        let folder = tempfile::tempdir().unwrap();
        let authorizer = authorizer(folder.path()).await;
        let admin = User::authenticated("admin", ["system:masters"]);
        let asked = headers(&[
            (USER, "jane"),
            (GROUP, "dev"),
            (GROUP, "ops"),
            ("impersonate-extra-a%2fb", "1"),
        ]);
        let jane = impersonate(&authorizer, admin, &asked).unwrap();
        assert_eq!(jane.name, "jane");
        assert_eq!(jane.groups, ["dev", "ops", "system:authenticated"]);
        assert_eq!(jane.extra, [("a/b".to_owned(), vec!["1".to_owned()])]);

        let refused = impersonate(&authorizer, jane, &asked).unwrap_err();
        assert!(
            refused
                .message
                .starts_with("users \"jane\" is forbidden: User \"jane\" cannot impersonate")
        );
    }

    #[tokio::test]
    async fn a_service_account_comes_with_its_groups() {
        let folder = tempfile::tempdir().unwrap();
        let authorizer = authorizer(folder.path()).await;
        let admin = User::authenticated("admin", ["system:masters"]);
        let robot = impersonate(
            &authorizer,
            admin.clone(),
            &headers(&[(USER, "system:serviceaccount:x:robot")]),
        )
        .unwrap();
        assert!(robot.is_in("system:serviceaccounts:x"));
        assert!(impersonate(&authorizer, admin, &headers(&[(GROUP, "dev")])).is_err());
    }
}
