//! Pulls from a registry of the test's on loopback, which may be slow, lying, or want to see a token.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::image::{Limits, Platform};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use journal::Journal;

/// What a registry does besides answering.
#[derive(Debug, Default, Clone)]
struct Manners {
    /// Wants a token of its own token server's, for this user and password (empty: anybody).
    token_for: Option<(String, String)>,
    /// Wants this user and password itself.
    basic_for: Option<(String, String)>,
    /// Cuts every blob off after that many bytes of an answer.
    cut_after: Option<usize>,
    /// Does so once, and then is out of order.
    dies: bool,
    /// Sends that many bytes of a blob, and the rest when it is let.
    waits_after: Option<usize>,
    may_go_on: Arc<tokio::sync::Notify>,
    /// Gives other bytes than were asked for.
    lies: bool,
    /// Has nothing.
    empty: bool,
}

struct Served {
    address: String,
    files: Arc<HashMap<String, Vec<u8>>>,
    requests: Arc<Mutex<Vec<String>>>,
    blobs: Arc<AtomicUsize>,
}

impl Served {
    fn image(&self) -> Reference {
        Reference::parse(&format!("{}/team/app:v1", self.address)).unwrap()
    }
}

/// An image of two layers, and the paths that a registry answers it under.
fn image(first: usize) -> HashMap<String, Vec<u8>> {
    let mut files = HashMap::new();
    let blob = |files: &mut HashMap<String, Vec<u8>>, bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"digest": digest, "size": bytes.len()});
        files.insert(format!("blobs/{digest}"), bytes);
        descriptor
    };
    let layer = |name: &str, size: usize| {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        let content: Vec<u8> = (0..size).map(|n| (n * 7 % 251) as u8).collect();
        archive
            .append_data(&mut header, name, content.as_slice())
            .unwrap();
        archive.into_inner().unwrap()
    };
    let layers = [layer("a", first), layer("b", 3)];
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let layers: Vec<_> = layers
        .into_iter()
        .map(|layer| blob(&mut files, layer))
        .collect();
    let config = json!({"os": "linux", "architecture": Platform::ours().architecture, "config": {"Cmd": ["/a"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(&mut files, serde_json::to_vec(&config).unwrap());
    let manifest =
        serde_json::to_vec(&json!({"schemaVersion": 2, "config": config, "layers": layers}))
            .unwrap();
    let mut entry = json!({"digest": Digest::of(&manifest), "size": manifest.len()});
    entry["platform"] = json!(Platform::ours());
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]})).unwrap();
    files.insert(format!("manifests/{}", Digest::of(&manifest)), manifest);
    files.insert(format!("manifests/{}", Digest::of(&index)), index.clone());
    files.insert("manifests/v1".into(), index);
    files
}

async fn serve(manners: Manners) -> Served {
    serve_image(manners, 100_000).await
}

/// With so many bytes in the first layer.
async fn serve_image(manners: Manners, first: usize) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = Served {
        address,
        files: Arc::new(image(first)),
        requests: Arc::default(),
        blobs: Arc::default(),
    };
    let (files, requests, blobs) = (
        served.files.clone(),
        served.requests.clone(),
        served.blobs.clone(),
    );
    let address = served.address.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (files, requests, blobs) = (files.clone(), requests.clone(), blobs.clone());
            let (manners, address) = (manners.clone(), address.clone());
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let uri = request.uri().to_string();
                    requests.lock().unwrap().push(uri.clone());
                    let asked = match uri.contains("/blobs/") {
                        true => blobs.fetch_add(1, Ordering::SeqCst),
                        false => 0,
                    };
                    // The configuration and two layers are asked for before one can break off.
                    if manners.dies && asked >= 3 {
                        return std::future::ready(Ok::<_, std::convert::Infallible>(status(
                            StatusCode::INTERNAL_SERVER_ERROR,
                        )));
                    }
                    let answer = answer(&manners, &address, &files, &request);
                    std::future::ready(Ok(answer))
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    served
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes))
        .map_err(|never| match never {})
        .boxed()
}

fn status(code: StatusCode) -> Response<Body> {
    Response::builder()
        .status(code)
        .body(whole(Vec::new()))
        .unwrap()
}

fn answer(
    manners: &Manners,
    address: &str,
    files: &HashMap<String, Vec<u8>>,
    request: &Request<Incoming>,
) -> Response<Body> {
    use base64::Engine;
    let authorization = request
        .headers()
        .get("authorization")
        .map(|header| header.to_str().unwrap().to_owned());
    let basic = |(user, password): &(String, String)| {
        format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
        )
    };
    let path = request.uri().path();
    let challenge = |challenge: String| {
        let mut response = status(StatusCode::UNAUTHORIZED);
        response
            .headers_mut()
            .insert("www-authenticate", challenge.parse().unwrap());
        response
    };
    if path == "/token" {
        let wanted = manners
            .token_for
            .as_ref()
            .filter(|(user, _)| !user.is_empty())
            .map(basic);
        assert!(
            request
                .uri()
                .query()
                .unwrap()
                .contains("scope=repository%3Ateam%2Fapp%3Apull")
        );
        return match wanted == authorization {
            true => Response::new(whole(br#"{"token": "secret"}"#.to_vec())),
            false => status(StatusCode::UNAUTHORIZED),
        };
    }
    if manners.token_for.is_some() && authorization.as_deref() != Some("Bearer secret") {
        return challenge(format!(
            "Bearer realm=\"http://{address}/token\",service=\"test\""
        ));
    }
    if let Some(user) = &manners.basic_for
        && authorization != Some(basic(user))
    {
        return challenge("Basic realm=\"test\"".into());
    }
    let found = path
        .strip_prefix("/v2/team/app/")
        .and_then(|path| files.get(path));
    let Some(mut content) = found.filter(|_| !manners.empty).cloned() else {
        return status(StatusCode::NOT_FOUND);
    };
    if manners.lies && path.contains("/blobs/") {
        content.reverse();
    }
    let range = request.headers().get("range").map(|range| {
        range
            .to_str()
            .unwrap()
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse::<usize>()
            .unwrap()
    });
    let rest = content[range.unwrap_or(0)..].to_vec();
    let waits = manners
        .waits_after
        .filter(|limit| path.contains("/blobs/") && *limit < rest.len());
    if let Some(limit) = waits {
        let (first, second) = rest.split_at(limit);
        let pieces = [
            Bytes::copy_from_slice(first),
            Bytes::copy_from_slice(second),
        ];
        let go_on = manners.may_go_on.clone();
        let pieces = futures::StreamExt::then(
            futures::stream::iter(pieces.into_iter().enumerate()),
            move |(index, piece)| {
                let go_on = go_on.clone();
                async move {
                    if index > 0 {
                        go_on.notified().await;
                    }
                    Ok(hyper::body::Frame::data(piece))
                }
            },
        );
        return Response::new(http_body_util::StreamBody::new(pieces).boxed());
    }
    let mut response = match manners
        .cut_after
        .filter(|limit| path.contains("/blobs/") && *limit < rest.len())
    {
        None => Response::new(whole(rest)),
        Some(limit) => {
            let pieces = [
                Ok(Bytes::from(rest[..limit].to_vec())),
                Err(std::io::Error::other("cut")),
            ];
            let pieces = pieces
                .into_iter()
                .map(|piece| piece.map(hyper::body::Frame::data));
            // In between, what was sent has to get through.
            let pieces = futures::StreamExt::then(futures::stream::iter(pieces), async |piece| {
                if piece.is_err() {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                piece
            });
            http_body_util::StreamBody::new(pieces)
                .boxed()
                .into_response()
        }
    };
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

trait IntoResponse {
    fn into_response(self) -> Response<Body>;
}

impl IntoResponse for Body {
    fn into_response(self) -> Response<Body> {
        Response::new(self)
    }
}

struct Bench {
    root: tempfile::TempDir,
    store: Arc<Store>,
    puller: Puller,
}

fn bench() -> Bench {
    bench_with(Proxies::default())
}

fn bench_with(proxies: Proxies) -> Bench {
    let root = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(root.path().join("journal"), 1).unwrap());
    let store =
        Arc::new(Store::open(root.path().join("images"), journal, Limits::default()).unwrap());
    let puller = Puller::new(store.clone(), vec![root.path().join("certs.d")], proxies);
    Bench {
        root,
        store,
        puller,
    }
}

impl Bench {
    fn mirror(&self, registry: &str, mirrors: &[&str], server: &str) {
        let folder = self.root.path().join("certs.d").join(registry);
        std::fs::create_dir_all(&folder).unwrap();
        let mirrors: String = mirrors
            .iter()
            .map(|mirror| format!("[host.\"http://{mirror}\"]\n"))
            .collect();
        std::fs::write(
            folder.join("hosts.toml"),
            format!("server = \"http://{server}\"\n{mirrors}"),
        )
        .unwrap();
    }

    fn ingests(&self) -> usize {
        std::fs::read_dir(self.root.path().join("images/ingest"))
            .unwrap()
            .count()
    }
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic {
        user: user.into(),
        password: password.into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled_by_tag_and_by_digest_and_its_layers_once() {
    let (served, bench) = (serve(Manners::default()).await, bench());
    let progress = Progress::default();
    let pulled = bench
        .puller
        .pull(&served.image(), Credentials::Anonymous, &progress)
        .await
        .unwrap();
    let layers = progress.layers(&bench.store);
    assert_eq!(layers.len(), 2);
    let whole = |layer: &LayerProgress| layer.unpacked && layer.received_bytes == layer.size_bytes;
    assert!(layers.iter().all(whole), "{layers:?}");
    let image = bench.store.get(&served.image().to_string()).unwrap();
    assert_eq!(image.id, pulled.id);
    assert_eq!(image.layers.len(), 2);
    let index = Digest::of(&served.files["manifests/v1"]);
    let by_digest = served.image().with_digest(&index);
    assert!(image.digests.contains(&by_digest));
    assert_eq!(served.blobs.load(Ordering::SeqCst), 3);
    let again = bench
        .puller
        .pull(
            &Reference::parse(&by_digest).unwrap(),
            Credentials::Anonymous,
            &Progress::default(),
        )
        .await
        .unwrap();
    assert_eq!(again.id, pulled.id);
    assert_eq!(
        served.blobs.load(Ordering::SeqCst),
        3,
        "all of it was there"
    );
    assert_eq!(bench.ingests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pulls_at_once_fetch_each_layer_once() {
    let (served, bench) = (serve(Manners::default()).await, bench());
    let reference = served.image();
    let progress = Progress::default();
    let pulls = (0..50).map(|_| {
        bench
            .puller
            .pull(&reference, Credentials::Anonymous, &progress)
    });
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    let requests = served.requests.lock().unwrap();
    let mut layers: BTreeMap<&str, usize> = BTreeMap::new();
    for request in requests
        .iter()
        .filter(|request| request.contains("/blobs/"))
    {
        *layers.entry(request).or_default() += 1;
    }
    let mut counts: Vec<usize> = layers.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 1], "two layers and the configuration");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_passwords_are_shown_to_whom_they_are_for() {
    let alice = ("alice".to_owned(), "wonder".to_owned());
    for manners in [
        Manners {
            token_for: Some(alice.clone()),
            ..Default::default()
        },
        Manners {
            basic_for: Some(alice.clone()),
            ..Default::default()
        },
    ] {
        let (served, bench) = (serve(manners).await, bench());
        let refused = bench
            .puller
            .pull(
                &served.image(),
                Credentials::Anonymous,
                &Progress::default(),
            )
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("401"), "{refused}");
        let refused = bench
            .puller
            .pull(
                &served.image(),
                basic("alice", "mistake"),
                &Progress::default(),
            )
            .await
            .unwrap_err();
        assert!(!refused.to_string().contains("mistake"), "{refused}");
        bench
            .puller
            .pull(
                &served.image(),
                basic("alice", "wonder"),
                &Progress::default(),
            )
            .await
            .unwrap();
        // What one pull was given, the next one doesn't have.
        bench
            .puller
            .pull(
                &served.image(),
                Credentials::Anonymous,
                &Progress::default(),
            )
            .await
            .unwrap_err();
    }
    let (served, bench) = (
        serve(Manners {
            token_for: Some(Default::default()),
            ..Default::default()
        })
        .await,
        bench(),
    );
    bench
        .puller
        .pull(
            &served.image(),
            Credentials::Anonymous,
            &Progress::default(),
        )
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let (served, bench) = (
        serve(Manners {
            cut_after: Some(40_000),
            ..Default::default()
        })
        .await,
        bench(),
    );
    bench
        .puller
        .pull(
            &served.image(),
            Credentials::Anonymous,
            &Progress::default(),
        )
        .await
        .unwrap();
    assert!(
        served.blobs.load(Ordering::SeqCst) >= 5,
        "the large layer took three requests"
    );
    assert_eq!(bench.ingests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lies_is_found_out_and_leaves_nothing() {
    let (served, bench) = (
        serve(Manners {
            lies: true,
            ..Default::default()
        })
        .await,
        bench(),
    );
    let error = bench
        .puller
        .pull(
            &served.image(),
            Credentials::Anonymous,
            &Progress::default(),
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("has the digest"), "{error}");
    assert!(bench.store.list().is_empty());
    assert_eq!(bench.ingests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_are_asked_first_and_do_not_see_passwords() {
    let alice = ("alice".to_owned(), "wonder".to_owned());
    let empty = serve(Manners {
        empty: true,
        ..Default::default()
    })
    .await;
    let greedy = serve(Manners {
        basic_for: Some(alice.clone()),
        ..Default::default()
    })
    .await;
    let real = serve(Manners {
        basic_for: Some(alice),
        ..Default::default()
    })
    .await;
    let bench = bench();
    bench.mirror(
        "registry.example",
        &[&empty.address, &greedy.address],
        &real.address,
    );
    let reference = Reference::parse("registry.example/team/app:v1").unwrap();
    bench
        .puller
        .pull(&reference, basic("alice", "wonder"), &Progress::default())
        .await
        .unwrap();
    assert!(empty.requests.lock().unwrap()[0].ends_with("?ns=registry.example"));
    assert!(!greedy.requests.lock().unwrap().is_empty());
    assert!(real.blobs.load(Ordering::SeqCst) > 0);
    assert!(bench.store.get("registry.example/team/app:v1").is_ok());

    let nowhere = Reference::parse("registry.example/team/other:v1").unwrap();
    let error = bench
        .puller
        .pull(&nowhere, Credentials::Anonymous, &Progress::default())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("pull registry.example/team/other:v1:"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_asked_for_what_is_not_on_this_machine() {
    let proxy = serve(Manners::default()).await;
    let value = format!("http://me:you@{}", proxy.address);
    let proxies = |scheme: &'static str| {
        let value = value.clone();
        Proxies::read(move |name| (name == scheme).then(|| value.clone())).unwrap()
    };
    let bench = bench_with(proxies("HTTP_PROXY"));
    bench.mirror("registry.example", &[], "registry.invalid");
    let reference = Reference::parse("registry.example/team/app:v1").unwrap();
    bench
        .puller
        .pull(&reference, Credentials::Anonymous, &Progress::default())
        .await
        .unwrap();
    let asked = proxy.requests.lock().unwrap().clone();
    let whole = |url: &String| url.starts_with("http://registry.invalid/v2/team/app/");
    assert!(!asked.is_empty() && asked.iter().all(whole), "{asked:?}");
    // TLS goes through a tunnel, which this proxy refuses.
    let bench = bench_with(proxies("HTTPS_PROXY"));
    let reference = Reference::parse("registry.invalid/team/app:v1").unwrap();
    let error = bench
        .puller
        .pull(&reference, Credentials::Anonymous, &Progress::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("proxy {}", proxy.address)),
        "{error}"
    );
    assert!(!error.contains("you"), "{error}");
}

fn unpacked_so_far(bench: &Bench) -> u64 {
    let layers = std::fs::read_dir(bench.root.path().join("images/layers")).unwrap();
    let sizes = layers.flatten().filter_map(|layer| {
        let partial = layer.file_name().to_str()?.starts_with("partial-");
        let file = layer.path().join("a").metadata().ok()?;
        partial.then_some(file.len())
    });
    sizes.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_is_unpacked_while_it_arrives() {
    let manners = Manners {
        waits_after: Some(2 << 20),
        ..Default::default()
    };
    let may_go_on = manners.may_go_on.clone();
    let (served, bench) = (serve_image(manners, 4 << 20).await, bench());
    let reference = served.image();
    let progress = Progress::default();
    let pull = bench
        .puller
        .pull(&reference, Credentials::Anonymous, &progress);
    let watch = async {
        while unpacked_so_far(&bench) < 1 << 20 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // Nobody may use it yet.
        assert!(bench.store.state().layers.is_empty());
        may_go_on.notify_one();
    };
    let (pulled, ()) = tokio::join!(pull, watch);
    pulled.unwrap();
    assert!(bench.store.verify().faults.is_empty());
    assert_eq!(bench.ingests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_fails_half_way_is_left_for_the_registry() {
    for dies in [true, false] {
        // The other one sends what is something else from its first byte on.
        let mirror = Manners {
            cut_after: dies.then_some(1 << 20),
            dies,
            lies: !dies,
            ..Default::default()
        };
        let mirror = serve_image(mirror, 3 << 20).await;
        let real = serve_image(Manners::default(), 3 << 20).await;
        let bench = bench();
        bench.mirror("registry.example", &[&mirror.address], &real.address);
        let reference = Reference::parse("registry.example/team/app:v1").unwrap();
        let pulled = bench
            .puller
            .pull(&reference, Credentials::Anonymous, &Progress::default())
            .await;
        pulled.unwrap();
        assert!(bench.store.verify().faults.is_empty());
        let asked = real.requests.lock().unwrap();
        let blobs = asked.iter().filter(|request| request.contains("/blobs/"));
        // Only the layer that broke off; or all.
        assert_eq!(blobs.count(), if dies { 1 } else { 3 }, "{asked:?}");
        assert_eq!(bench.ingests(), 0);
    }
}
