//! Sends a request on to somebody else, and passes an upgraded connection through as it is.

use std::future::Future;
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderMap, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::failure::{Failure, Result};
use super::reply::{self, Body, Reply};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that concern one connection alone (RFC 9110 §7.6.1), and those that say who the client is: that is known
/// here, and is nobody else's business.
const KEPT_BACK: &[&str] = &[
    "authorization",
    "connection",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Where a request goes.
pub struct Onward {
    /// Path and query there.
    pub path: String,
    /// Another method than the client's.
    pub method: Option<Method>,
    pub host: HeaderValue,
}

/// Waits for a connection, but not for ever.
pub async fn connected<T>(
    connecting: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await?
}

/// Sends the client's request over `stream`; returns the answer, whose body comes as it is read.
///
/// # Errors
/// 502 when the other side doesn't answer, 400 for an upgrade on a connection that has none.
pub async fn send<S>(stream: S, onward: Onward, mut parts: Parts, body: Body) -> Result<Reply>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| {
        let message = format!("error trying to reach service: {error}");
        Failure::new(StatusCode::BAD_GATEWAY, "ServiceUnavailable", message)
    };
    let upgrading = parts.headers.contains_key(UPGRADE);
    let client = parts.extensions.remove::<OnUpgrade>();
    let mut request = Request::new(if upgrading { reply::full("") } else { body });
    *request.method_mut() = onward.method.unwrap_or(parts.method);
    *request.uri_mut() = onward
        .path
        .parse()
        .map_err(|e| Failure::bad_request(format!("{}: {e}", onward.path)))?;
    *request.headers_mut() = passed_on(&parts.headers, upgrading);
    request.headers_mut().insert(HOST, onward.host);

    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a relayed connection ended");
        }
    });
    let mut response = sender.send_request(request).await.map_err(broken)?;
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = passed_on(response.headers(), switching);
    let status = response.status();
    let body = if switching {
        let Some(client) = client else {
            let message = "the connection can't be upgraded; use HTTP/1.1";
            return Err(Failure::bad_request(message));
        };
        tokio::spawn(pass_through(client, hyper::upgrade::on(&mut response)));
        reply::full("")
    } else {
        reply::boxed(response.into_body())
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    Ok(reply)
}

/// Copies bytes both ways until both sides have ended.
async fn pass_through(client: OnUpgrade, other: OnUpgrade) {
    let (client, other) = match tokio::try_join!(client, other) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "a relayed stream was not upgraded");
            return;
        }
    };
    let (mut client, mut other) = (TokioIo::new(client), TokioIo::new(other));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut other).await {
        tracing::debug!(%error, "a relayed stream broke off");
    }
}

fn passed_on(headers: &HeaderMap, upgrading: bool) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        if !KEPT_BACK.contains(&text) && !text.starts_with("impersonate-") {
            passed.append(name, value.clone());
        }
    }
    if upgrading {
        passed.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = headers.get(UPGRADE) {
            passed.insert(UPGRADE, protocol.clone());
        }
    }
    passed
}
