//! What the server counts and times, in Prometheus' text, at `metrics_address`.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

/// Whoever asks is not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// A CRI operation and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: String,
    /// gRPC's code, by number; 0 is success.
    grpc_code: String,
}

/// A stage of a pull.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// 0.25 ms to two minutes.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 20))
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// The server's metrics; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    operations: Durations<Operation>,
    stages: Durations<Stage>,
    pulls: Family<Outcome, Counter>,
    pulled_bytes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            operations: Family::new_with_constructor(durations),
            stages: Family::new_with_constructor(durations),
            pulls: Family::default(),
            pulled_bytes: Counter::default(),
        }
    }
}

impl Metrics {
    /// A pull ended: how long it took until the manifest was known and until all was there, and the bytes that came.
    pub fn pulled(&self, manifest: Option<Duration>, whole: Duration, bytes: u64, good: bool) {
        let outcome = if good { "success" } else { "failure" };
        self.pulls.get_or_create(&Outcome { outcome }).inc();
        self.pulled_bytes.inc_by(bytes);
        let stage = |stage, took: Duration| {
            let stage = self.stages.get_or_create(&Stage { stage });
            stage.observe(took.as_secs_f64());
        };
        if let Some(manifest) = manifest {
            stage("manifest", manifest);
            if good {
                stage("layers", whole.saturating_sub(manifest));
            }
        }
    }

    /// The Prometheus text.
    fn text(&self) -> String {
        let mut registry = Registry::with_prefix("orlop_cri");
        registry.register_with_unit(
            "operation_duration",
            "CRI requests by operation and gRPC code, 0 being success",
            Unit::Seconds,
            self.operations.clone(),
        );
        registry.register_with_unit(
            "image_pull_stage_duration",
            "Stages of image pulls: until the manifest is known, and until the layers are unpacked",
            Unit::Seconds,
            self.stages.clone(),
        );
        registry.register("image_pulls", "Image pulls by outcome", self.pulls.clone());
        registry.register(
            "image_pulled_bytes",
            "Bytes of layers that came from registries",
            self.pulled_bytes.clone(),
        );
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    /// Serves `/metrics`, and `/v1/metrics` as containerd does, as long as the future lives.
    pub async fn serve(self, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, most likely: others may close some.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let metrics = self.clone();
            tokio::spawn(async move {
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                    let known = matches!(request.uri().path(), "/metrics" | "/v1/metrics");
                    let answer = if known {
                        answer(http::StatusCode::OK, metrics.text())
                    } else {
                        answer(http::StatusCode::NOT_FOUND, "404 page not found\n".into())
                    };
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                // A client that goes away is no error.
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }
}

fn answer(status: http::StatusCode, text: String) -> http::Response<Full<Bytes>> {
    let mut answer = http::Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let kind = http::HeaderValue::from_static(kind);
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    answer
}

/// Times the requests of a gRPC server.
#[derive(Clone)]
pub struct Timed {
    pub metrics: Metrics,
}

impl<S> tower::Layer<S> for Timed {
    type Service = TimedService<S>;

    fn layer(&self, inner: S) -> TimedService<S> {
        TimedService {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

#[derive(Clone)]
pub struct TimedService<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B, R> tower::Service<http::Request<B>> for TimedService<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<R>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let operation = path.rsplit('/').next().unwrap_or_default().to_owned();
        let (metrics, begun) = (self.metrics.clone(), Instant::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // A refusal's code is in the headers; what has a body has begun well.
            let code = answer.headers().get("grpc-status");
            let code = code.and_then(|code| code.to_str().ok()).unwrap_or("0");
            // Nobody's words become labels: 12 is an operation that there isn't.
            if code != "12" {
                let grpc_code = code.to_owned();
                let operation = Operation {
                    operation,
                    grpc_code,
                };
                let durations = metrics.operations.get_or_create(&operation);
                durations.observe(begun.elapsed().as_secs_f64());
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_told_by_its_stages() {
        let metrics = Metrics::default();
        let seconds = Duration::from_secs;
        metrics.pulled(Some(seconds(1)), seconds(3), 500, true);
        metrics.pulled(None, seconds(9), 0, false);
        let text = metrics.text();
        for line in [
            "orlop_cri_image_pulls_total{outcome=\"success\"} 1",
            "orlop_cri_image_pulls_total{outcome=\"failure\"} 1",
            "orlop_cri_image_pulled_bytes_total 500",
            "orlop_cri_image_pull_stage_duration_seconds_sum{stage=\"manifest\"} 1.0",
            "orlop_cri_image_pull_stage_duration_seconds_sum{stage=\"layers\"} 2.0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
