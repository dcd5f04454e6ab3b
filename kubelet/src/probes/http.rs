//! HTTP for probes and hooks: one request, certificates unchecked (the kubelet asks a pod, not a name), redirects
//! followed on the same host.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;

use super::Outcome;

const MAX_REDIRECTS: usize = 10;
const MAX_BODY: usize = 10 * 1024;

/// A request without a reply.
#[derive(Debug)]
pub struct Error {
    /// For people, as upstream words it.
    pub message: String,
    /// Whether nobody listens there.
    pub refused: bool,
}

/// `host:port`, an IPv6 address in brackets.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn is_https(action: &HTTPGetAction) -> bool {
    action
        .scheme
        .as_deref()
        .is_some_and(|s| s.eq_ignore_ascii_case("https"))
}

/// The URL that an action asks for.
pub fn url(action: &HTTPGetAction, host: &str, port: u16) -> String {
    let scheme = if is_https(action) { "https" } else { "http" };
    format!("{scheme}://{}{}", host_port(host, port), path(action))
}

fn path(action: &HTTPGetAction) -> String {
    let path = action
        .path
        .as_deref()
        .filter(|p| !p.is_empty())
        .unwrap_or("/");
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Asks, and returns the status of the last reply. A redirect to elsewhere is a reply like any other.
pub async fn get(action: &HTTPGetAction, host: &str, port: u16, agent: &str) -> Result<u16, Error> {
    let mut path = path(action);
    for _ in 0..MAX_REDIRECTS {
        let wrap = |message: String, refused| Error {
            message: format!("Get \"{}\": {message}", url(action, host, port)),
            refused,
        };
        let stream = TcpStream::connect((host, port)).await.map_err(|error| {
            let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
            let cause = if refused {
                "connect: connection refused".to_owned()
            } else {
                error.to_string()
            };
            wrap(
                format!("dial tcp {}: {cause}", host_port(host, port)),
                refused,
            )
        })?;
        let request = request(action, host, port, &path, agent)
            .map_err(|error| wrap(error.to_string(), false))?;
        let (status, location) = if is_https(action) {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|error| wrap(error.to_string(), false))?;
            let connector = tokio_rustls::TlsConnector::from(tls()?);
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|error| wrap(error.to_string(), false))?;
            exchange(TokioIo::new(stream), request).await
        } else {
            exchange(TokioIo::new(stream), request).await
        }
        .map_err(|error| wrap(error.to_string(), false))?;
        match location.and_then(|to| same_host(&to, host, port)) {
            Some(next) if (300..400).contains(&status) => path = next,
            _ => return Ok(status),
        }
    }
    Err(Error {
        message: format!(
            "Get \"{}\": stopped after {MAX_REDIRECTS} redirects",
            url(action, host, port)
        ),
        refused: false,
    })
}

fn request(
    action: &HTTPGetAction,
    host: &str,
    port: u16,
    path: &str,
    agent: &str,
) -> Result<http::Request<Empty<Bytes>>, http::Error> {
    let mut request = http::Request::get(path);
    let own = action.http_headers.as_deref().unwrap_or(&[]);
    let has = |name: &str| own.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    for (name, value) in [
        ("Host", host_port(host, port)),
        ("User-Agent", agent.to_owned()),
        ("Accept", "*/*".to_owned()),
        ("Connection", "close".to_owned()),
    ] {
        if !has(name) {
            request = request.header(name, value);
        }
    }
    for header in own {
        request = request.header(&header.name, &header.value);
    }
    request.body(Empty::new())
}

async fn exchange<T>(
    io: T,
    request: http::Request<Empty<Bytes>>,
) -> Result<(u16, Option<String>), hyper::Error>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let connection = tokio::spawn(connection);
    let reply = sender.send_request(request).await?;
    let location = reply
        .headers()
        .get(http::header::LOCATION)
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    let status = reply.status().as_u16();
    // Reading on lets the server finish; how that ends is of no interest.
    let _ = Limited::new(reply.into_body(), MAX_BODY).collect().await;
    connection.abort();
    Ok((status, location))
}

/// The path of a redirect that stays on the host.
fn same_host(location: &str, host: &str, port: u16) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(location.to_owned());
    }
    let uri: http::Uri = location.parse().ok()?;
    let default = if uri.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let same = uri.host()? == host && uri.port_u16().unwrap_or(default) == port;
    same.then(|| {
        uri.path_and_query()
            .map_or_else(|| "/".to_owned(), ToString::to_string)
    })
}

#[derive(Debug)]
struct Unchecked(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn tls() -> Result<Arc<rustls::ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error {
            message: error.to_string(),
            refused: false,
        })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// `grpc.health.v1.Health/Check`: the request is one string field, the reply one enum field.
pub async fn grpc_health(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let target = host_port(host, port);
    let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    let stream = match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Err(_) => {
            return Outcome::Failure(format!(
                "timeout: failed to connect service {target:?} within {timeout:?}: context deadline exceeded"
            ));
        }
        Ok(Err(error)) if refused(&error) => {
            return Outcome::Refused(format!(
                "error: failed to connect service {target:?}: {error}"
            ));
        }
        Ok(Err(error)) => {
            return Outcome::Failure(format!(
                "error: failed to connect service {target:?}: {error}"
            ));
        }
        Ok(Ok(stream)) => stream,
    };
    match tokio::time::timeout(timeout, health_call(stream, &target, service)).await {
        Err(_) => Outcome::Failure(format!(
            "timeout: health rpc did not complete within {timeout:?}"
        )),
        Ok(Err(error)) => Outcome::Failure(format!("error: health rpc probe failed: {error}")),
        Ok(Ok(1)) => Outcome::Success,
        Ok(Ok(status)) => Outcome::Failure(format!("service unhealthy (responded with {status})")),
    }
}

async fn health_call(stream: TcpStream, target: &str, service: &str) -> Result<u8, String> {
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let length = u8::try_from(service.len())
        .ok()
        .filter(|n| *n < 128)
        .ok_or("the service's name is too long")?;
    let mut message = Vec::new();
    if length > 0 {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0, 0, 0, 0, message.len() as u8];
    frame.extend(message);
    let request = http::Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(http_body_util::Full::new(Bytes::from(frame)))
        .map_err(|error| error.to_string())?;
    let reply = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let in_headers = grpc_status(reply.headers());
    let body = Limited::new(reply.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    connection.abort();
    let status = body.trailers().and_then(grpc_status).or(in_headers);
    if let Some(code) = status.filter(|code| code != "0") {
        return Err(format!("grpc status {code}"));
    }
    // An absent field is UNKNOWN.
    let bytes = body.to_bytes();
    Ok(match bytes.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    })
}

fn grpc_status(headers: &http::HeaderMap) -> Option<String> {
    headers
        .get("grpc-status")
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_followed_on_the_same_host_only() {
        assert_eq!(same_host("/x?y", "10.0.0.1", 80).as_deref(), Some("/x?y"));
        assert_eq!(
            same_host("http://10.0.0.1/z", "10.0.0.1", 80).as_deref(),
            Some("/z")
        );
        assert_eq!(same_host("http://10.0.0.2/z", "10.0.0.1", 80), None);
        assert_eq!(same_host("//10.0.0.2/z", "10.0.0.1", 80), None);
    }
}
