//! OpenAPI documents: what `kubectl explain`, `kubectl apply` and generated clients learn about the kinds.
//!
//! Names, types and descriptions come from the `JsonSchema` implementations of k8s-openapi; how lists merge, from
//! [`api::schema`]; paths from [`kinds`](super::kinds). Documents are large and rarely asked for: each is built when
//! it is asked for and not kept.

mod definitions;
mod gnostic;
mod operations;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::kind::Kind;
use super::kinds::kinds;

/// The version of the Kubernetes API that the types are of.
const API_VERSION: &str = "v1.36";

/// Which form of OpenAPI a document has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    V2,
    V3,
}

impl Form {
    /// JSON pointer of the folder of types.
    fn types(self) -> &'static str {
        match self {
            Self::V2 => "/definitions",
            Self::V3 => "/components/schemas",
        }
    }
}

/// `/openapi/v3`: where each group and version has its document. A hash in the address makes it cacheable for good.
pub fn v3_index() -> Value {
    let mut paths = Map::new();
    for kind in kinds() {
        let path = root(kind);
        let url = format!("/openapi/v3/{path}?hash={}", hash());
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `/openapi/v3/{path}`, where the path is `api/v1` or `apis/apps/v1`; `None` if there is no such group and version.
pub fn v3_document(path: &str) -> Option<Value> {
    let served: Vec<&Kind> = kinds().iter().filter(|kind| root(kind) == path).collect();
    if served.is_empty() {
        return None;
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": operations::paths(&served, Form::V3),
        "components": {"schemas": definitions::of(&served, Form::V3)},
    }))
}

/// `/openapi/v2`: every group in one document.
pub fn v2_document() -> Value {
    let served: Vec<&Kind> = kinds().iter().collect();
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": operations::paths(&served, Form::V2),
        "definitions": definitions::of(&served, Form::V2),
    })
}

/// `/openapi/v2` in protobuf.
pub fn v2_protobuf() -> Vec<u8> {
    gnostic::encode(&v2_document())
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": API_VERSION})
}

/// Path of a kind's group and version, without a leading slash.
fn root(kind: &Kind) -> String {
    if kind.group.is_empty() {
        format!("api/{}", kind.version)
    } else {
        format!("apis/{}", kind.api_version())
    }
}

fn group_version_kind(kind: &Kind, name: &str) -> Value {
    json!({"group": kind.group, "kind": name, "version": kind.version})
}

/// Changes when a document may have changed: with the program's version and its kinds.
fn hash() -> String {
    let mut hash = Sha256::new();
    hash.update(concat!(env!("CARGO_PKG_VERSION"), "\n"));
    hash.update(API_VERSION);
    for kind in kinds() {
        hash.update(kind.schema);
        hash.update(kind.plural);
    }
    hex::encode_upper(hash.finalize())
}
