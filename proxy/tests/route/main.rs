//! Several nodes as network namespaces: two on one link, a third behind a router. Needs root, `ip` and `nft`.

#[allow(dead_code, reason = "shared with the Services' tests")]
#[path = "../service/api.rs"]
mod api;
#[allow(dead_code, reason = "shared with the Services' tests")]
#[path = "../service/lab.rs"]
mod lab;

use api::Api;
use lab::{Namespace, PORT, serve};
use proxy::route::{Config, DEVICE, Mode, Progress, Settings, TABLE};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A node with one pod, whose packets to elsewhere are masqueraded as the CNI plugins do it.
struct Node {
    host: Namespace,
    pod: Namespace,
    number: usize,
    settings: watch::Sender<Settings>,
    progress: watch::Receiver<Progress>,
    config: Config,
}

impl Node {
    fn name(&self) -> String {
        format!("node{}", self.number)
    }

    fn pod_addresses(&self) -> [IpAddr; 2] {
        let number = self.number;
        [
            format!("10.244.{number}.5"),
            format!("fd00:10:244:{number}::5"),
        ]
        .map(|text| text.parse().expect("address"))
    }

    fn object(&self, addresses: &[&str]) -> Value {
        let number = self.number;
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({ "type": "InternalIP", "address": address }))
            .collect();
        json!({
            "kind": "Node", "metadata": { "name": self.name() },
            "spec": { "podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")] },
            "status": { "addresses": addresses }
        })
    }

    fn start(&self, api: &Api) -> CancellationToken {
        let (config, api, token) = (self.config.clone(), api.clone(), CancellationToken::new());
        let stop = token.clone();
        self.host.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime
                .block_on(async { proxy::route::run(config, api.client(), stop).await })
                .expect("routes");
        });
        token
    }

    /// Changes the settings and waits until they are in force.
    fn set(&self, change: impl FnOnce(&mut Settings)) {
        let before = self.progress.borrow().updates;
        self.settings.send_modify(change);
        self.wait_for(|progress| progress.updates > before && progress.synced);
    }

    fn wait_for(&self, holds: impl Fn(&Progress) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(&self.progress.borrow()) {
            let progress = *self.progress.borrow();
            assert!(
                Instant::now() < deadline,
                "{} stays at {progress:?}",
                self.name()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn route_to(&self, address: IpAddr) -> String {
        self.host.command(&format!("ip route get {address}"))
    }
}

fn node(number: usize, router: &Namespace, port: &str, network: &str, network6: &str) -> Node {
    let host = Namespace::new();
    let pod = Namespace::new();
    router.ip(&format!(
        "link add {port} type veth peer name eth0 netns {}",
        host.thread_id
    ));
    host.command(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
    );
    host.ip(&format!("addr add {network}.{number}/24 dev eth0"));
    host.ip(&format!("addr add {network6}::{number}/64 dev eth0 nodad"));
    host.ip("link set eth0 up");
    host.ip(&format!("route add default via {network}.254"));
    host.ip(&format!("-6 route add default via {network6}::254"));
    host.ip("link add orlop0 type bridge mcast_snooping 0");
    host.ip(&format!("addr add 10.244.{number}.1/24 dev orlop0"));
    host.ip(&format!(
        "addr add fd00:10:244:{number}::1/64 dev orlop0 nodad"
    ));
    host.ip("link set orlop0 up");
    host.ip(&format!(
        "link add pod type veth peer name eth0 netns {}",
        pod.thread_id
    ));
    host.ip("link set pod master orlop0 up");
    pod.ip(&format!("addr add 10.244.{number}.5/24 dev eth0"));
    pod.ip(&format!(
        "addr add fd00:10:244:{number}::5/64 dev eth0 nodad"
    ));
    pod.ip("link set eth0 up");
    pod.ip(&format!("route add default via 10.244.{number}.1"));
    pod.ip(&format!("-6 route add default via fd00:10:244:{number}::1"));
    for (family, own) in [
        ("ip", format!("10.244.{number}.0/24")),
        ("ip6", format!("fd00:10:244:{number}::/64")),
    ] {
        host.command(&format!(
            "nft 'add table {family} cni; add chain {family} cni post {{ type nat hook postrouting priority 100; }}; \
             add rule {family} cni post {family} saddr {own} {family} daddr != {own} masquerade'"
        ));
    }
    serve(&pod, &format!("pod{number}"));
    let (settings, wanted) = watch::channel(Settings::default());
    let config = Config::new(format!("node{number}"), wanted);
    let progress = config.progress();
    Node {
        host,
        pod,
        number,
        settings,
        progress,
        config,
    }
}

/// Nodes 1 and 2 on one link, node 3 behind the router.
fn cluster() -> (Namespace, Vec<Node>) {
    let router = Namespace::new();
    router.command(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
    );
    router.ip("link add link0 type bridge mcast_snooping 0");
    router.ip("addr add 192.0.2.254/24 dev link0");
    router.ip("addr add 2001:db8::254/64 dev link0 nodad");
    router.ip("link set link0 up");
    let nodes = vec![
        node(1, &router, "one", "192.0.2", "2001:db8"),
        node(2, &router, "two", "192.0.2", "2001:db8"),
        node(3, &router, "three", "198.51.100", "2001:db8:1"),
    ];
    for port in ["one", "two"] {
        router.ip(&format!("link set {port} master link0 up"));
    }
    router.ip("addr add 198.51.100.254/24 dev three");
    router.ip("addr add 2001:db8:1::254/64 dev three nodad");
    router.ip("link set three up");
    (router, nodes)
}

fn objects(nodes: &[Node]) -> Vec<Value> {
    vec![
        nodes[0].object(&["192.0.2.1", "2001:db8::1"]),
        nodes[1].object(&["192.0.2.2", "2001:db8::2"]),
        nodes[2].object(&["198.51.100.3", "2001:db8:1::3"]),
    ]
}

/// Every pod reaches every other one in both families, and is seen with its own address.
fn all_reach_all(nodes: &[Node]) {
    for from in nodes {
        for to in nodes {
            for (own, address) in from.pod_addresses().into_iter().zip(to.pod_addresses()) {
                let at = SocketAddr::new(address, PORT);
                // A bridge port passes packets some time after its link is up.
                let answer = (0..20).find_map(|_| from.pod.ask(at).ok());
                let answer = answer
                    .unwrap_or_else(|| panic!("{own} to {address}: {}", from.route_to(address)));
                assert_eq!(
                    (answer.server, answer.seen),
                    (format!("pod{}", to.number), own)
                );
                assert!(from.host.ask(at).is_ok(), "{} to {address}", from.name());
            }
        }
    }
}

/// A connection that is asked again and again whether it stands, with more than one packet each way.
fn stand(from: &Namespace, to: &Namespace, at: SocketAddr) -> impl FnMut() + use<> {
    let echo = to
        .run(move || TcpListener::bind(("::", at.port())))
        .expect("listen");
    to.spawn(move || {
        for mut stream in echo.incoming().flatten() {
            let mut reader = stream.try_clone().expect("clone");
            std::thread::spawn(move || std::io::copy(&mut reader, &mut stream));
        }
    });
    let mut stream = from.run(move || TcpStream::connect(at)).expect("connect");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("timeout");
    move || {
        let sent: Vec<u8> = (0..200_000).map(|index| index as u8).collect();
        let mut writer = stream.try_clone().expect("clone");
        let copy = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&copy));
        let mut seen = vec![0; sent.len()];
        stream.read_exact(&mut seen).expect("an echo");
        writing.join().expect("thread").expect("write");
        assert_eq!(seen, sent);
    }
}

#[test]
fn pods_reach_each_other_in_each_mode_and_stay_connected_where_the_way_stays() {
    let (_router, mut nodes) = cluster();
    let api = Api::default();
    let objects = objects(&nodes);
    objects.iter().for_each(|object| api.apply(object.clone()));
    let stops: Vec<_> = nodes.iter().map(|node| node.start(&api)).collect();
    nodes
        .iter()
        .for_each(|node| node.wait_for(|progress| progress.synced && progress.ways == 4));
    all_reach_all(&nodes);
    let [near, near6] = nodes[1].pod_addresses();
    let [far, far6] = nodes[2].pod_addresses();
    for (address, word) in [
        (near, "via 192.0.2.2 "),
        (near6, "via 2001:db8::2 "),
        (far, DEVICE),
        (far6, DEVICE),
    ] {
        let route = nodes[0].route_to(address);
        assert!(route.contains(word), "{route}");
    }

    // A connection by the tunnel goes on while the others' ways change, and large packets pass.
    let mut echoes = stand(&nodes[0].pod, &nodes[2].pod, SocketAddr::new(far, 7000));
    echoes();
    for node in &nodes {
        node.set(|settings| settings.mode = Mode::Vxlan);
    }
    echoes();
    assert!(
        nodes[0].route_to(near).contains(DEVICE),
        "{}",
        nodes[0].route_to(near)
    );
    all_reach_all(&nodes);

    // A node is lost, and comes back.
    let before = nodes[0].progress.borrow().updates;
    api.delete("Node", "", "node2");
    nodes[0]
        .wait_for(|progress| progress.updates > before && progress.synced && progress.ways == 2);
    assert!(!nodes[0].route_to(near).contains(DEVICE));
    echoes();
    api.apply(objects[1].clone());
    nodes
        .iter()
        .for_each(|node| node.wait_for(|progress| progress.synced && progress.ways == 4));
    all_reach_all(&nodes);

    // What stands stays while nobody is there, and is adopted.
    stops.iter().for_each(CancellationToken::cancel);
    echoes();
    let config = Config::new("node1", nodes[0].settings.subscribe());
    let progress = config.progress();
    nodes[0].config = config;
    nodes[0].progress = progress;
    let again = &nodes[0];
    let _stop = again.start(&api);
    again.wait_for(|progress| progress.synced && progress.ways == 4);
    echoes();
    nodes[0].host.run(proxy::route::cleanup).expect("clean up");
    let left = nodes[0]
        .host
        .command("ip link; ip route; ip -6 route; nft list tables");
    assert!(
        !left.contains(DEVICE) && !left.contains(TABLE) && !left.contains("proto 111"),
        "{left}"
    );
}

#[test]
fn pods_keep_their_addresses_towards_networks_that_are_exempt_as_long_as_they_are() {
    let (router, nodes) = cluster();
    serve(&router, "outside");
    for (node, way, way6) in [
        (1, "192.0.2.1", "2001:db8::1"),
        (3, "198.51.100.3", "2001:db8:1::3"),
    ] {
        router.ip(&format!("route add 10.244.{node}.0/24 via {way}"));
        router.ip(&format!("-6 route add fd00:10:244:{node}::/64 via {way6}"));
    }
    let api = Api::default();
    let objects = objects(&nodes);
    // The only node has no ways to others, and its settings hold all the same.
    api.apply(objects[0].clone());
    let node = &nodes[0];
    let _stop = node.start(&api);
    node.wait_for(|progress| progress.synced);
    let seen = |address: &str| {
        let at = SocketAddr::new(address.parse().expect("address"), PORT);
        // A bridge port passes packets some time after its link is up.
        let answer = (0..20).find_map(|_| node.pod.ask(at).ok());
        answer
            .unwrap_or_else(|| panic!("{address} does not answer"))
            .seen
            .to_string()
    };
    let [own, own6] = node.pod_addresses().map(|address| address.to_string());
    assert_eq!(
        (seen("192.0.2.254"), seen("2001:db8::254")),
        ("192.0.2.1".into(), "2001:db8::1".into())
    );
    let at = "192.0.2.254:7000".parse().expect("address");
    let mut echoes = stand(&node.pod, &router, at);
    echoes();
    let exempt = |networks: &[&str]| {
        let networks = networks.iter().map(|text| text.parse().expect("network"));
        node.set(|settings| settings.non_masquerade_cidrs = networks.collect());
    };
    exempt(&["192.0.2.0/24", "192.0.2.254/32", "2001:db8::/64"]);
    assert_eq!(
        (seen("192.0.2.254"), seen("2001:db8::254")),
        (own.clone(), own6)
    );
    assert_eq!(
        seen("198.51.100.254"),
        "192.0.2.1",
        "the rest is masqueraded"
    );
    echoes();
    exempt(&["192.0.2.0/24"]);
    assert_eq!(
        (seen("192.0.2.254"), seen("2001:db8::254")),
        (own, "2001:db8::1".into())
    );
    exempt(&[]);
    echoes();
    assert_eq!(seen("192.0.2.254"), "192.0.2.1");
    let tables = node.host.command("nft list tables");
    assert!(!tables.contains(TABLE), "{tables}");
}

/// Megabits a second of one stream between pods of nodes 1 and 2.
fn throughput(nodes: &[Node], port: u16) -> f64 {
    const BYTES: usize = 400 << 20;
    let sink = nodes[1]
        .pod
        .run(move || TcpListener::bind(("::", port)))
        .expect("listen");
    let (done, seen) = std::sync::mpsc::channel();
    nodes[1].pod.spawn(move || {
        let (mut stream, _) = sink.accept().expect("accept");
        let read = std::io::copy(&mut stream, &mut std::io::sink()).expect("read");
        let _ = done.send(read);
    });
    let at = SocketAddr::new(nodes[1].pod_addresses()[0], port);
    let mut stream = nodes[0]
        .pod
        .run(move || TcpStream::connect(at))
        .expect("connect");
    let begun = Instant::now();
    let piece = vec![0; 1 << 20];
    for _ in 0..BYTES / piece.len() {
        stream.write_all(&piece).expect("write");
    }
    drop(stream);
    assert_eq!(seen.recv().expect("seen"), BYTES as u64);
    BYTES as f64 * 8.0 / 1e6 / begun.elapsed().as_secs_f64()
}

#[test]
#[ignore = "a benchmark"]
fn measure() {
    let (_router, nodes) = cluster();
    let api = Api::default();
    objects(&nodes)
        .iter()
        .for_each(|object| api.apply(object.clone()));
    let _stops: Vec<_> = nodes.iter().map(|node| node.start(&api)).collect();
    nodes
        .iter()
        .for_each(|node| node.wait_for(|progress| progress.synced && progress.ways == 4));
    all_reach_all(&nodes);
    for round in 0..3 {
        for (mode, name) in [(Mode::Auto, "direct, over veth"), (Mode::Vxlan, "VXLAN")] {
            for node in &nodes {
                node.set(|settings| settings.mode = mode);
            }
            let port = 7100 + round * 2 + u16::from(mode == Mode::Vxlan);
            println!(
                "pod to pod on two nodes, {name}: {:.0} Mbit/s",
                throughput(&nodes, port)
            );
        }
    }
}
