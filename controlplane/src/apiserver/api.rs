//! From a request to its answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::request::Parts;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::auth::authorize::Authorizer;
use super::auth::tokens::Tokens;
use super::auth::{User, authenticate, impersonate};
use super::backend;
use super::cache::{Cache, Resource};
use super::config::Config;
use super::failure::{Failure, Result};
use super::kubelet::{self, Kubelets};
use super::paths;
use super::query::Query;
use super::reply::{self, Body, Reply};
use super::rest::{self, Request};
use super::reviews;
use super::route::{Route, Target, route};
use super::services::Services;

/// The longest body that is read, as upstream.
const BODY_LIMIT: usize = 3 << 20;

/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything that answering needs.
pub struct Api {
    pub cache: Arc<Cache>,
    pub tokens: Tokens,
    pub authorizer: Authorizer,
    pub services: Services,
    pub kubelets: Kubelets,
    pub config: Config,
    /// Cancelled when the server stops: every watch ends.
    pub stop: CancellationToken,
}

impl Api {
    /// Answers a request. `connection` is the user that the connection is known to belong to.
    pub fn handle(
        self: Arc<Self>,
        connection: Option<User>,
        request: http::Request<Body>,
    ) -> BoxFuture<'static, Reply> {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            match self.answer(connection, parts, body).await {
                Ok(reply) => reply,
                Err(failure) => {
                    if failure.code.is_server_error() {
                        tracing::warn!(%failure, code = failure.code.as_u16(), "a request failed");
                    }
                    reply::failure(&failure)
                }
            }
        })
    }

    async fn answer(
        self: &Arc<Self>,
        connection: Option<User>,
        parts: Parts,
        body: Body,
    ) -> Result<Reply> {
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let route = route(&parts.method, parts.uri.path(), &query);
        let user =
            authenticate::authenticate(connection, &parts.headers, &self.tokens, &self.cache)?;
        let user = impersonate::impersonate(&self.authorizer, user, &parts.headers)?;
        self.authorizer.authorize(&user, &route)?;
        let mut target = match route {
            Route::Path { path, .. } => return paths::answer(self, &parts, &query, &path),
            Route::Resource(target) => target,
        };
        if kubelet::is_forwarded(&target) {
            return kubelet::forward(self, &target, &query, parts, body).await;
        }
        if backend::is_proxied(&target) {
            return backend::forward(self, &target, parts, body).await;
        }
        if reviews::is_review(&target) {
            let body = collect(body).await?;
            return reviews::answer(self, &user, &target, &parts.headers, &body);
        }
        let resource = self.served(&target)?;
        check_scope(&resource, &target)?;
        if !resource.kind.namespaced {
            // The path of a namespace gives its name twice, for authorization.
            target.namespace.clear();
        }
        let body = collect(body).await?;
        let request = Request {
            user,
            target,
            query,
            headers: parts.headers,
            body,
            resource,
        };
        rest::dispatch(self, request).await
    }

    fn served(&self, target: &Target) -> Result<Arc<Resource>> {
        self.cache
            .resource(&target.group, &target.version, &target.resource)
            .cloned()
            .ok_or_else(Failure::no_such_path)
    }

    /// Called for every object that was removed from the store.
    pub fn deleted(&self, resource: &Resource, object: &Value) {
        if resource.kind.group.is_empty() && resource.kind.plural == "services" {
            self.services.release(object);
        }
    }
}

/// A namespaced object is named within a namespace, and no other is.
fn check_scope(resource: &Resource, target: &Target) -> Result<()> {
    let namespaces = target.resource == "namespaces" && target.group.is_empty();
    let in_namespace = !target.namespace.is_empty() && !namespaces;
    let misplaced = if resource.kind.namespaced {
        !in_namespace && !matches!(target.verb, "list" | "watch")
    } else {
        in_namespace
    };
    if misplaced {
        Err(Failure::no_such_path())
    } else {
        Ok(())
    }
}

/// The whole of a body.
async fn collect(body: Body) -> Result<Bytes> {
    let late = |_| {
        Failure::new(
            http::StatusCode::REQUEST_TIMEOUT,
            "Timeout",
            "the body did not come in time",
        )
    };
    tokio::time::timeout(BODY_TIMEOUT, read(body))
        .await
        .map_err(late)?
}

async fn read(mut body: Body) -> Result<Bytes> {
    let mut whole = Bytes::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Failure::bad_request(format!("read the body: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > BODY_LIMIT {
            return Err(Failure::too_large(BODY_LIMIT));
        }
        whole = if whole.is_empty() {
            data
        } else {
            [whole, data].concat().into()
        };
    }
    Ok(whole)
}
