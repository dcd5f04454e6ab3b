//! TLS for the listeners and for calls to kubelets.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::pki::Identity;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read a certificate or key: {0}")]
    Pem(#[from] pem::Error),
    #[error("set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("set up the verification of client certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// For a listener: clients may show a certificate of `ca`, HTTP/2 and HTTP/1.1 are spoken.
///
/// # Errors
/// When a certificate or key is not what it should be.
pub fn server(ca: &str, identity: &Identity) -> Result<ServerConfig, Error> {
    let (chain, key) = parts(identity)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// For a client that trusts `ca` and shows `identity`.
///
/// # Errors
/// When a certificate or key is not what it should be.
pub fn client(ca: &str, identity: &Identity) -> Result<ClientConfig, Error> {
    let (chain, key) = parts(identity)?;
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain, key)?)
}

/// Makes a client take whatever certificate it is shown. What it sends can then be read by whoever stands between.
pub fn trust_any(config: &mut ClientConfig) {
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Anyone(provider())));
}

/// Takes every certificate, if only its holder has the key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
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
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(ca: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(roots)
}

fn parts(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<_, _>>()?;
    Ok((
        chain,
        PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?,
    ))
}
