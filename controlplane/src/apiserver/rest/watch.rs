//! watch: the changes of a resource as they come.

use std::sync::Arc;
use std::time::Duration;

use api::field::FieldError;
use bytes::Bytes;
use futures::stream;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::api::Api;
use super::super::cache::{Cache, ChangeType, Resource, Seen, Subscription};
use super::super::failure::{Failure, Result};
use super::super::negotiate::{self, Form};
use super::super::object::Object;
use super::super::reply::{self, Reply};
use super::super::table;
use super::{Request, read};
use crate::store::Revision;

/// How often a client that asked for bookmarks is told how far it is, when nothing else happens.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// How long a watch lasts when the client doesn't say: between this and twice this.
const DEFAULT_TIMEOUT_SECONDS: u64 = 1800;

pub async fn watch(api: &Arc<Api>, request: &Request) -> Result<Reply> {
    let form = negotiate::form(&request.headers, &request.query)?;
    let (subscription, initial, revision) = match begin(api, request).await {
        Ok(begun) => begun,
        // Clients look for these two in the stream, not in the answer.
        Err(failure) if matches!(failure.code.as_u16(), 410 | 504) => return Ok(ended(&failure)),
        Err(failure) => return Err(failure),
    };
    let seconds = match request.query.number::<u64>("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds,
        _ => rand::rng().random_range(DEFAULT_TIMEOUT_SECONDS..2 * DEFAULT_TIMEOUT_SECONDS),
    };
    let bookmarks = request.query.flag("allowWatchBookmarks");
    let watcher = Watcher {
        cache: api.cache.clone(),
        resource: request.resource.clone(),
        form,
        headings: true,
        subscription,
        initial: initial.into_iter(),
        mark_end: bookmarks && send_initial(request)? == Some(true),
        deadline: Instant::now() + Duration::from_secs(seconds),
        bookmark_at: bookmarks.then(|| Instant::now() + BOOKMARK_INTERVAL),
        revision,
        stop: api.stop.clone(),
    };
    let lines = stream::unfold(watcher, |mut watcher| async move {
        watcher.next().await.map(|line| (line, watcher))
    });
    Ok(reply::stream("application/json", lines))
}

/// A watch that ends at once, with the reason as its only event.
fn ended(failure: &Failure) -> Reply {
    let mut line = json!({"type": "ERROR", "object": failure.status()}).to_string();
    line.push('\n');
    reply::stream("application/json", stream::iter([Bytes::from(line)]))
}

/// The `sendInitialEvents` parameter, which needs `resourceVersionMatch=NotOlderThan`.
fn send_initial(request: &Request) -> Result<Option<bool>> {
    let query = &request.query;
    let value = query
        .get("sendInitialEvents")
        .map(|_| query.flag("sendInitialEvents"));
    let matching = query.get("resourceVersionMatch");
    let errors = match (value, matching) {
        (Some(_), Some("NotOlderThan")) | (None, None) => Vec::new(),
        (Some(_), None) => vec![FieldError::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )],
        (Some(_), Some(other)) => {
            vec![FieldError::not_supported(
                "resourceVersionMatch",
                other,
                &["NotOlderThan"],
            )]
        }
        (None, Some(_)) => vec![FieldError::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )],
    };
    if value == Some(true) && !query.flag("allowWatchBookmarks") {
        // Without bookmarks the client could not know where the list ends; upstream lets it be.
        tracing::debug!("a watch wants initial events but no bookmarks");
    }
    if errors.is_empty() {
        return Ok(value);
    }
    let mut failure = Failure::invalid(request.kind(), "", &errors);
    failure.message = format!(
        "ListOptions.meta.k8s.io \"\" is invalid: {}",
        api::field::aggregate(&errors)
    );
    failure.details["kind"] = "ListOptions".into();
    failure.details["group"] = "meta.k8s.io".into();
    Err(failure)
}

/// Subscribes; returns what is to be told first, and the revision that this is.
async fn begin(api: &Api, request: &Request) -> Result<(Subscription, Vec<Arc<Object>>, Revision)> {
    let filter = read::filter(request)?;
    let send_initial = send_initial(request)?;
    let from = read::revision(&request.query, "resourceVersion")?;
    let resource = &request.resource;
    match from {
        Some(from) if from.0 > 0 => api.cache.wait_for(from).await?,
        Some(_) => {}
        None => drop(api.cache.catch_up().await?),
    }
    let from_now = from.is_none_or(|r| r.0 == 0);
    match send_initial {
        Some(true) | None if from_now || send_initial == Some(true) => {
            let (objects, revision, subscription) =
                resource.list_and_watch(filter, api.cache.applied());
            Ok((subscription, objects, revision))
        }
        _ if from_now => {
            let (_, revision, subscription) = resource.list_and_watch(filter, api.cache.applied());
            Ok((subscription, Vec::new(), revision))
        }
        _ => {
            let from = from.unwrap_or_default();
            let subscription = resource
                .watch(from, filter)
                .map_err(|oldest| Failure::expired(from, oldest))?;
            Ok((subscription, Vec::new(), from))
        }
    }
}

/// One running watch.
struct Watcher {
    cache: Arc<Cache>,
    resource: Arc<Resource>,
    form: Form,
    /// Whether the next table tells its headings.
    headings: bool,
    subscription: Subscription,
    /// What was there at the beginning and has not been told yet.
    initial: std::vec::IntoIter<Arc<Object>>,
    /// Whether the end of that is to be marked.
    mark_end: bool,
    deadline: Instant,
    bookmark_at: Option<Instant>,
    /// The newest revision that the client knows of.
    revision: Revision,
    stop: CancellationToken,
}

impl Watcher {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(lines) = self.initial_lines() {
            return Some(lines);
        }
        if std::mem::take(&mut self.mark_end) {
            return Some(self.bookmark(true));
        }
        let bookmark_at = self
            .bookmark_at
            .unwrap_or(self.deadline + BOOKMARK_INTERVAL);
        tokio::select! {
            biased;
            seen = self.subscription.next() => Some(self.event(&seen?)),
            () = self.stop.cancelled() => None,
            () = tokio::time::sleep_until(self.deadline) => None,
            () = tokio::time::sleep_until(bookmark_at) => {
                // Changes are queued before `applied` tells of them: with nothing in the queue, all are told.
                let applied = self.cache.applied();
                if let Some(seen) = self.subscription.try_next() {
                    return Some(self.event(&seen));
                }
                self.revision = self.revision.max(applied);
                self.bookmark_at = Some(Instant::now() + BOOKMARK_INTERVAL);
                Some(self.bookmark(false))
            }
        }
    }

    /// Some of what was there when the watch began, `None` when all of it has been told.
    fn initial_lines(&mut self) -> Option<Bytes> {
        let mut lines = Vec::new();
        while lines.len() < reply::CHUNK
            && let Some(object) = self.initial.next()
        {
            lines.extend_from_slice(&self.line(ChangeType::Added, &object));
        }
        (!lines.is_empty()).then(|| lines.into())
    }

    fn event(&mut self, seen: &Seen) -> Bytes {
        let change = &seen.change;
        self.revision = change.object.revision;
        if self.form == Form::Whole && seen.change_type == change.change_type {
            return change.line.clone();
        }
        self.line(seen.change_type, &change.object)
    }

    fn line(&mut self, change_type: ChangeType, object: &Arc<Object>) -> Bytes {
        let shown = match self.form {
            Form::Whole => {
                let head = format!(r#"{{"type":"{}","object":"#, change_type.as_str());
                return Bytes::from([head.as_bytes(), &object.json, b"}\n"].concat());
            }
            Form::Metadata => table::partial_metadata(object.value()),
            Form::Table(rows) => {
                let headings = std::mem::take(&mut self.headings);
                let mut table = table::table(
                    self.resource.kind,
                    std::slice::from_ref(object),
                    rows,
                    headings,
                );
                table["metadata"]["resourceVersion"] = object.revision.to_string().into();
                table
            }
        };
        written(change_type.as_str(), &shown)
    }

    /// Tells the client how far it is, and whether it has now seen all that was there when it began.
    fn bookmark(&self, end_of_initial: bool) -> Bytes {
        let kind = self.resource.kind;
        let mut metadata =
            json!({"resourceVersion": self.revision.to_string(), "creationTimestamp": null});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Whole => {
                json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata})
            }
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Table(_) => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": [],
                "metadata": {"resourceVersion": self.revision.to_string()},
                "rows": [{"cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                }}],
            }),
        };
        written("BOOKMARK", &object)
    }
}

fn written(event_type: &str, object: &Value) -> Bytes {
    let mut line = json!({"type": event_type, "object": object}).to_string();
    line.push('\n');
    line.into()
}
