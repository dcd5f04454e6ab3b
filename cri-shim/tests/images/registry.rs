//! Pulls from Debian's registry server: over TLS with a private authority and with client certificates, with a
//! password, with tokens.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cri_shim::image::{Credentials, Error, Imported, Progress, Proxies, Puller, Reference};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SigningKey,
};
use serde_json::{Value, json};

use crate::{image, store};

/// What `secret` is to bcrypt.
const SECRET: &str = "$2b$05$EVGyILFSki1hji8AkDBbQe.jOtpTy80kb.VQSJxXw77EDs7lc8BI2";

struct Registry {
    server: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Registry {
    /// With what is in `root`, where others may have put it, and what else the configuration says.
    fn start(root: &Path, name: &str, more: Value) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let address = free.unwrap().to_string();
        let mut config = json!({"version": 0.1, "log": {"level": "error"}, "http": {"addr": address},
            "storage": {"filesystem": {"rootdirectory": root.join("registry")}}});
        for (key, value) in more.as_object().unwrap() {
            for (inner, value) in value.as_object().unwrap() {
                config[key][inner] = value.clone();
            }
        }
        let path = root.join(format!("{name}.yml"));
        std::fs::write(&path, config.to_string()).unwrap();
        let log = std::fs::File::create(root.join(format!("{name}.log"))).unwrap();
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(path)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry is installed");
        let registry = Registry { server, address };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    /// One that has the image `team/app:v1`, put there by a tool of others'.
    fn fill(root: &Path) {
        let registry = Self::start(root, "plain", json!({}));
        let file = root.join("image.tar");
        std::fs::write(&file, image()).unwrap();
        let pushed = Command::new("skopeo")
            .args([
                "--insecure-policy",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
            ])
            .arg(format!("oci-archive:{}", file.display()))
            .arg(format!("docker://{}/team/app:v1", registry.address))
            .status()
            .expect("skopeo is installed");
        assert!(pushed.success());
    }

    /// The puller's folder of hosts files says this of the registry.
    fn hosts(&self, root: &Path, more: &str) {
        let folder = root.join("certs.d").join(&self.address);
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!("server = \"https://{}\"\n{more}", self.address);
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
    }

    async fn pull(&self, root: &Path, credentials: Credentials) -> Result<Imported, Error> {
        // A store of its own: what is there already would not be asked for.
        let own = tempfile::tempdir().unwrap();
        let store = store(own.path());
        let puller = Puller::new(
            store.clone(),
            vec![root.join("certs.d")],
            Proxies::default(),
        );
        let name = Reference::parse(&format!("{}/team/app:v1", self.address)).unwrap();
        let pulled = puller.pull(&name, credentials, &Progress::default()).await;
        assert!(store.verify().faults.is_empty());
        assert_eq!(store.list().len(), usize::from(pulled.is_ok()));
        pulled
    }
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic {
        user: user.into(),
        password: password.into(),
    }
}

/// An authority, and files of certificates that it signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
    root: PathBuf,
}

impl Authority {
    fn new(root: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let file = root.join("ca.pem");
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Authority {
            issuer: Issuer::new(params, key),
            file,
            root: root.into(),
        }
    }

    /// The certificate's and the key's file, the certificate, and the key.
    fn sign(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> (PathBuf, PathBuf, Vec<u8>, KeyPair) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = ["pem", "key"].map(|kind| self.root.join(format!("{name}.{kind}")));
        std::fs::write(&paths[0], certificate.pem()).unwrap();
        std::fs::write(&paths[1], key.serialize_pem()).unwrap();
        let [certificate_file, key_file] = paths;
        (certificate_file, key_file, certificate.der().to_vec(), key)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_by_a_private_authority_with_and_without_client_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    Registry::fill(root);
    let authority = Authority::new(root);
    let (certificate, key, ..) = authority.sign("server", ExtendedKeyUsagePurpose::ServerAuth);
    let tls = json!({"certificate": certificate, "key": key});
    let registry = Registry::start(root, "tls", json!({"http": {"tls": tls}}));
    registry.hosts(root, "");
    let error = registry
        .pull(root, Credentials::Anonymous)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    registry.hosts(root, "skip_verify = true\n");
    registry.pull(root, Credentials::Anonymous).await.unwrap();
    let ca = format!("ca = {:?}\n", authority.file);
    registry.hosts(root, &ca);
    registry.pull(root, Credentials::Anonymous).await.unwrap();

    let tls = json!({"certificate": certificate, "key": key, "clientcas": [authority.file]});
    let registry = Registry::start(root, "mutual", json!({"http": {"tls": tls}}));
    registry.hosts(root, &ca);
    let error = registry
        .pull(root, Credentials::Anonymous)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("ertificate"), "{error}");
    let (certificate, key, ..) = authority.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    registry.hosts(
        root,
        &format!("{ca}client = [[{certificate:?}, {key:?}]]\n"),
    );
    registry.pull(root, Credentials::Anonymous).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    Registry::fill(root);
    let users = root.join("users");
    std::fs::write(&users, format!("alice:{SECRET}\n")).unwrap();
    let auth = json!({"auth": {"htpasswd": {"realm": "test", "path": users}}});
    let registry = Registry::start(root, "basic", auth);
    registry.pull(root, basic("alice", "secret")).await.unwrap();
    for wrong in [
        Credentials::Anonymous,
        basic("alice", "guess"),
        basic("bob", "secret"),
    ] {
        let error = registry.pull(root, wrong).await.unwrap_err().to_string();
        assert!(error.contains("authorization failed"), "{error}");
    }
}

/// A token server (distribution's "Token Authentication"): who has the password may do what is asked for.
async fn token_server(authority: &Authority) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, _, certificate, key) = authority.sign("tokens", ExtendedKeyUsagePurpose::Any);
    let key = std::sync::Arc::new(key);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (certificate, key) = (certificate.clone(), key.clone());
            tokio::spawn(async move {
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                    let header = request.headers().get("authorization");
                    let right = format!("Basic {}", STANDARD.encode("alice:secret"));
                    let known = header.is_some_and(|header| header.as_bytes() == right.as_bytes());
                    let query = request.uri().query().unwrap_or_default();
                    let scope = query
                        .split('&')
                        .find_map(|part| part.strip_prefix("scope="));
                    let scope = scope
                        .unwrap_or_default()
                        .replace("%3A", ":")
                        .replace("%2F", "/");
                    let answer = if known {
                        let token = token(&scope, &certificate, &key);
                        http::Response::new(Full::new(bytes::Bytes::from(
                            json!({"token": token}).to_string(),
                        )))
                    } else {
                        let mut refused = http::Response::new(Full::default());
                        *refused.status_mut() = http::StatusCode::UNAUTHORIZED;
                        refused
                    };
                    std::future::ready(Ok::<_, std::convert::Infallible>(answer))
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    format!("http://{address}/token")
}

/// A JSON web token (RFC 7519), signed with P-256 (RFC 7518 §3.4).
fn token(scope: &str, certificate: &[u8], key: &KeyPair) -> String {
    let mut parts = scope.split(':');
    let (kind, name) = (parts.next().unwrap(), parts.next().unwrap_or_default());
    let actions: Vec<&str> = parts.next().unwrap_or_default().split(',').collect();
    let now = jiff::Timestamp::now().as_second();
    let header = json!({"alg": "ES256", "typ": "JWT", "x5c": [STANDARD.encode(certificate)]});
    let claims = json!({"iss": "tests", "aud": "registry", "sub": "alice", "nbf": now - 60, "exp": now + 600,
        "iat": now, "jti": "1", "access": [{"type": kind, "name": name, "actions": actions}]});
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let signed = format!("{header}.{claims}");
    let signature = key.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fixed(&signature)))
}

/// A signature's two numbers, out of their ASN.1.
fn fixed(signature: &[u8]) -> Vec<u8> {
    let mut rest = &signature[2..];
    let mut numbers = Vec::new();
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number = &rest[2..2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        numbers.extend(std::iter::repeat_n(0, 32 - number.len()));
        numbers.extend(number);
        rest = &rest[2 + length..];
    }
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_fetched_from_the_server_that_the_registry_names() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    Registry::fill(root);
    let authority = Authority::new(root);
    let realm = token_server(&authority).await;
    let token = json!({"realm": realm, "service": "registry", "issuer": "tests",
        "rootcertbundle": authority.file});
    let registry = Registry::start(root, "token", json!({"auth": {"token": token}}));
    // At once: neither sees the other's token.
    let (right, wrong) = tokio::join!(
        registry.pull(root, basic("alice", "secret")),
        registry.pull(root, basic("alice", "guess"))
    );
    right.unwrap();
    let error = wrong.unwrap_err().to_string();
    assert!(error.contains("authorization failed"), "{error}");
    assert!(!error.contains("guess"));
    let error = registry
        .pull(root, Credentials::Anonymous)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("authorization failed"),
        "{error}"
    );
}
