//! Connections to registries: TCP, TLS where the URL says so, kept open between requests of one pull.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::hosts::Endpoint;
use super::proxy::{Proxies, Proxy};
use super::resolve;

/// How long a connection may take to come about, TLS included.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// Where distributions keep the authorities that their system trusts.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// An HTTP client for one endpoint.
pub type HttpClient = Client<Connector, Full<Bytes>>;

/// A client that trusts whom the endpoint says, and goes through the proxy that is set for a URL.
///
/// # Errors
/// When an authority's file can't be read.
pub fn client(endpoint: &Endpoint, proxies: &Arc<Proxies>) -> io::Result<HttpClient> {
    let tls = Arc::new(tls(endpoint)?);
    let proxies = proxies.clone();
    Ok(Client::builder(TokioExecutor::new()).build(Connector { tls, proxies }))
}

fn tls(endpoint: &Endpoint) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = if endpoint.skip_verify {
        let verifier = Arc::new(Anybody(provider));
        builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
    } else {
        let mut roots = system_authorities().clone();
        for path in &endpoint.authorities {
            add_authorities(&mut roots, path)?;
        }
        builder.with_root_certificates(roots)
    };
    let Some((certificate, key)) = endpoint.clients.first() else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|error| invalid(certificate, error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| invalid(key, error))?;
    builder
        .with_client_auth_cert(chain, secret)
        .map_err(|error| invalid(certificate, error))
}

fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

/// Read once: some 150 certificates.
fn system_authorities() -> &'static RootCertStore {
    static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let paths = own
            .into_iter()
            .chain(SYSTEM_AUTHORITIES.iter().map(PathBuf::from));
        if let Some(path) = paths.into_iter().find(|path| path.exists())
            && let Err(error) = add_authorities(&mut roots, &path)
        {
            tracing::warn!(%error, "could not read the system's certificate authorities");
        }
        roots
    })
}

fn add_authorities(roots: &mut RootCertStore, path: &Path) -> io::Result<()> {
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| invalid(path, error))? {
        // One that can't be used (an old one without the needed extensions) is no reason to trust none.
        let _ = roots.add(certificate.map_err(|error| invalid(path, error))?);
    }
    Ok(())
}

/// Makes connections for the client's pool.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
    proxies: Arc<Proxies>,
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (tls, proxies) = (self.tls.clone(), self.proxies.clone());
        Box::pin(async move {
            tokio::time::timeout(CONNECT_PATIENCE, connect(&uri, tls, proxies.of(&uri)))
                .await
                .unwrap_or_else(|_| {
                    Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("connect to {uri}: no answer"),
                    ))
                })
        })
    }
}

async fn connect(uri: &Uri, tls: Arc<ClientConfig>, proxy: Option<&Proxy>) -> io::Result<Stream> {
    let host = uri
        .host()
        .ok_or_else(|| io::Error::other("a URL without a host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let (mut stream, proxied) = match proxy {
        None => (dial(host, port).await?, false),
        Some(proxy) => {
            let mut stream = through(proxy).await?;
            if secure {
                proxy.tunnel(&mut stream, host, port).await?;
            }
            (stream, !secure)
        }
    };
    if secure {
        stream = encrypt(stream, host, tls).await?;
    }
    Ok(Stream {
        inner: TokioIo::new(stream),
        proxied,
    })
}

async fn dial(host: &str, port: u16) -> io::Result<Box<dyn Io>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in resolve::lookup(host).await? {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(Box::new(stream));
            }
            Err(error) => {
                last = io::Error::new(
                    error.kind(),
                    format!("connect to {address}:{port}: {error}"),
                )
            }
        }
    }
    Err(last)
}

async fn encrypt(
    stream: Box<dyn Io>,
    host: &str,
    tls: Arc<ClientConfig>,
) -> io::Result<Box<dyn Io>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(Box::new(
        TlsConnector::from(tls).connect(name, stream).await?,
    ))
}

/// A connection to a proxy, which the system's authorities vouch for.
async fn through(proxy: &Proxy) -> io::Result<Box<dyn Io>> {
    let said = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("proxy {}:{}: {error}", proxy.host, proxy.port),
        )
    };
    let stream = dial(&proxy.host, proxy.port).await.map_err(said)?;
    if !proxy.secure {
        return Ok(stream);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(system_authorities().clone())
        .with_no_client_auth();
    encrypt(stream, &proxy.host, Arc::new(tls))
        .await
        .map_err(said)
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, with or without TLS.
pub struct Stream {
    inner: TokioIo<Box<dyn Io>>,
    /// It ends at a proxy, which wants to be told whole URLs.
    proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Trusts anybody, where a hosts file says `skip_verify`.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
