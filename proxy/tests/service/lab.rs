//! A node with pods and a client outside, each in a network namespace of its own that ends with the test.

use linux::namespace::{NamespaceKind, unshare};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Task = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, which runs what it is given.
pub struct Namespace {
    tasks: Sender<Task>,
    pub thread_id: i32,
}

impl Namespace {
    pub fn new() -> Namespace {
        let (tasks, queue) = channel::<Task>();
        let (ready, started) = channel();
        std::thread::spawn(move || {
            unshare(&[NamespaceKind::Network]).expect("a network namespace (needs root)");
            ready
                .send(nix::unistd::gettid().as_raw())
                .expect("test is there");
            for task in queue {
                task();
            }
        });
        let thread_id = started.recv().expect("namespace");
        let namespace = Namespace { tasks, thread_id };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs something in the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let task =
            move || drop(done.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(task))));
        self.tasks.send(Box::new(task)).expect("namespace");
        result
            .recv()
            .expect("a result")
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread in the namespace.
    pub fn spawn(&self, task: impl FnOnce() + Send + 'static) {
        self.run(move || drop(std::thread::spawn(task)));
    }

    pub fn command(&self, line: &str) -> String {
        let line = line.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-c", &line]).output().expect("sh");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {error}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub fn ip(&self, arguments: &str) {
        self.command(&format!("ip {arguments}"));
    }

    /// Connects, and reads what the server says: who it is, and whom it sees.
    pub fn ask(&self, to: SocketAddr) -> Result<Answer, String> {
        self.run(move || ask(to, TIMEOUT))
    }

    /// As [`Namespace::ask`], for many that may be dropped.
    pub fn ask_briefly(&self, to: SocketAddr) -> Result<Answer, String> {
        self.run(move || ask(to, Duration::from_millis(150)))
    }

    /// The same over UDP, from a port that stays the same.
    pub fn ask_udp(&self, to: SocketAddr, from_port: u16) -> Result<Answer, String> {
        self.run(move || {
            let any: IpAddr = if to.is_ipv6() {
                "::".parse()
            } else {
                "0.0.0.0".parse()
            }
            .expect("address");
            let socket = UdpSocket::bind((any, from_port)).map_err(|error| error.to_string())?;
            socket
                .set_read_timeout(Some(TIMEOUT))
                .map_err(|error| error.to_string())?;
            socket.connect(to).map_err(|error| error.to_string())?;
            socket.send(b"?").map_err(|error| error.to_string())?;
            let mut answer = [0; 200];
            let length = socket
                .recv(&mut answer)
                .map_err(|error| error.to_string())?;
            Ok(Answer::parse(&answer[..length]))
        })
    }
}

const TIMEOUT: Duration = Duration::from_millis(700);

fn ask(to: SocketAddr, timeout: Duration) -> Result<Answer, String> {
    let mut stream =
        TcpStream::connect_timeout(&to, timeout).map_err(|error| error.kind().to_string())?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .map_err(|error| error.to_string())?;
    Ok(Answer::parse(&answer))
}

/// Who answered, and whom it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub server: String,
    pub seen: IpAddr,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (server, seen) = text.split_once(' ').expect("an answer");
        Answer {
            server: server.to_owned(),
            seen: seen.trim().parse().expect("address"),
        }
    }
}

/// A pod: it answers on TCP and UDP ports with its name and the address that it sees.
pub struct Pod {
    pub namespace: Namespace,
    pub name: String,
    pub address: IpAddr,
    pub address6: IpAddr,
}

pub const PORT: u16 = 8080;

pub fn serve(namespace: &Namespace, name: &str) {
    let (tcp_name, udp_name) = (name.to_owned(), name.to_owned());
    let listener = namespace.run(|| TcpListener::bind(("::", PORT)).expect("listen"));
    namespace.spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical());
            let _ = peer.map(|peer| write!(stream, "{tcp_name} {peer}"));
        }
    });
    let socket = namespace.run(|| UdpSocket::bind(("::", PORT)).expect("bind"));
    namespace.spawn(move || {
        let mut buffer = [0; 10];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(
                format!("{udp_name} {}", peer.ip().to_canonical()).as_bytes(),
                peer,
            );
        }
    });
}

/// The node: a bridge with pods, and a link to the outside.
pub struct Lab {
    pub node: Namespace,
    pub outside: Namespace,
    pub pods: Vec<Pod>,
}

pub const NODE: [u8; 4] = [192, 0, 2, 1];
pub const NODE6: &str = "2001:db8::1";
pub const OUTSIDE: [u8; 4] = [192, 0, 2, 100];

impl Lab {
    pub fn new(pods: usize) -> Lab {
        let node = Namespace::new();
        let outside = Namespace::new();
        // Without a querier snooping may keep neighbour discovery from a new port.
        node.ip("link add orlop0 type bridge mcast_snooping 0");
        node.ip("addr add 10.244.0.1/24 dev orlop0");
        node.ip("addr add fd00:10:244::1/64 dev orlop0 nodad");
        node.ip("link set orlop0 up");
        node.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}",
            outside.thread_id
        ));
        node.ip("addr add 192.0.2.1/24 dev eth0");
        node.ip("addr add 2001:db8::1/64 dev eth0 nodad");
        node.ip("link set eth0 up");
        outside.ip("addr add 192.0.2.100/24 dev eth0");
        outside.ip("addr add 2001:db8::100/64 dev eth0 nodad");
        outside.ip("link set eth0 up");
        for namespace in [
            (&node, "192.0.2.100", "2001:db8::100"),
            (&outside, "192.0.2.1", "2001:db8::1"),
        ] {
            namespace
                .0
                .ip(&format!("route add default via {}", namespace.1));
            namespace
                .0
                .ip(&format!("-6 route add default via {}", namespace.2));
        }
        let pods: Vec<Pod> = (0..pods).map(|index| Lab::pod(&node, index)).collect();
        // A bridge port passes packets some time after its link is up.
        for pod in &pods {
            for address in [pod.address, pod.address6] {
                let reachable = (0..50).any(|_| node.ask(SocketAddr::new(address, PORT)).is_ok());
                assert!(reachable, "{} at {address}", pod.name);
            }
        }
        Lab {
            node,
            outside,
            pods,
        }
    }

    fn pod(node: &Namespace, index: usize) -> Pod {
        let namespace = Namespace::new();
        let host = 10 + index;
        node.ip(&format!(
            "link add pod{index} type veth peer name eth0 netns {}",
            namespace.thread_id
        ));
        node.ip(&format!("link set pod{index} master orlop0 up"));
        node.command(&format!("echo 1 > /sys/class/net/pod{index}/brport/hairpin_mode || ip link set pod{index} type bridge_slave hairpin on"));
        namespace.ip(&format!("addr add 10.244.0.{host}/24 dev eth0"));
        namespace.ip(&format!("addr add fd00:10:244::{host}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
        namespace.ip("route add default via 10.244.0.1");
        namespace.ip("-6 route add default via fd00:10:244::1");
        let name = format!("pod{index}");
        serve(&namespace, &name);
        let address = IpAddr::from([10, 244, 0, host as u8]);
        let address6 = format!("fd00:10:244::{host}").parse().expect("address");
        Pod {
            namespace,
            name,
            address,
            address6,
        }
    }
}

/// Something of the proxy's that runs in a namespace until it is dropped.
pub struct Running<P, E> {
    progress: watch::Receiver<P>,
    shutdown: CancellationToken,
    ended: Receiver<Result<(), E>>,
}

impl<P: Copy + std::fmt::Debug, E: Send + 'static> Running<P, E> {
    /// Starts it, with a runtime of its own.
    pub fn start<F: Future<Output = Result<(), E>>>(
        namespace: &Namespace,
        progress: watch::Receiver<P>,
        run: impl FnOnce(CancellationToken) -> F + Send + 'static,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let (done, ended) = channel();
        let token = shutdown.clone();
        namespace.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            let _ = done.send(runtime.block_on(async { run(token).await }));
        });
        Self {
            progress,
            shutdown,
            ended,
        }
    }

    pub fn progress(&self) -> P {
        *self.progress.borrow()
    }

    /// Waits for something; a minute is forever.
    pub fn wait_for(&self, holds: impl Fn(&P) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds(&self.progress.borrow()) {
            assert!(
                Instant::now() < deadline,
                "it stays at {:?}",
                self.progress()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn stop(self) -> Result<(), E> {
        self.shutdown.cancel();
        self.ended()
    }

    /// What becomes of it, if it ends of itself.
    pub fn ended(self) -> Result<(), E> {
        self.ended
            .recv_timeout(Duration::from_secs(20))
            .expect("it ends")
    }
}
