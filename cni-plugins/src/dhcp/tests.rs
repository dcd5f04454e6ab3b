//! The plugin, a daemon, and a server that does as the test wants.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use linux::netlink::{LinkKind, Netlink, NewLink};
use serde_json::{Value, json};

use super::daemon::{Config, Daemon};
use super::message::{CLIENT_PORT, Kind, Message, SERVER_PORT, option};
use crate::lab::{Host, Pod, ips};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const GIVEN: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 77);
/// All stations of the server's network.
const EVERYBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 255);
/// Longer than any wait of these tests; only a failure takes as long.
const LONG: Duration = Duration::from_secs(30);

/// A message that the server saw.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: Kind,
    /// The client has the address.
    has_address: bool,
    was_broadcast: bool,
    host_name: Option<String>,
}

/// How a server answers a client that has its address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Renews,
    /// Answers only what everybody hears.
    IgnoresUnicast,
    Refuses,
    IsSilent,
}

/// Makes the host's bridge with a server on it.
fn serve(host: &Host, manner: Manner) -> Receiver<Seen> {
    let (sender, seen) = mpsc::channel();
    let sockets = host.inside(|| {
        let mut netlink = Netlink::open().expect("netlink");
        let kind = LinkKind::Bridge {
            vlan_filtering: false,
            no_default_vlan: false,
        };
        let bridge = NewLink {
            up: true,
            ..NewLink::new("br0", kind)
        };
        netlink.add_link(&bridge).expect("bridge");
        let index = netlink
            .link_by_name("br0")
            .expect("get")
            .expect("br0")
            .index;
        netlink
            .add_address(index, "10.1.0.1/24".parse().expect("net"))
            .expect("address");
        // One hears what is sent to the server, the other what is sent to all.
        [SERVER, Ipv4Addr::BROADCAST].map(|ip| {
            let socket = UdpSocket::bind((ip, SERVER_PORT)).expect("bind");
            socket.set_broadcast(true).expect("broadcast");
            socket
        })
    });
    for (socket, is_broadcast) in sockets.into_iter().zip([false, true]) {
        let sender = sender.clone();
        std::thread::spawn(move || answer_all(&socket, is_broadcast, manner, &sender));
    }
    seen
}

fn answer_all(socket: &UdpSocket, was_broadcast: bool, manner: Manner, sender: &Sender<Seen>) {
    let mut buffer = [0; 2048];
    while let Ok((length, _)) = socket.recv_from(&mut buffer) {
        let message = Message::decode(&buffer[..length]).expect("a client's message");
        let seen = Seen {
            kind: message.kind().expect("kind"),
            has_address: !message.client.is_unspecified(),
            was_broadcast,
            host_name: message.text(option::HOST_NAME),
        };
        let kind = match (seen.kind, manner) {
            (Kind::Discover, _) => Some(Kind::Offer),
            (Kind::Request, Manner::Refuses) if seen.has_address => Some(Kind::Nak),
            (Kind::Request, Manner::IsSilent) if seen.has_address => None,
            (Kind::Request, Manner::IgnoresUnicast) if !was_broadcast => None,
            (Kind::Request, _) => Some(Kind::Ack),
            _ => None,
        };
        let to = if was_broadcast { EVERYBODY } else { GIVEN };
        if let Some(kind) = kind {
            let _ = socket.send_to(&reply(&message, kind).encode(), (to, CLIENT_PORT));
        }
        if sender.send(seen).is_err() {
            return;
        }
    }
}

/// For 4 seconds, to be renewed after one and rebound after 2.
fn reply(message: &Message, kind: Kind) -> Message {
    let seconds = |number: u32| number.to_be_bytes().to_vec();
    Message {
        is_reply: true,
        yours: GIVEN,
        options: BTreeMap::from([
            (option::MESSAGE_TYPE, vec![kind as u8]),
            (option::SUBNET_MASK, vec![255, 255, 255, 0]),
            (option::ROUTERS, SERVER.octets().to_vec()),
            (option::SERVER, SERVER.octets().to_vec()),
            (option::NAME_SERVERS, vec![10, 1, 0, 53]),
            (option::LEASE_TIME, seconds(4)),
            (option::RENEWAL_TIME, seconds(1)),
            (option::REBINDING_TIME, seconds(2)),
        ]),
        ..message.clone()
    }
}

fn start(host: &Host) -> (Daemon, Value) {
    let socket = host.dir.path().join("dhcp.sock");
    let config = Config {
        socket: socket.clone(),
        resend_timeout: Duration::from_secs(3),
        ..Config::default()
    };
    let daemon = Daemon::start(config).expect("start");
    let mut config = host.bridge_config();
    config["isGateway"] = json!(false);
    config["ipMasq"] = json!(false);
    config["ipam"] = json!({
        "type": "dhcp",
        "daemonSocketPath": socket,
        "provide": [{ "option": "host-name", "value": "pod-a" }],
    });
    (daemon, config)
}

/// The first message that is `wanted`.
fn wait_for(seen: &Receiver<Seen>, wanted: impl Fn(&Seen) -> bool) -> Seen {
    loop {
        let next = seen.recv_timeout(LONG).expect("the message in time");
        if wanted(&next) {
            return next;
        }
    }
}

fn is_request(seen: &Seen) -> bool {
    seen.kind == Kind::Request && seen.has_address
}

#[test]
fn a_lease_is_got_renewed_and_released() {
    let host = Host::new();
    let seen = serve(&host, Manner::Renews);
    let (daemon, mut config) = start(&host);
    let pod = Pod::new("a");
    let result = host.call("ADD", &pod, &config).expect("add");
    assert_eq!(ips(&result), [GIVEN]);
    assert_eq!(
        result["routes"],
        json!([{ "dst": "0.0.0.0/0", "gw": "10.1.0.1" }])
    );
    assert_eq!(result["dns"]["nameservers"], json!(["10.1.0.53"]));
    let first = wait_for(&seen, |_| true);
    assert_eq!(
        (first.kind, first.host_name.as_deref()),
        (Kind::Discover, Some("pod-a"))
    );
    for _ in 0..2 {
        assert!(
            !wait_for(&seen, is_request).was_broadcast,
            "renewed by its server"
        );
    }
    config["prevResult"] = result;
    host.call("CHECK", &pod, &config).expect("check");

    // Another daemon goes on with it.
    drop(daemon);
    let (_daemon, _) = start(&host);
    while seen.try_recv().is_ok() {}
    wait_for(&seen, is_request);
    host.call("CHECK", &pod, &config).expect("check");
    host.call("DEL", &pod, &config).expect("del");
    let release = wait_for(&seen, |seen| seen.kind == Kind::Release);
    assert!(release.has_address && !release.was_broadcast);
    host.call("DEL", &pod, &config).expect("del again");
    host.call("CHECK", &pod, &config).expect_err("released");
    assert_eq!(leases(&host), 0);
}

/// How many a daemon would take up.
fn leases(host: &Host) -> usize {
    std::fs::read_dir(host.dir.path().join("dhcp.leases")).map_or(0, Iterator::count)
}

#[test]
fn a_server_that_does_not_answer_is_replaced_by_any_that_does() {
    let host = Host::new();
    let seen = serve(&host, Manner::IgnoresUnicast);
    let (_daemon, config) = start(&host);
    let pod = Pod::new("a");
    host.call("ADD", &pod, &config).expect("add");
    wait_for(&seen, |seen| is_request(seen) && !seen.was_broadcast);
    wait_for(&seen, |seen| is_request(seen) && seen.was_broadcast);
    // It was granted: the next one goes to the server again.
    wait_for(&seen, |seen| is_request(seen) && !seen.was_broadcast);
    assert!(is_up(&pod));
}

fn is_up(pod: &Pod) -> bool {
    let link = pod.inside(|| Netlink::open().expect("netlink").link_by_name("eth0"));
    link.expect("get").expect("eth0").is_up()
}

fn wait_until_down(pod: &Pod) {
    let begin = std::time::Instant::now();
    while is_up(pod) {
        assert!(begin.elapsed() < LONG, "still up");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_interface_whose_lease_is_refused_or_ends_is_taken_down() {
    for manner in [Manner::Refuses, Manner::IsSilent] {
        let host = Host::new();
        let _seen = serve(&host, manner);
        let (_daemon, config) = start(&host);
        let pod = Pod::new("a");
        host.call("ADD", &pod, &config).expect("add");
        assert!(is_up(&pod));
        wait_until_down(&pod);
        host.call("DEL", &pod, &config).expect("del");
    }
}

#[test]
fn without_a_server_an_add_leaves_nothing_and_may_be_tried_again() {
    let host = Host::new();
    let (_daemon, config) = start(&host);
    let pod = Pod::new("a");
    let error = host.call("ADD", &pod, &config).expect_err("no server");
    assert_eq!(
        (&error["code"], &error["msg"]),
        (
            &json!(11),
            &json!("get an address for eth0 of a: no DHCP server gave an address within 3 s")
        )
    );
    assert_eq!(host.links(), ["lo", "br0"]);
    assert_eq!(leases(&host), 0);
}

#[test]
fn gc_releases_what_belongs_to_nobody() {
    let host = Host::new();
    let seen = serve(&host, Manner::Renews);
    let (_daemon, mut config) = start(&host);
    let pod = Pod::new("a");
    host.call("ADD", &pod, &config).expect("add");
    config["type"] = json!("dhcp");
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "a", "ifname": "eth0" }]);
    host.call_without_netns("GC", "", &config).expect("gc");
    assert_eq!(leases(&host), 1);
    config["cni.dev/valid-attachments"] = json!([]);
    host.call_without_netns("GC", "", &config).expect("gc");
    wait_for(&seen, |seen| seen.kind == Kind::Release);
    assert_eq!(leases(&host), 0);
}

#[test]
fn without_a_daemon_an_add_says_so_and_a_del_forgets_the_lease() {
    let host = Host::new();
    let _seen = serve(&host, Manner::Renews);
    let (daemon, config) = start(&host);
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    host.call("ADD", &a, &config).expect("add");
    let second = Config {
        socket: host.dir.path().join("dhcp.sock"),
        ..Config::default()
    };
    let error = Daemon::start(second).err().expect("one is there");
    assert!(error.to_string().ends_with("another daemon listens there"));
    drop(daemon);
    let error = host.call("ADD", &b, &config).expect_err("no daemon");
    let message = error["msg"].as_str().expect("msg");
    assert!(message.contains("orlop cni dhcp-daemon"), "{message}");
    let error = host
        .call_without_netns("STATUS", "", &config)
        .expect_err("no daemon");
    assert_eq!(error["code"], 50);
    host.call("DEL", &a, &config).expect("del");
    assert_eq!(leases(&host), 0);
}

#[test]
fn a_bad_configuration_is_refused_by_key() {
    let host = Host::new();
    let (_daemon, good) = start(&host);
    let pod = Pod::new("a");
    let cases = [
        (
            "daemonSocketPath",
            json!("run/dhcp.sock"),
            "ipam.daemonSocketPath",
        ),
        (
            "provide",
            json!([{ "option": "nonsense" }]),
            "ipam.provide[0]",
        ),
        ("provide", json!([{ "value": "x" }]), "ipam.provide[0]"),
        ("request", json!([{ "option": "256" }]), "ipam.request[0]"),
        ("priority", json!(-1), "ipam.priority"),
    ];
    for (key, value, named) in cases {
        let mut config = good.clone();
        config["ipam"][key] = value;
        let error = host.call("ADD", &pod, &config).expect_err(named);
        let message = error["msg"].as_str().expect("msg");
        assert!(message.contains(named), "{message}");
        assert_eq!(host.links(), ["lo", "br0"]);
    }
}
