//! Events are kept for an hour.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::api::Api;
use super::cache::Filter;

const KEPT: SignedDuration = SignedDuration::from_hours(1);
const INTERVAL: Duration = Duration::from_secs(300);

/// Removes what is too old until the server stops.
pub async fn run(api: Arc<Api>) {
    loop {
        tokio::select! {
            () = api.stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        sweep(&api, Timestamp::now()).await;
    }
}

async fn sweep(api: &Api, now: Timestamp) {
    let Some(events) = api.cache.resource("", "v1", "events") else {
        return;
    };
    let (objects, _) = events.list(&Filter::default(), api.cache.applied());
    for object in objects {
        let event = object.value();
        if last_seen(&event).is_none_or(|at| now.duration_since(at) < KEPT) {
            continue;
        }
        let key = events.key(&object.index.namespace, api::object::name(&event));
        let last = super::object::stored(&event);
        // One that was just updated is kept.
        if let Err(error) = api.cache.store().delete(&key, last, object.revision).await {
            tracing::debug!(%error, "an old event was not removed");
        }
    }
}

/// When the event happened last.
fn last_seen(event: &Value) -> Option<Timestamp> {
    let places = [
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/eventTime",
        "/metadata/creationTimestamp",
    ];
    places
        .iter()
        .filter_map(|place| event.pointer(place)?.as_str()?.parse().ok())
        .max()
}
