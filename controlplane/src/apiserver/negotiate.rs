//! In which form a client wants its answer, and in which it sent its object.

use api::schema::Struct;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::Value;

use super::failure::{Failure, Result};
use super::protobuf;
use super::query::Query;

const OFFERED: &[&str] = &["application/json"];
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How an answer shows its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Whole,
    /// `meta/v1 Table`, as `kubectl get` prints it; with what of each object.
    Table(RowObject),
    /// `meta/v1 PartialObjectMetadata`.
    Metadata,
}

/// What of its object a table's row holds (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowObject {
    None,
    Metadata,
    Whole,
}

/// The first form in `Accept` that is served.
///
/// # Errors
/// 406 when there is none.
pub fn form(headers: &HeaderMap, query: &Query) -> Result<Form> {
    let Some(accept) = headers.get(ACCEPT).and_then(|value| value.to_str().ok()) else {
        return Ok(Form::Whole);
    };
    accept
        .split(',')
        .find_map(|clause| clause_form(clause.trim(), query))
        .ok_or_else(|| Failure::not_acceptable(OFFERED))
}

fn clause_form(clause: &str, query: &Query) -> Option<Form> {
    let mut parts = clause.split(';').map(str::trim);
    if !matches!(parts.next()?, JSON | "application/*" | "*/*" | "") {
        return None;
    }
    let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
    let parameter = |name: &str| parameters.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    let Some(kind) = parameter("as") else {
        return Some(Form::Whole);
    };
    if parameter("g") != Some("meta.k8s.io") || !matches!(parameter("v"), Some("v1" | "v1beta1")) {
        return None;
    }
    match kind {
        "Table" => Some(Form::Table(match query.get("includeObject") {
            Some("None") => RowObject::None,
            Some("Object") => RowObject::Whole,
            _ => RowObject::Metadata,
        })),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Form::Metadata),
        _ => None,
    }
}

/// The media type of a request's body, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// The object in a request's body.
///
/// # Errors
/// 415 for an unknown format, 400 for a body that is not what its type says.
pub fn decode(headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    match media_type(headers) {
        JSON | "" => json(body),
        YAML => yaml(body),
        PROTOBUF => protobuf::decode(body).map_err(|e| Failure::bad_request(e.to_string())),
        _ => Err(Failure::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    }
}

/// The object in a request's body, with its fields checked by the type `schema` (`core/v1.Binding`). What it says of
/// its own kind is not looked at: where it was sent to tells.
///
/// # Errors
/// As [`decode`], and 400 for a field of a wrong type.
pub fn decode_as(schema: &'static str, headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    let mut object = decode(headers, body)?;
    let schema = Struct::find(schema).ok_or_else(|| Failure::internal(schema))?;
    api::schema::decode(schema, &mut object).map_err(|e| Failure::bad_request(e.to_string()))?;
    Ok(object)
}

pub fn json(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).map_err(|e| {
        Failure::bad_request(format!("the object provided is unrecognized (must be of type object): couldn't get version/kind; json parse error: {e}"))
    })
}

pub fn yaml(body: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(body)
        .map_err(|e| Failure::bad_request(format!("error decoding YAML: {e}")))?;
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| Failure::bad_request(format!("error decoding YAML: {e}")))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn asked(accept: &str) -> Result<Form> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        form(&headers, &Query::default())
    }

    #[test]
    fn the_first_form_that_is_served_is_taken() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(asked(kubectl), Ok(Form::Table(RowObject::Metadata)));
        assert_eq!(
            asked("application/vnd.kubernetes.protobuf,application/json"),
            Ok(Form::Whole)
        );
        assert_eq!(
            asked("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            Ok(Form::Metadata)
        );
        assert_eq!(asked("*/*"), Ok(Form::Whole));
        assert!(asked("application/vnd.kubernetes.protobuf").is_err());
    }

    #[test]
    fn yaml_modes_are_octal() {
        assert_eq!(yaml(b"defaultMode: 0644").unwrap()["defaultMode"], 420);
    }
}
