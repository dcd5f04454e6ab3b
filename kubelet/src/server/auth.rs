//! Who may ask: a client certificate of the cluster's CA, of the API server or an administrator.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Refusal;
use crate::config::ServerConfig;

/// A server that can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or isn't this machine's.
    #[error("listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A certificate or key that can't be read.
    #[error("read {what}: {cause}")]
    Pem {
        /// Which.
        what: &'static str,
        /// Why not.
        cause: String,
    },
    /// A combination that TLS doesn't allow.
    #[error("set up TLS: {0}")]
    Tls(String),
}

const ADMINISTRATORS: &str = "system:masters";

/// TLS that asks for a client certificate; one that is given must be the CA's.
pub fn acceptor(config: &ServerConfig) -> Result<TlsAcceptor, Error> {
    let pem = |what, cause: &dyn std::fmt::Display| Error::Pem {
        what,
        cause: cause.to_string(),
    };
    let read = |what, text: &str| -> Result<Vec<CertificateDer<'static>>, Error> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        all.map_err(|error| pem(what, &error))
    };
    let mut roots = RootCertStore::empty();
    for certificate in read("client CA", &config.client_ca_pem)? {
        roots
            .add(certificate)
            .map_err(|error| pem("client CA", &error))?;
    }
    let chain = read("serving certificate", &config.cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(config.key_pem.as_bytes())
        .map_err(|error| pem("serving key", &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::Tls(error.to_string()))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| Error::Tls(error.to_string()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody said.
    Anonymous,
    /// One who may ask.
    Allowed,
    /// One who may not.
    Denied(String),
}

impl Caller {
    /// Reads the client's certificate, which TLS has verified.
    pub fn of(connection: &rustls::ServerConnection, allowed_users: &[String]) -> Self {
        let Some(certificate) = connection
            .peer_certificates()
            .and_then(|chain| chain.first())
        else {
            return Self::Anonymous;
        };
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self::Denied("unreadable certificate".into());
        };
        let subject = certificate.subject();
        let user = subject
            .iter_common_name()
            .find_map(|n| n.as_str().ok())
            .unwrap_or_default();
        let mut groups = subject.iter_organization().filter_map(|n| n.as_str().ok());
        if groups.any(|group| group == ADMINISTRATORS)
            || allowed_users.iter().any(|allowed| allowed == user)
        {
            Self::Allowed
        } else {
            Self::Denied(user.to_owned())
        }
    }

    /// Whether this path is for them.
    pub fn may_ask(&self, path: &str) -> Result<(), Refusal> {
        match self {
            Self::Allowed => Ok(()),
            _ if path == "/healthz" => Ok(()),
            Self::Anonymous => Err(Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized")),
            Self::Denied(user) => Err(Refusal::new(
                StatusCode::FORBIDDEN,
                format!("Forbidden (user={user})"),
            )),
        }
    }
}
