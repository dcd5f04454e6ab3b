//! The proxy's HTTP: `/healthz`, `/livez`, `/metrics`, and the health checks of Services.

mod checks;

pub use checks::serve_checks;

use crate::health::Health;
use crate::metrics::{Metrics, of_code};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;

/// What is answered.
pub type Reply = Response<Full<Bytes>>;

/// A reply of a content type.
pub fn reply(status: StatusCode, content_type: &'static str, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    let options = http::HeaderValue::from_static("nosniff");
    reply
        .headers_mut()
        .insert(http::header::X_CONTENT_TYPE_OPTIONS, options);
    reply
}

/// Accepts connections until it is dropped; each gets its answers from `answer`.
pub async fn serve<F>(listener: TcpListener, answer: F)
where
    F: Fn(&Request<Incoming>) -> Reply + Clone + Send + 'static,
{
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let reply = answer(&request);
                async move { Ok::<_, Infallible>(reply) }
            });
            // A client that goes away is no news.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(hyper_util::rt::TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Serves an address as long as the future lives. An address that can't be had is tried again, as upstream does.
pub async fn serve_address<F>(address: SocketAddr, what: &'static str, answer: F)
where
    F: Fn(&Request<Incoming>) -> Reply + Clone + Send + 'static,
{
    const AGAIN: Duration = Duration::from_secs(5);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return serve(listener, answer).await,
            Err(error) => tracing::error!(%error, %address, "{what} can't be served; trying again"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// `/healthz` and `/livez`.
pub fn answer_health(path: &str, health: &Health, metrics: &Metrics) -> Reply {
    let healthy = health.is_healthy();
    let (good, answers, eligible) = match path {
        "/healthz" => {
            let eligible = health.is_node_eligible();
            (
                healthy && eligible,
                &metrics.healthz,
                format!(",\"nodeEligible\": {eligible}"),
            )
        }
        "/livez" => (healthy, &metrics.livez, String::new()),
        _ => {
            return reply(
                StatusCode::NOT_FOUND,
                "text/plain",
                "404 page not found\n".into(),
            );
        }
    };
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answers.get_or_create(&of_code(status.as_u16())).inc();
    let time = |time: SystemTime| {
        jiff::Timestamp::try_from(time)
            .map(|time| time.to_string())
            .unwrap_or_default()
    };
    let updated = health.last_sync().map(time).unwrap_or_default();
    let now = time(SystemTime::now());
    let body = format!("{{\"lastUpdated\": \"{updated}\",\"currentTime\": \"{now}\"{eligible}}}");
    reply(status, "application/json", body)
}

/// `/metrics` and `/proxyMode`.
pub fn answer_metrics(path: &str, metrics: &Metrics) -> Reply {
    match path {
        "/metrics" => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            reply(StatusCode::OK, content_type, metrics.text())
        }
        "/proxyMode" => reply(
            StatusCode::OK,
            "text/plain; charset=utf-8",
            metrics.mode().name().into(),
        ),
        "/healthz" => reply(StatusCode::OK, "text/plain; charset=utf-8", "ok".into()),
        _ => reply(
            StatusCode::NOT_FOUND,
            "text/plain",
            "404 page not found\n".into(),
        ),
    }
}
