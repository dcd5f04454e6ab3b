//! An API server of a few kinds in memory, behind a `kube::Client` without a socket.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Lines = UnboundedSender<Result<http_body::Frame<Bytes>, Infallible>>;

#[derive(Default)]
struct State {
    revision: u64,
    /// Watches from before it get 410.
    compacted: u64,
    /// Requests are refused.
    away: bool,
    objects: BTreeMap<(String, String, String), Value>,
    watchers: Vec<(String, Lines)>,
    lists: usize,
    events: usize,
}

/// The API, which a test changes and the proxy follows.
#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<State>>);

fn path_of(kind: &str) -> &'static str {
    match kind {
        "Service" => "/api/v1/services",
        "EndpointSlice" => "/apis/discovery.k8s.io/v1/endpointslices",
        "Node" => "/api/v1/nodes",
        "Pod" => "/api/v1/pods",
        "Namespace" => "/api/v1/namespaces",
        "NetworkPolicy" => "/apis/networking.k8s.io/v1/networkpolicies",
        other => panic!("kind {other}"),
    }
}

fn key_of(object: &Value) -> (String, String, String) {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    (
        path_of(&text("/kind")).to_owned(),
        text("/metadata/namespace"),
        text("/metadata/name"),
    )
}

fn line(kind: &str, object: &Value) -> Result<http_body::Frame<Bytes>, Infallible> {
    let event = json!({ "type": kind, "object": object });
    Ok(http_body::Frame::data(format!("{event}\n").into()))
}

impl Api {
    /// Creates or replaces an object.
    pub fn apply(&self, mut object: Value) {
        let state = &mut *self.0.lock().expect("state");
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let key = key_of(&object);
        let kind = if state.objects.contains_key(&key) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        state
            .watchers
            .retain(|(path, watcher)| *path != key.0 || watcher.send(line(kind, &object)).is_ok());
        state.objects.insert(key, object);
    }

    /// Deletes an object.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let state = &mut *self.0.lock().expect("state");
        state.revision += 1;
        let key = (
            path_of(kind).to_owned(),
            namespace.to_owned(),
            name.to_owned(),
        );
        let Some(mut object) = state.objects.remove(&key) else {
            return;
        };
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        state.watchers.retain(|(path, watcher)| {
            *path != key.0 || watcher.send(line("DELETED", &object)).is_ok()
        });
    }

    /// Refuses all requests and ends all watches, or serves again.
    pub fn set_away(&self, away: bool) {
        let mut state = self.0.lock().expect("state");
        state.away = away;
        state.watchers.clear();
    }

    /// Forgets all versions but the newest, and ends all watches.
    pub fn compact(&self) {
        let mut state = self.0.lock().expect("state");
        state.revision += 1;
        state.compacted = state.revision;
        state.watchers.clear();
    }

    /// How many lists were made.
    pub fn lists(&self) -> usize {
        self.0.lock().expect("state").lists
    }

    /// How many Events were posted.
    pub fn events(&self) -> usize {
        self.0.lock().expect("state").events
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(&request)) }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, request: &Request<Body>) -> Reply {
        let mut state = self.0.lock().expect("state");
        if state.away {
            return status(503, "away");
        }
        if request.method() == http::Method::POST {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/default/events");
            state.events += 1;
            return whole(&json!({}));
        }
        let query = request.uri().query().unwrap_or_default();
        let parameter = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or_default()
                .to_owned()
        };
        let path = request.uri().path().to_owned();
        if parameter("watch") != "true" {
            state.lists += 1;
            return list(&state, &path, &parameter("limit"), &parameter("continue"));
        }
        let from: u64 = parameter("resourceVersion").parse().expect("version");
        if from < state.compacted {
            return status(410, "too old resource version");
        }
        let (sender, receiver) = unbounded_channel();
        let version = |object: &Value| -> u64 {
            let text = object["metadata"]["resourceVersion"]
                .as_str()
                .unwrap_or_default();
            text.parse().unwrap_or(0)
        };
        for object in state
            .objects
            .iter()
            .filter(|(key, object)| key.0 == path && version(object) > from)
        {
            let _ = sender.send(line("MODIFIED", object.1));
        }
        state.watchers.push((path, sender));
        let stream = futures::stream::unfold(receiver, |mut receiver| async {
            let frame = receiver.recv().await?;
            Some((frame, receiver))
        });
        Response::new(StreamBody::new(stream).boxed_unsync())
    }
}

fn list(state: &State, path: &str, limit: &str, from: &str) -> Reply {
    let limit: usize = limit.parse().unwrap_or(usize::MAX);
    let from: usize = from.parse().unwrap_or(0);
    let all: Vec<&Value> = state
        .objects
        .iter()
        .filter(|(key, _)| key.0 == path)
        .map(|(_, object)| object)
        .collect();
    let page: Vec<&Value> = all.iter().skip(from).take(limit).copied().collect();
    let next = if from + page.len() < all.len() {
        (from + page.len()).to_string()
    } else {
        String::new()
    };
    let metadata = json!({ "resourceVersion": state.revision.to_string(), "continue": next });
    whole(&json!({ "metadata": metadata, "items": page }))
}

fn status(code: u16, message: &str) -> Reply {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": message
    });
    let mut response = whole(&body);
    *response.status_mut() = http::StatusCode::from_u16(code).expect("code");
    response
}

fn whole(body: &Value) -> Reply {
    Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync())
}
