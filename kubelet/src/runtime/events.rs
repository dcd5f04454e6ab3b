//! The runtime's event stream, and what stands in for it.
//!
//! The stream has no cursor, so after each connect everything is listed once; from then on only what changed is
//! told. A runtime without the stream is relisted every second, as upstream does.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Cri, Error, RuntimeCache};

/// How long to wait for the stream's headers before listing anyway: some servers send them with the first event.
const HEADERS_PATIENCE: Duration = Duration::from_millis(20);
const RELIST_PERIOD: Duration = Duration::from_secs(1);
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// Follows the runtime's events into `cache` until `shutdown`. `listed` is told after the first complete list.
pub async fn follow_events(
    cri: Cri,
    cache: RuntimeCache,
    listed: tokio::sync::watch::Sender<bool>,
    shutdown: CancellationToken,
) {
    let mut backoff = Duration::from_millis(20);
    loop {
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = one_connection(&cri, &cache, &listed) => outcome,
        };
        let wait = match outcome {
            Ok(true) => RELIST_PERIOD,
            Ok(false) => {
                backoff = Duration::from_millis(20);
                backoff
            }
            Err(error) => {
                tracing::debug!(%error, "the runtime's events broke off");
                backoff = (backoff * 2).min(RECONNECT_MAX);
                backoff.mul_f64(rand::random_range(0.75..1.25))
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Tells whether the runtime has no event stream, so that it must be listed again and again.
async fn one_connection(
    cri: &Cri,
    cache: &RuntimeCache,
    listed: &tokio::sync::watch::Sender<bool>,
) -> Result<bool, Error> {
    let mut connecting = Box::pin(cri.container_events());
    let early = tokio::time::timeout(HEADERS_PATIENCE, &mut connecting).await;
    if let Ok(Err(error)) = &early
        && error.status.code() != tonic::Code::Unimplemented
    {
        return Err(error.clone());
    }
    cache.relist().await?;
    listed.send_replace(true);
    let opened = match early {
        Ok(opened) => opened,
        Err(_) => connecting.await,
    };
    let mut events = match opened {
        Err(error) if error.status.code() == tonic::Code::Unimplemented => return Ok(true),
        opened => opened?,
    };
    loop {
        match events.message().await {
            Ok(Some(event)) => cache.take_event(event).await,
            Ok(None) => return Ok(false),
            Err(status) => {
                return Err(Error {
                    call: "GetContainerEvents",
                    status: Box::new(status),
                });
            }
        }
    }
}
