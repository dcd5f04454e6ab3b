//! What the proxy costs at some number of Services, each with two endpoints, in a network namespace of its own:
//! `scale 1000 10000 50000`, or `scale iptables 1000 10000` for that mode. Needs root. One row a number; the API is generated in the process, without a socket, so that
//! the figures are the proxy's alone.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use linux::namespace::{NamespaceKind, unshare};
use proxy::{Config, IptablesSettings, Mode};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Line = Result<Frame<Bytes>, Infallible>;

/// A change runs a program in iptables mode.
fn changes(mode: Mode) -> usize {
    if mode == Mode::Nftables { 1_000 } else { 100 }
}

/// `10.base.x.y` by an index below 65,536, and the next bases above.
fn address(base: u32, index: usize) -> String {
    let index = index as u32;
    format!(
        "10.{}.{}.{}",
        base + (index >> 16),
        index >> 8 & 255,
        index & 255
    )
}

fn service(index: usize) -> String {
    format!(
        r#"{{"metadata":{{"namespace":"bench","name":"web-{index}","resourceVersion":"1","uid":"0","labels":{{"app":"web"}}}},"spec":{{"type":"ClusterIP","clusterIP":"{ip}","clusterIPs":["{ip}"],"ipFamilies":["IPv4"],"ports":[{{"name":"http","port":80,"protocol":"TCP","targetPort":8080}}],"selector":{{"app":"web-{index}"}},"sessionAffinity":"None","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}}}"#,
        ip = address(96, index)
    )
}

fn slice(index: usize, endpoints: usize, version: usize) -> String {
    let mut list = String::new();
    for endpoint in 0..endpoints {
        let comma = if endpoint > 0 { "," } else { "" };
        let address = address(128 + 8 * endpoint as u32, index);
        let _ = write!(
            list,
            r#"{comma}{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node-{}","targetRef":{{"kind":"Pod","name":"web-{index}-{endpoint}","namespace":"bench"}}}}"#,
            index % 100
        );
    }
    format!(
        r#"{{"metadata":{{"namespace":"bench","name":"web-{index}-x","resourceVersion":"{version}","labels":{{"kubernetes.io/service-name":"web-{index}"}}}},"addressType":"IPv4","endpoints":[{list}],"ports":[{{"name":"http","port":8080,"protocol":"TCP"}}]}}"#
    )
}

fn reply(text: String) -> Reply {
    Response::new(Full::new(Bytes::from(text)).boxed_unsync())
}

fn answer(
    request: &Request<Body>,
    count: usize,
    events: &Mutex<Option<UnboundedReceiver<Line>>>,
) -> Reply {
    let query = request.uri().query().unwrap_or_default();
    let number = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name))
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let is_slices = request.uri().path().ends_with("endpointslices");
    if query.contains("watch=true") {
        let taken = if is_slices {
            events.lock().ok().and_then(|mut events| events.take())
        } else {
            None
        };
        let stream = futures::stream::unfold(taken, |receiver| async {
            let Some(mut receiver) = receiver else {
                return std::future::pending().await;
            };
            let line = receiver.recv().await?;
            Some((line, Some(receiver)))
        });
        return Response::new(StreamBody::new(stream).boxed_unsync());
    }
    if request.uri().path().ends_with("nodes") {
        return reply(r#"{"metadata":{"resourceVersion":"1"},"items":[]}"#.into());
    }
    let from: usize = number("continue=");
    let to = (from + number("limit=")).min(count);
    let items: Vec<String> = (from..to)
        .map(|index| {
            if is_slices {
                slice(index, 2, 1)
            } else {
                service(index)
            }
        })
        .collect();
    let next = if to < count {
        to.to_string()
    } else {
        String::new()
    };
    reply(format!(
        r#"{{"metadata":{{"resourceVersion":"1","continue":"{next}"}},"items":[{}]}}"#,
        items.join(",")
    ))
}

/// CPU time of this process and of the programs that it ran.
fn cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
    };
    let all = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
        let usage = getrusage(who).expect("usage");
        of(usage.user_time()) + of(usage.system_time())
    });
    all.into_iter().sum()
}

fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or_default();
    line.split_whitespace()
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

async fn measure(count: usize, mode: Mode) {
    let changes = changes(mode);
    let (sender, receiver): (UnboundedSender<Line>, _) = unbounded_channel();
    let events = Arc::new(Mutex::new(Some(receiver)));
    let service = tower::service_fn(move |request: Request<Body>| {
        let events = events.clone();
        async move { Ok::<_, Infallible>(answer(&request, count, &events)) }
    });
    let config = Config {
        mode,
        ..Config::new("node-0", vec!["10.128.0.0/10".parse().expect("network")])
    };
    let mut progress = config.progress();
    let shutdown = CancellationToken::new();
    let (begun, cpu_before) = (Instant::now(), cpu());
    let client = kube::Client::new(service, "default");
    let run = tokio::spawn(proxy::run(config, client, shutdown.clone()));
    progress
        .wait_for(|progress| progress.synced())
        .await
        .expect("the proxy runs");
    let (start, start_cpu) = (begun.elapsed(), cpu() - cpu_before);
    let cpu_before = cpu();
    let mut latencies = Vec::with_capacity(changes);
    for change in 0..changes {
        let before = progress.borrow().transactions;
        // The second endpoint goes and comes.
        let event = slice((change / 2 * 7919) % count, 1 + change % 2, 2 + change);
        let begun = Instant::now();
        let line = format!(r#"{{"type":"MODIFIED","object":{event}}}"#) + "\n";
        sender
            .send(Ok(Frame::data(line.into())))
            .expect("the proxy watches");
        progress
            .wait_for(|progress| progress.transactions > before)
            .await
            .expect("the proxy runs");
        latencies.push(begun.elapsed());
    }
    let per_change = (cpu() - cpu_before) / changes as u32;
    latencies.sort_unstable();
    println!(
        "{count:>8} {start:>12.1?} {start_cpu:>12.1?} {:>12.1?} {:>12.1?} {per_change:>12.1?} {:>10}",
        latencies[changes / 2],
        latencies[changes * 99 / 100],
        resident_kilobytes()
    );
    shutdown.cancel();
    let _ = run.await;
}

fn main() {
    let by_iptables = std::env::args()
        .nth(1)
        .is_some_and(|word| word == "iptables");
    let mode = if by_iptables {
        Mode::Iptables(IptablesSettings::default())
    } else {
        Mode::Nftables
    };
    let counts: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse().ok())
        .collect();
    println!("services        start    start CPU   change p50   change p99   CPU/change    RSS kB");
    for count in if counts.is_empty() {
        vec![1_000, 10_000, 50_000]
    } else {
        counts
    } {
        // A thread, so that its network namespace ends with it.
        let thread = std::thread::spawn(move || {
            unshare(&[NamespaceKind::Network]).expect("a network namespace (needs root)");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(measure(count, mode));
        });
        thread.join().expect("measured");
    }
}
