//! Kubernetes' protobuf encoding, as client-go sends it: decoded into JSON by the fields' numbers in [`api::schema`].
//!
//! A body is the four bytes `k8s\0` and a `runtime.Unknown` message, which names the type and holds its encoding.
//! Replies are JSON: a client that sends protobuf also accepts that.

#[cfg(test)]
mod tests;
mod value;
pub(super) mod wire;

use api::schema::Struct;
use serde_json::Value;

use self::wire::{Message, WireError};

const MAGIC: &[u8] = b"k8s\0";

/// A body that can't be decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body is not in the Kubernetes protobuf format: it doesn't begin with {MAGIC:?}")]
    Magic,
    #[error("decode protobuf: no kind {kind:?} is registered for version {api_version:?}")]
    UnknownType { api_version: String, kind: String },
    #[error("decode protobuf: {encoding:?} is not a known content encoding")]
    Encoding { encoding: String },
    #[error("decode protobuf: {0}")]
    Wire(#[from] WireError),
    #[error("decode protobuf: field {field}: not JSON: {source}")]
    Json {
        field: &'static str,
        source: serde_json::Error,
    },
    #[error("decode protobuf: field {field}: {value} is out of range")]
    Range { field: &'static str, value: i64 },
}

/// The object in a request's body, as JSON with `apiVersion` and `kind`. Types are still to be checked by
/// [`api::schema::decode`], which also leaves out the zeros that protobuf always writes.
///
/// # Errors
/// [`Error`] if the body isn't well-formed, or of a type that isn't known.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    let body = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut api_version, mut kind, mut raw, mut encoding) =
        (String::new(), String::new(), &[][..], String::new());
    for field in Message::new(body) {
        let (number, data) = field?;
        match number {
            1 => {
                for field in Message::new(data.bytes()?) {
                    let (number, data) = field?;
                    match number {
                        1 => api_version = data.text()?,
                        2 => kind = data.text()?,
                        _ => {}
                    }
                }
            }
            2 => raw = data.bytes()?,
            3 => encoding = data.text()?,
            _ => {}
        }
    }
    if !encoding.is_empty() {
        return Err(Error::Encoding { encoding });
    }
    let Some(ty) = Struct::of(&api_version, &kind) else {
        return Err(Error::UnknownType { api_version, kind });
    };
    let mut object = value::object(ty, raw)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}
