//! Everything that is not a resource: discovery, health, version, documentation, metrics.

use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::api::Api;
use super::auth::tokens;
use super::discovery;
use super::failure::{Failure, Result};
use super::openapi;
use super::query::Query;
use super::reply::{self, Reply};

/// The version whose API this server speaks.
const VERSION: (&str, &str) = ("1", "36");

pub fn answer(api: &Api, parts: &Parts, query: &Query, path: &str) -> Result<Reply> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Failure::method_not_allowed());
    }
    let accept = parts
        .headers
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let aggregated = accept.contains("as=APIGroupDiscoveryList");
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["api"] if aggregated => Ok(aggregated_reply(parts, &discovery::aggregated(true))),
        ["apis"] if aggregated => Ok(aggregated_reply(parts, &discovery::aggregated(false))),
        ["api"] => Ok(reply::json(
            StatusCode::OK,
            &discovery::core_versions(&api.config),
        )),
        ["apis"] => Ok(reply::json(StatusCode::OK, &discovery::groups())),
        ["api", version] => found(discovery::resources("", version)),
        ["apis", group] => found(discovery::group(group)),
        ["apis", group, version] => found(discovery::resources(group, version)),
        ["version"] => Ok(reply::json(StatusCode::OK, &version())),
        ["healthz" | "livez" | "readyz", ..] => Ok(health(api, query, path)),
        ["metrics"] => Ok(reply::text(StatusCode::OK, metrics(api))),
        ["openapi", rest @ ..] => document(parts, rest),
        [".well-known", "openid-configuration"] => Ok(reply::json(
            StatusCode::OK,
            &tokens::openid_configuration(api.tokens.issuer()),
        )),
        ["openid", "v1", "jwks"] => found(api.tokens.key_set()),
        [""] => Ok(reply::json(
            StatusCode::OK,
            &json!({"paths": discovery::paths()}),
        )),
        _ => Err(Failure::no_such_path()),
    }
}

fn found(document: Option<serde_json::Value>) -> Result<Reply> {
    document
        .map(|d| reply::json(StatusCode::OK, &d))
        .ok_or_else(Failure::no_such_path)
}

/// Aggregated discovery (`apidiscovery.k8s.io/v2`); clients keep it by its ETag.
fn aggregated_reply(parts: &Parts, list: &serde_json::Value) -> Reply {
    let mut reply = tagged(parts, list.to_string().into_bytes());
    let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// JSON with an ETag, or 304 to a client that has it already.
fn tagged(parts: &Parts, text: Vec<u8>) -> Reply {
    let digest = Sha256::digest(&text);
    let tag = format!("\"{}\"", hex::encode_upper(&digest[..16]));
    let known = parts
        .headers
        .get(IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        == Some(tag.as_str());
    let mut reply = if known {
        reply::json_bytes(StatusCode::NOT_MODIFIED, Vec::new())
    } else {
        reply::json_bytes(StatusCode::OK, text)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        reply.headers_mut().insert(ETAG, tag);
    }
    reply
}

/// client-go reads version 2 of OpenAPI in this form only.
const OPENAPI_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

fn document(parts: &Parts, rest: &[&str]) -> Result<Reply> {
    let accepted = parts
        .headers
        .get(ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if rest == ["v2"] && accepted.contains("proto-openapi.spec.v2") {
        let mut reply = tagged(parts, openapi::v2_protobuf());
        reply
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(OPENAPI_PROTOBUF));
        return Ok(reply);
    }
    let document = match rest {
        ["v3"] => Some(openapi::v3_index()),
        ["v3", group_version @ ..] => openapi::v3_document(&group_version.join("/")),
        ["v2"] => Some(openapi::v2_document()),
        _ => None,
    };
    document
        .map(|d| tagged(parts, d.to_string().into_bytes()))
        .ok_or_else(Failure::no_such_path)
}

fn version() -> serde_json::Value {
    let (major, minor) = VERSION;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+orlop-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", platform()),
    })
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn health(api: &Api, query: &Query, path: &str) -> Reply {
    if api.stop.is_cancelled() && !path.starts_with("/livez") {
        return reply::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "[-]shutdown failed: the server is shutting down\n",
        );
    }
    if query.flag("verbose") {
        let name = path.trim_matches('/');
        return reply::text(
            StatusCode::OK,
            format!("[+]ping ok\n[+]store ok\n{name} check passed\n"),
        );
    }
    reply::text(StatusCode::OK, "ok")
}

/// What is stored, in the Prometheus text format.
fn metrics(api: &Api) -> String {
    let mut text = String::from(
        "# HELP apiserver_storage_objects Number of stored objects at the time of last check split by kind.\n\
         # TYPE apiserver_storage_objects gauge\n",
    );
    for resource in api.cache.resources() {
        let name = super::failure::qualified(resource.kind.group, resource.kind.plural);
        text.push_str(&format!(
            "apiserver_storage_objects{{resource=\"{name}\"}} {}\n",
            resource.count()
        ));
    }
    text.push_str(&format!(
        "# HELP orlop_store_revision The newest revision in memory.\n# TYPE orlop_store_revision gauge\norlop_store_revision {}\n",
        api.cache.applied()
    ));
    text
}
