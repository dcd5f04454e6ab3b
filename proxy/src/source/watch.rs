//! List and watch of one kind.

use super::{Followed, Update};
use futures::StreamExt;
use kube::core::WatchEvent;
use serde::Deserialize;
use std::ops::ControlFlow;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

const PAGE: usize = 500;
const SHORTEST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A watch that lasted so long did its work.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
const GONE: u16 = 410;

#[derive(Debug, Deserialize)]
struct List<K> {
    metadata: ListMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<K>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

/// What followers of a kind are told.
type News<K> = Update<<K as Followed>::Kind, <K as Followed>::Change>;

/// How a watch ended.
enum End {
    /// As watches do after some minutes: go on from the version.
    Resume(String),
    /// The version is too old.
    Relist,
    /// Nobody listens any more.
    Closed,
}

/// Follows the objects at a path (with its selector as query) until nobody listens. Errors are retried with growing,
/// jittered delays.
pub async fn follow<K: Followed>(
    client: kube::Client,
    path: String,
    node: String,
    to: Sender<News<K>>,
) {
    let mut delay = SHORTEST_DELAY;
    let mut version: Option<String> = None;
    loop {
        let known = version.take();
        let (watched, begun) = (known.is_some(), Instant::now());
        let end = match known {
            Some(version) => watch::<K>(&client, &path, &node, version, &to).await,
            None => list_to::<K>(&client, &path, &node, &to).await,
        };
        match end {
            Ok(End::Closed) => return,
            Ok(End::Relist) => {}
            Ok(End::Resume(seen)) => {
                version = Some(seen);
                // A watch that ends at once, again and again, must not be begun again at once.
                if !watched || begun.elapsed() > SHORTEST_WATCH {
                    delay = SHORTEST_DELAY;
                    continue;
                }
            }
            Err((error, seen)) => {
                tracing::warn!(kind = ?K::KIND, error = %describe(&error), "the API can't be followed; trying again");
                version = seen;
            }
        }
        tokio::time::sleep(jittered(delay)).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

/// Half to the whole of the delay, by the clock's lowest digits: many nodes must not come back at the same moment.
fn jittered(delay: Duration) -> Duration {
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    delay / 2 + delay / 2 * (nanoseconds % 1000) / 1000
}

fn describe(error: &kube::Error) -> String {
    match error {
        // What the client makes of an event that it can't parse.
        kube::Error::Api(status) if status.code == 0 => {
            "an event of the watch has an unknown form".to_owned()
        }
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => error.to_string(),
    }
}

fn request(uri: &str) -> Result<http::Request<Vec<u8>>, kube::Error> {
    http::Request::get(uri)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)
}

/// An error, and the version to go on from if there is one.
type Failed = (kube::Error, Option<String>);

/// Reads all objects at a path, page by page; also returns the version that a watch goes on from.
///
/// # Errors
/// The API's.
pub async fn list<K: Followed>(
    client: &kube::Client,
    path: &str,
    node: &str,
) -> Result<(News<K>, String), kube::Error> {
    let mut changes = Vec::new();
    let mut next = String::new();
    loop {
        let uri = format!("{path}&limit={PAGE}{next}");
        let page: List<K> = client.request(request(&uri)?).await?;
        changes.extend(page.items.iter().map(|object| object.changed(node)));
        if page.metadata.next.is_empty() {
            return Ok((
                Update::List(K::KIND, changes),
                page.metadata.resource_version,
            ));
        }
        next = format!("&continue={}", page.metadata.next);
    }
}

async fn list_to<K: Followed>(
    client: &kube::Client,
    path: &str,
    node: &str,
    to: &Sender<News<K>>,
) -> Result<End, Failed> {
    let (update, version) = list::<K>(client, path, node)
        .await
        .map_err(|error| (error, None))?;
    Ok(if to.send(update).is_ok() {
        End::Resume(version)
    } else {
        End::Closed
    })
}

async fn watch<K: Followed>(
    client: &kube::Client,
    path: &str,
    node: &str,
    from: String,
    to: &Sender<News<K>>,
) -> Result<End, Failed> {
    let seconds =
        300 + u64::from(jittered(Duration::from_millis(1000)).subsec_millis()) * 300 / 1000;
    let uri = format!(
        "{path}&watch=true&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={seconds}"
    );
    let mut version = from;
    let request = request(&uri).map_err(|error| (error, Some(version.clone())))?;
    let events = match client.request_events::<K>(request).await {
        Ok(events) => events,
        Err(kube::Error::Api(status)) if status.code == GONE => return Ok(End::Relist),
        Err(error) => return Err((error, Some(version))),
    };
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => match take(event, node, &mut version, to) {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(end) => return end.map_err(|error| (error, Some(version))),
            },
            Err(error) => return Err((error, Some(version))),
        }
    }
    Ok(End::Resume(version))
}

fn take<K: Followed>(
    event: WatchEvent<K>,
    node: &str,
    version: &mut String,
    to: &Sender<News<K>>,
) -> ControlFlow<Result<End, kube::Error>> {
    let (object, gone) = match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
        WatchEvent::Deleted(object) => (object, true),
        WatchEvent::Bookmark(bookmark) => {
            *version = bookmark.metadata.resource_version;
            return ControlFlow::Continue(());
        }
        WatchEvent::Error(status) if status.code == GONE => {
            return ControlFlow::Break(Ok(End::Relist));
        }
        WatchEvent::Error(status) => return ControlFlow::Break(Err(kube::Error::Api(status))),
    };
    object.metadata().resource_version.clone_into(version);
    let change = if gone {
        object.gone()
    } else {
        object.changed(node)
    };
    match to.send(Update::Change(change, Instant::now())) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(Ok(End::Closed)),
    }
}
