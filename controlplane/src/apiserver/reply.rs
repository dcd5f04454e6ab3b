//! Answers as HTTP.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{CONTENT_TYPE, HeaderValue, WARNING};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::Value;

use super::failure::Failure;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type Reply = Response<Body>;

/// About how much of a long body is written at once, in bytes.
pub const CHUNK: usize = 64 << 10;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Any body as the one that this server works with.
pub fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn with_type(code: StatusCode, content_type: HeaderValue, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

/// JSON that is written already.
pub fn json_bytes(code: StatusCode, json: impl Into<Bytes>) -> Reply {
    with_type(code, JSON, full(json))
}

pub fn json(code: StatusCode, value: &Value) -> Reply {
    json_bytes(code, value.to_string())
}

pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Reply {
    with_type(code, TEXT, full(text))
}

pub fn failure(failure: &Failure) -> Reply {
    json(failure.code, &failure.status())
}

/// A body that is sent as it comes.
pub fn stream(
    content_type: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Reply {
    let frames = chunks.map(|chunk| Ok(Frame::data(chunk)));
    with_type(
        StatusCode::OK,
        HeaderValue::from_static(content_type),
        StreamBody::new(frames).boxed_unsync(),
    )
}

/// Adds what kubectl prints as `Warning: …` (RFC 7234 §5.5, code 299).
pub fn warn(reply: &mut Reply, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            reply.headers_mut().append(WARNING, value);
        }
    }
}
