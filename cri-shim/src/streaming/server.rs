//! The HTTP server: from a URL with a token to its session.

use super::session::{AttachSession, ExecSession, PortForwardSession, Session};
use super::tokens::Tokens;
use super::upgrade::{Body, Upgrade};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The server could not be started, or can't take another session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be listened on.
    #[error("listen on {address} for streaming: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        cause: std::io::Error,
    },
    /// Too many URLs were handed out and not used. gRPC: ResourceExhausted.
    #[error("too many streaming sessions wait for their client")]
    TooMany,
}

/// Serves exec, attach and port-forward under URLs that it hands out, each good for one connection within a minute.
/// Clones share the sessions.
#[derive(Clone)]
pub struct Server {
    base: String,
    tokens: Arc<Mutex<Tokens<Session>>>,
}

impl Server {
    /// Listens on `address` (port 0 takes a free one), which should be a loopback one: the token is all that protects a
    /// session. Ends with `shutdown`; sessions that run then are cut.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub async fn start(address: SocketAddr, shutdown: CancellationToken) -> Result<Server, Error> {
        let listen = |cause| Error::Listen { address, cause };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
        let server = Server {
            base: format!("http://{local}"),
            tokens: Arc::new(Mutex::new(Tokens::new())),
        };
        tokio::spawn(server.clone().accept(listener, shutdown));
        Ok(server)
    }

    /// A URL for CRI ExecResponse.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn exec(&self, session: ExecSession) -> Result<String, Error> {
        self.hand_out(Session::Exec(session))
    }

    /// A URL for CRI AttachResponse.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn attach(&self, session: AttachSession) -> Result<String, Error> {
        self.hand_out(Session::Attach(session))
    }

    /// A URL for CRI PortForwardResponse.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn port_forward(&self, session: PortForwardSession) -> Result<String, Error> {
        self.hand_out(Session::PortForward(session))
    }

    fn hand_out(&self, session: Session) -> Result<String, Error> {
        let kind = session.kind();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens
            .insert(session, Instant::now())
            .ok_or(Error::TooMany)?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }

    async fn accept(self, listener: TcpListener, shutdown: CancellationToken) {
        loop {
            let stream = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "accept streaming connection");
                        // Most likely EMFILE, which passes when somebody closes something.
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            // Keystrokes are small and must not wait for more.
            let _ = stream.set_nodelay(true);
            let (server, shutdown) = (self.clone(), shutdown.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request| {
                    let response = server.handle(request, &shutdown);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    result = connection => if let Err(error) = result {
                        tracing::debug!(%error, "streaming connection");
                    }
                }
            });
        }
    }

    fn handle(&self, request: Request<Incoming>, shutdown: &CancellationToken) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::POST) {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST");
        }
        let Some(upgrade) = Upgrade::read(request.headers()) else {
            return refuse(
                StatusCode::BAD_REQUEST,
                "unable to upgrade: this is for WebSocket and SPDY/3.1 clients",
            );
        };
        let mut path = request.uri().path().trim_matches('/').splitn(2, '/');
        let (kind, token) = (
            path.next().unwrap_or_default(),
            path.next().unwrap_or_default(),
        );
        let session = {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            tokens
                .take(token, Instant::now())
                .filter(|session| session.kind() == kind)
        };
        let Some(session) = session else {
            return refuse(
                StatusCode::NOT_FOUND,
                "no such session: its URL is good once and for a minute",
            );
        };
        match upgrade.accept(session) {
            Err(none) => none.response(),
            Ok((response, serve)) => {
                let shutdown = shutdown.clone();
                tokio::spawn(async move {
                    match hyper::upgrade::on(request).await {
                        Ok(upgraded) => tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = serve(upgraded) => {}
                        },
                        Err(error) => tracing::debug!(%error, "streaming client left"),
                    }
                });
                response
            }
        }
    }
}

fn refuse(status: StatusCode, reason: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{reason}\n")));
    *response.status_mut() = status;
    response
}
