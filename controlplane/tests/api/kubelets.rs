//! What is passed on to a kubelet: logs, its own API, and upgraded connections.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use controlplane::pki::{Identity, Pki, Subject};
use http::header::{CONNECTION, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::harness::{Cluster, send};

fn roots(pki: &Pki) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pki.ca().as_bytes()).unwrap())
        .unwrap();
    roots
}

fn parts(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
    (
        vec![certificate],
        PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap(),
    )
}

/// A kubelet that tells what it was asked and echoes what it is sent once upgraded, with a certificate of `issuer`.
/// Its port.
async fn start_kubelet(pki: &Pki, issuer: &Pki) -> u16 {
    let subject = Subject::kubelet_serving("n1", &["127.0.0.1".parse().unwrap()]);
    let (chain, key) = parts(&issuer.ensure("kubelet-serving", &subject).unwrap());
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(pki)))
        .build()
        .unwrap();
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = TokioIo::new(acceptor.accept(stream).await.unwrap());
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(stream, service_fn(answer));
                let _ = connection.with_upgrades().await;
            });
        }
    });
    port
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().to_string();
    if path.contains("failing") {
        let mut response = Response::new(Full::from(
            "container \"c\" in pod \"failing\" is waiting to start",
        ));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    }
    if !request.headers().contains_key(UPGRADE) {
        assert!(!request.headers().contains_key("authorization"));
        return Ok(Response::new(Full::from(format!(
            "{} {path}",
            request.method()
        ))));
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(UPGRADE, request.headers()[UPGRADE].clone());
    response
        .headers_mut()
        .insert(CONNECTION, "Upgrade".parse().unwrap());
    tokio::spawn(async move {
        let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let mut line = format!("{path}\n").into_bytes();
        let mut buffer = [0; 64];
        while !line.is_empty() {
            stream.write_all(&line).await.unwrap();
            let count = stream.read(&mut buffer).await.unwrap_or(0);
            line = buffer[..count].to_ascii_uppercase();
        }
    });
    Ok(response)
}

/// A cluster with a node, and pods bound to it.
async fn cluster_with_node(pods: &[&str]) -> Cluster {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cluster = Cluster::start().await;
    let port = start_kubelet(cluster.server.pki(), cluster.server.pki()).await;
    add_node(&cluster, port, pods).await;
    cluster
}

/// A node whose kubelet is at `port`, and pods bound to it.
async fn add_node(cluster: &Cluster, port: u16, pods: &[&str]) {
    cluster
        .post("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await
        .ok();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    cluster.merge("/api/v1/nodes/n1/status", status).await.ok();
    cluster
        .post(
            "/api/v1/namespaces/default/serviceaccounts",
            json!({"metadata": {"name": "default"}}),
        )
        .await
        .ok();
    for name in pods {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        });
        cluster
            .post("/api/v1/namespaces/default/pods", pod)
            .await
            .ok();
    }
}

#[tokio::test]
async fn logs_come_from_the_kubelet_and_its_errors_are_statuses() {
    let cluster = cluster_with_node(&["web", "failing"]).await;
    let log = |pod: &str| format!("/api/v1/namespaces/default/pods/{pod}/log?tailLines=3");
    let request = Request::get(log("web")).body(Vec::new()).unwrap();
    let text = cluster.client.request_text(request).await.unwrap();
    assert_eq!(text, "GET /containerLogs/default/web/c?tailLines=3");
    let failure = cluster.get(&log("failing")).await.failure();
    let message = "container \"c\" in pod \"failing\" is waiting to start";
    assert_eq!(failure, (400, "BadRequest".into(), message.into()));
    let request = Request::get("/api/v1/nodes/n1/proxy/orlop/pods?x=1")
        .body(Vec::new())
        .unwrap();
    assert_eq!(
        cluster.client.request_text(request).await.unwrap(),
        "GET /orlop/pods?x=1"
    );
    assert_eq!(
        cluster.get("/api/v1/nodes/n2/proxy/pods").await.failure().0,
        404
    );
}

#[tokio::test]
async fn an_exec_is_passed_through_as_it_is() {
    let cluster = cluster_with_node(&["web"]).await;
    let admin = Subject::client("kubernetes-admin", Some("system:masters"));
    let (chain, key) = parts(&cluster.server.pki().ensure("admin", &admin).unwrap());
    let config = ClientConfig::builder()
        .with_root_certificates(roots(cluster.server.pki()))
        .with_client_auth_cert(chain, key)
        .unwrap();
    let stream = TcpStream::connect(cluster.server.addresses()[0])
        .await
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = Request::builder()
        .method(Method::GET)
        .uri("/api/v1/namespaces/default/pods/web/exec?command=sh&stdin=true&stdout=true")
        .header("host", "localhost")
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header("sec-websocket-protocol", "v5.channel.k8s.io")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(
        response.status(),
        StatusCode::SWITCHING_PROTOCOLS,
        "{:?}",
        response.into_body().collect().await
    );
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let expected = b"/exec/default/web/c?input=1&output=1&command=sh\n";
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, expected);
    stream.write_all(b"hello").await.unwrap();
    let mut read = [0; 5];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"HELLO");
}

#[tokio::test]
async fn only_who_may_create_may_exec() {
    let cluster = cluster_with_node(&["web"]).await;
    let proxy = cluster.server.client("system:kube-proxy", &[]);
    let path = "/api/v1/namespaces/default/pods/web/exec?command=sh";
    let (code, _, message) = send(&proxy, Method::GET, path, None, "").await.failure();
    assert_eq!(code, 403);
    assert!(
        message.contains("cannot create resource \"pods/exec\""),
        "{message}"
    );
}

/// A pod's web server, which answers with what it was asked, on the address that this machine calls others from.
async fn start_backend() -> std::net::SocketAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent. Without a route there is no such address, and no pod could have one either.
    socket.connect("192.0.2.1:9").expect("a route to somewhere");
    let address = socket.local_addr().unwrap().ip();
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection);
        }
    });
    address
}

#[tokio::test]
async fn pods_and_services_are_reached_through_the_api() {
    let cluster = cluster_with_node(&["web"]).await;
    let backend = start_backend().await;
    let (address, port) = (backend.ip(), backend.port());
    let text = async |path: &str| {
        let request = Request::get(path)
            .header("authorization", "Bearer x")
            .body(Vec::new())
            .unwrap();
        cluster.client.request_text(request).await
    };
    let status = "/api/v1/namespaces/default/pods/web/status";
    let of_pod = format!("/api/v1/namespaces/default/pods/web:{port}/proxy/a/b?c=d");
    cluster
        .merge(status, json!({"status": {"podIP": "127.0.0.1"}}))
        .await
        .ok();
    assert_eq!(
        cluster.get(&of_pod).await.failure().2,
        "address not allowed"
    );
    cluster
        .merge(
            status,
            json!({"status": {"podIP": address, "podIPs": [{"ip": address}]}}),
        )
        .await
        .ok();
    assert_eq!(text(&of_pod).await.unwrap(), "GET /a/b?c=d");

    let service =
        json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    cluster
        .post("/api/v1/namespaces/default/services", service)
        .await
        .ok();
    let of_service = "/api/v1/namespaces/default/services/http:web:http/proxy/";
    let nobody = cluster.get(of_service).await.failure();
    assert_eq!(
        (nobody.0, &*nobody.2),
        (503, "no endpoints available for service \"web\"")
    );
    let slice = json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    });
    cluster
        .post(
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            slice,
        )
        .await
        .ok();
    assert_eq!(text(of_service).await.unwrap(), "GET /");
}

#[tokio::test]
async fn a_kubelet_with_a_certificate_of_its_own_is_called_only_when_that_is_wanted() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let own = tempfile::tempdir().unwrap();
    let own = Pki::open(own.path()).unwrap();
    for verify in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let cluster = Cluster::start_with(folder, |config| config.verify_kubelets = verify).await;
        let port = start_kubelet(cluster.server.pki(), &own).await;
        add_node(&cluster, port, &[]).await;
        let request = Request::get("/api/v1/nodes/n1/proxy/pods")
            .body(Vec::new())
            .unwrap();
        let answer = cluster.client.request_text(request).await;
        assert_eq!(answer.is_err(), verify, "{answer:?}");
    }
}
