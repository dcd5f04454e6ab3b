//! Tokens for service accounts (`authentication/v1 TokenRequest`).

use api::field::FieldError;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::api::Api;
use super::super::auth::tokens::{self, Reference};
use super::super::failure::{Failure, Result};
use super::super::negotiate;
use super::super::reply::{self, Reply};
use super::Request;

const MIN_SECONDS: i64 = 600;
const DEFAULT_SECONDS: i64 = 3600;
const MAX_SECONDS: i64 = 1 << 32;

pub async fn create_token(api: &Api, request: &Request) -> Result<Reply> {
    let mut wanted = negotiate::decode_as(
        "authentication/v1.TokenRequest",
        &request.headers,
        &request.body,
    )?;
    let target = &request.target;
    let account = api
        .read(&request.resource, &target.namespace, &target.name)
        .await?
        .value();
    let seconds = wanted["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    let limit = |detail: &str| {
        let error = FieldError::invalid("spec.expirationSeconds", seconds, detail);
        let mut failure = Failure::invalid(request.kind(), "", std::slice::from_ref(&error));
        failure.message = format!("TokenRequest.authentication.k8s.io \"\" is invalid: {error}");
        failure
    };
    if seconds < MIN_SECONDS {
        return Err(limit("may not specify a duration less than 10 minutes"));
    }
    if seconds > MAX_SECONDS {
        return Err(limit("may not specify a duration larger than 2^32 seconds"));
    }
    let mut token = tokens::Request {
        namespace: &target.namespace,
        account: Reference {
            name: target.name.clone(),
            uid: api::object::uid(&account).into(),
        },
        pod: None,
        secret: None,
        node: None,
        audiences: api::object::list(&wanted, "/spec/audiences")
            .iter()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect(),
        seconds,
    };
    bind(api, &wanted, &mut token)?;
    let (text, audiences) = api.tokens.issue(token).map_err(Failure::internal)?;
    let expires = Timestamp::now()
        .saturating_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX);
    wanted["kind"] = "TokenRequest".into();
    wanted["apiVersion"] = "authentication.k8s.io/v1".into();
    wanted["metadata"] =
        json!({"name": target.name, "namespace": target.namespace, "creationTimestamp": null});
    wanted["spec"]["audiences"] = json!(audiences);
    wanted["spec"]["expirationSeconds"] = seconds.into();
    wanted["status"] = json!({"token": text, "expirationTimestamp": api::time::seconds(expires)});
    Ok(reply::json(StatusCode::CREATED, &wanted))
}

/// Binds the token to the object that the request names, which must be there, and use this account.
fn bind(api: &Api, wanted: &Value, token: &mut tokens::Request<'_>) -> Result<()> {
    let Some((kind, mut reference)) = tokens::bound_object(wanted) else {
        return Ok(());
    };
    let plural = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        other => {
            return Err(Failure::bad_request(format!(
                "cannot bind token to object of type {other}"
            )));
        }
    };
    let resource = api
        .cache
        .resource("", "v1", plural)
        .ok_or_else(Failure::no_such_path)?;
    let object = resource
        .get(token.namespace, &reference.name)
        .ok_or_else(|| Failure::not_found(resource.kind, &reference.name))?
        .value();
    let uid = api::object::uid(&object);
    if reference.uid.is_empty() {
        uid.clone_into(&mut reference.uid);
    } else if reference.uid != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            reference.uid
        );
        return Err(Failure::conflict(resource.kind, &reference.name, &why));
    }
    if kind == "Secret" {
        token.secret = Some(reference);
        return Ok(());
    }
    if api::object::text(&object, "/spec/serviceAccountName") != token.account.name {
        return Err(Failure::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            token.account.name
        )));
    }
    token.node = node_of(api, &object);
    token.pod = Some(reference);
    Ok(())
}

fn node_of(api: &Api, pod: &Value) -> Option<Reference> {
    let name = api::object::text(pod, "/spec/nodeName");
    let node = api
        .cache
        .resource("", "v1", "nodes")?
        .get("", name)?
        .value();
    Some(Reference {
        name: name.to_owned(),
        uid: api::object::uid(&node).to_owned(),
    })
}
