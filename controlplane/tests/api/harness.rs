//! A server in a folder of its own, and requests as they are on the wire.

use controlplane::apiserver::{Config, Server};
use futures::{AsyncBufReadExt, StreamExt};
use http::{Method, Request};
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Cluster {
    pub server: Server,
    pub client: kube::Client,
    pub folder: TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(folder: TempDir) -> Self {
        Self::start_with(folder, |_| {}).await
    }

    /// Starts a server whose configuration is not the default one.
    pub async fn start_with(folder: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(folder.path());
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        let client = server.client("admin", &["system:masters"]);
        Self {
            server,
            client,
            folder,
        }
    }

    /// Stops the server and starts another on what it left.
    pub async fn restart(self) -> Self {
        let Self {
            server,
            client,
            folder,
        } = self;
        server.shutdown().await;
        drop((client, server));
        // The client's own task still holds the store for a moment.
        for _ in 0..200 {
            let mut config = Config::new(folder.path());
            config.listen = vec!["127.0.0.1:0".parse().unwrap()];
            if let Ok(server) = Server::start(config).await {
                let client = server.client("admin", &["system:masters"]);
                return Self {
                    server,
                    client,
                    folder,
                };
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the store was not closed");
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(&self.client, Method::GET, path, None, "application/json").await
    }

    pub async fn post(&self, path: &str, object: Value) -> Answer {
        send(
            &self.client,
            Method::POST,
            path,
            Some(object),
            "application/json",
        )
        .await
    }

    pub async fn put(&self, path: &str, object: Value) -> Answer {
        send(
            &self.client,
            Method::PUT,
            path,
            Some(object),
            "application/json",
        )
        .await
    }

    pub async fn merge(&self, path: &str, patch: Value) -> Answer {
        send(
            &self.client,
            Method::PATCH,
            path,
            Some(patch),
            "application/merge-patch+json",
        )
        .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        send(&self.client, Method::DELETE, path, None, "application/json").await
    }

    /// Creates a ConfigMap in `default`.
    pub async fn configmap(&self, name: &str, labels: Value) -> Value {
        let object =
            json!({"metadata": {"name": name, "labels": labels}, "data": {"key": "value"}});
        self.post("/api/v1/namespaces/default/configmaps", object)
            .await
            .ok()
    }

    pub async fn watch(&self, path: &str) -> Events {
        let request = Request::get(path).body(Vec::new()).unwrap();
        let lines = self.client.request_stream(request).await.unwrap().lines();
        Events(Box::pin(
            lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()),
        ))
    }
}

/// An object, or the Status that came instead.
#[derive(Debug)]
pub struct Answer(pub Result<Value, Value>);

impl Answer {
    pub fn ok(self) -> Value {
        self.0.unwrap()
    }

    /// Code, reason and message of a failure.
    pub fn failure(self) -> (u64, String, String) {
        let status = self.0.unwrap_err();
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (
            status["code"].as_u64().unwrap(),
            text("reason"),
            text("message"),
        )
    }
}

pub async fn send(
    client: &kube::Client,
    method: Method,
    path: &str,
    body: Option<Value>,
    content_type: &str,
) -> Answer {
    let body = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .body(body)
        .unwrap();
    Answer(match client.request::<Value>(request).await {
        Ok(value) => Ok(value),
        Err(kube::Error::Api(status)) => Err(serde_json::to_value(status).unwrap()),
        Err(other) => panic!("{other}"),
    })
}

/// Watch events.
pub struct Events(std::pin::Pin<Box<dyn futures::Stream<Item = Value> + Send>>);

impl Events {
    pub async fn next(&mut self) -> Option<Value> {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), self.0.next());
        next.await.expect("an event in time")
    }

    /// The next events as `TYPE name`.
    pub async fn names(&mut self, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < count {
            let event = self.next().await.expect("a watch that goes on");
            let name = event["object"]["metadata"]["name"]
                .as_str()
                .unwrap_or_default();
            names.push(
                format!("{} {name}", event["type"].as_str().unwrap())
                    .trim_end()
                    .to_owned(),
            );
        }
        names
    }
}
