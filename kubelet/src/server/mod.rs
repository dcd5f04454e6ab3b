//! The kubelet's own HTTPS API: what the API server and `orlop status` ask a node.

mod auth;
mod logs;
mod show;
mod stats;
mod streaming;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::ServerConfig;
use crate::pods::Pods;
use crate::shared::Shared;
use auth::Caller;

pub use auth::Error as TlsError;

/// What a reply carries.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A request that isn't answered as asked.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

/// The kubelet's API, once there is a kubelet.
pub struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
    allowed_users: Vec<String>,
}

/// What requests are answered from.
#[derive(Clone)]
pub struct Answers {
    /// The kubelet's parts.
    pub shared: Arc<Shared>,
    /// Its pods.
    pub pods: Pods,
}

impl Server {
    /// Binds the address, so that the Node object can state the port.
    pub async fn bind(config: &ServerConfig) -> Result<Self, TlsError> {
        let tls = auth::acceptor(config)?;
        let address = SocketAddr::new(config.address, config.port);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| TlsError::Bind { address, source })?;
        Ok(Self {
            listener,
            tls,
            allowed_users: config.allowed_users.clone(),
        })
    }

    /// The port that was bound.
    pub fn port(&self) -> u16 {
        self.listener
            .local_addr()
            .map_or(0, |address| address.port())
    }

    /// Serves until `shutdown`.
    pub async fn run(self, answers: Answers, shutdown: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (tls, answers) = (self.tls.clone(), answers.clone());
                    let allowed = self.allowed_users.clone();
                    let shutdown = shutdown.clone();
                    tokio::spawn(async move {
                        let served = tokio::select! {
                            () = shutdown.cancelled() => Ok(()),
                            served = serve(stream, tls, answers, allowed) => served,
                        };
                        if let Err(error) = served {
                            tracing::debug!(%peer, %error, "a connection ended early");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

type ServeError = Box<dyn std::error::Error + Send + Sync>;

async fn serve(
    stream: TcpStream,
    tls: TlsAcceptor,
    answers: Answers,
    allowed: Vec<String>,
) -> Result<(), ServeError> {
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    let caller = Caller::of(stream.get_ref().1, &allowed);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (answers, caller) = (answers.clone(), caller.clone());
        async move {
            let outcome = match caller.may_ask(request.uri().path()) {
                Ok(()) => answer(answers, request).await,
                Err(refusal) => Err(refusal),
            };
            Ok::<_, std::convert::Infallible>(outcome.unwrap_or_else(|refusal| {
                let mut response = text(refusal.message);
                *response.status_mut() = refusal.status;
                response
            }))
        }
    });
    hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
}

async fn answer(answers: Answers, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] => Ok(text("ok")),
        ["pods"] => Ok(json(show::pod_list(&answers))),
        ["runningpods"] => Ok(json(show::pod_list(&answers))),
        ["orlop", "pods"] => Ok(json(show::stages(&answers))),
        ["stats", "summary"] => stats::summary(&answers).await.map(json),
        ["metrics", "resource"] => stats::resource_metrics(&answers).await.map(text),
        ["containerLogs", namespace, pod, container] => {
            logs::container_logs(&answers, namespace, pod, container, &query)
        }
        ["run", namespace, pod, container] | ["run", namespace, pod, _, container]
            if request.method() == Method::POST =>
        {
            streaming::run(&answers, namespace, pod, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            let url = streaming::exec_url(&answers, namespace, pod, container, &query).await?;
            streaming::pass_through(request, &url).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            let url = streaming::attach_url(&answers, namespace, pod, container, &query).await?;
            streaming::pass_through(request, &url).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            let url = streaming::port_forward_url(&answers, namespace, pod, &query).await?;
            streaming::pass_through(request, &url).await
        }
        _ => Err(Refusal::not_found("404 page not found")),
    }
}

fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn text(text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body(text));
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, plain);
    response
}

fn json(value: serde_json::Value) -> Response<Body> {
    let mut response = Response::new(body(value.to_string()));
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}

/// A query's values, decoded.
fn parameters(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                let value = std::str::from_utf8(&hex)
                    .ok()
                    .and_then(|h| u8::from_str_radix(h, 16).ok());
                bytes.extend(value);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_keep_their_order() {
        let all = parameters("command=sh&command=-c&command=echo+%22a%26b%22&tty");
        let values: Vec<&str> = all.iter().map(|(_, v)| v.as_str()).collect();
        assert_eq!(values, ["sh", "-c", "echo \"a&b\"", ""]);
    }
}
