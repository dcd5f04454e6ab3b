//! From a client's opening words to the protocol that it and its session speak.

use super::session::{Session, Streams};
use super::spdy::Connection;
use super::{command, port_forward, remote, spdy_command, websocket};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

pub(super) type Body = Full<Bytes>;

/// Carries a session over the upgraded connection.
type Serve = Box<dyn FnOnce(Upgraded) -> BoxFuture<'static, ()> + Send>;

/// Runs a command's session.
type Run = Box<dyn FnOnce(remote::Remote) -> BoxFuture<'static, ()> + Send>;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What the client wants to speak.
pub(super) enum Upgrade {
    /// RFC 6455 §4.2.1.
    WebSocket {
        key: String,
        protocols: Vec<String>,
    },
    Spdy {
        protocols: Vec<String>,
    },
}

impl Upgrade {
    /// `None` for a request that isn't an upgrade that we know.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let wanted = headers.get(header::UPGRADE)?.to_str().ok()?;
        if wanted.eq_ignore_ascii_case("websocket") {
            let key = headers
                .get(header::SEC_WEBSOCKET_KEY)?
                .to_str()
                .ok()?
                .to_owned();
            return Some(Upgrade::WebSocket {
                key,
                protocols: list(headers, &header::SEC_WEBSOCKET_PROTOCOL),
            });
        }
        if wanted.eq_ignore_ascii_case("SPDY/3.1") {
            return Some(Upgrade::Spdy {
                protocols: list(headers, &STREAM_PROTOCOL),
            });
        }
        None
    }

    /// The answer, and what to do with the connection after it.
    ///
    /// # Errors
    /// We have no protocol in common with the client.
    pub(super) fn accept(&self, session: Session) -> Result<(Response<Body>, Serve), NoneOf> {
        match self {
            Upgrade::WebSocket { key, protocols } => {
                let (name, serve) = over_websocket(protocols, session)?;
                let accept = derive_accept_key(key.as_bytes());
                let mut response = switch("websocket");
                let headers = response.headers_mut();
                if let Ok(accept) = HeaderValue::from_str(&accept) {
                    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                }
                if !name.is_empty() {
                    headers.insert(
                        header::SEC_WEBSOCKET_PROTOCOL,
                        HeaderValue::from_static(name),
                    );
                }
                Ok((response, serve))
            }
            Upgrade::Spdy { protocols } => {
                let (name, serve) = over_spdy(protocols, session)?;
                let mut response = switch("SPDY/3.1");
                response
                    .headers_mut()
                    .insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
                Ok((response, serve))
            }
        }
    }
}

fn over_websocket(protocols: &[String], session: Session) -> Result<(&'static str, Serve), NoneOf> {
    let offered = || protocols.iter().map(String::as_str);
    let unknown = || NoneOf(vec!["v5.channel.k8s.io", "v4.channel.k8s.io"]);
    let (streams, run) = match command_of(session) {
        Ok(command) => command,
        Err(Session::PortForward(session)) => {
            if offered().any(|name| name == port_forward::TUNNEL) {
                let serve: Serve = Box::new(|upgraded| {
                    Box::pin(async move {
                        let connection = Connection::start(websocket::tunnel(upgraded).await);
                        port_forward::serve(connection, session).await;
                    })
                });
                return Ok((port_forward::TUNNEL, serve));
            }
            let protocol = websocket::negotiate(offered()).ok_or_else(unknown)?;
            let serve: Serve = Box::new(move |upgraded| {
                Box::pin(websocket::forward_ports(upgraded, protocol, session))
            });
            return Ok((protocol.name, serve));
        }
        Err(_) => return Err(unknown()),
    };
    let protocol = websocket::negotiate(offered()).ok_or_else(unknown)?;
    let serve: Serve = Box::new(move |upgraded| {
        Box::pin(async move {
            let (remote, wire) = remote::remote();
            tokio::spawn(run(remote));
            websocket::serve(upgraded, protocol, streams, wire).await;
        })
    });
    Ok((protocol.name, serve))
}

fn over_spdy(protocols: &[String], session: Session) -> Result<(&'static str, Serve), NoneOf> {
    let mut offered = protocols.iter().map(String::as_str);
    let (streams, run) = match command_of(session) {
        Ok(command) => command,
        Err(Session::PortForward(session)) => {
            if !protocols.is_empty() && !offered.any(|name| name == port_forward::PROTOCOL) {
                return Err(NoneOf(vec![port_forward::PROTOCOL]));
            }
            let serve: Serve = Box::new(|upgraded| {
                Box::pin(port_forward::serve(
                    Connection::start(TokioIo::new(upgraded)),
                    session,
                ))
            });
            return Ok((port_forward::PROTOCOL, serve));
        }
        Err(_) => return Err(NoneOf(Vec::new())),
    };
    let Some((name, version)) = spdy_command::negotiate(offered) else {
        return Err(NoneOf(spdy_command::supported().collect()));
    };
    let serve: Serve = Box::new(move |upgraded| {
        Box::pin(async move {
            let (remote, wire) = remote::remote();
            tokio::spawn(run(remote));
            let connection = Connection::start(TokioIo::new(upgraded));
            spdy_command::serve(connection, version, streams, wire).await;
        })
    });
    Ok((name, serve))
}

/// What runs a command's session; other sessions come back.
fn command_of(session: Session) -> Result<(Streams, Run), Session> {
    match session {
        Session::Exec(session) => Ok((
            session.streams,
            Box::new(|remote| Box::pin(command::exec(session, remote))),
        )),
        Session::Attach(session) => Ok((
            session.streams,
            Box::new(|remote| Box::pin(command::attach(session, remote))),
        )),
        other => Err(other),
    }
}

/// All values of a header that is a list, also over several lines.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

fn switch(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// What the client could have offered.
pub(super) struct NoneOf(Vec<&'static str>);

impl NoneOf {
    /// The answer, as upstream's (`httpstream.Handshake`).
    pub(super) fn response(&self) -> Response<Body> {
        let mut response =
            Response::new(Body::from("none of the offered protocols is spoken here\n"));
        *response.status_mut() = StatusCode::FORBIDDEN;
        for name in &self.0 {
            response
                .headers_mut()
                .append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        response
    }
}
