//! What `cargo xtask bench cni` measures: ADD and DEL of bridge, host-local and portmap by several sets of plugins in
//! turn, each on a host of its own (a network namespace), then the way from one pod to another. Prints one JSON object:
//! by measure, by set. Needs root.
//!
//! usage: load ROUNDS PODS NAME=FOLDER…    (the folders hold plugins to execute; ours in process are always measured)

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use linux::namespace::{NamespaceKind, open_own, unshare};
use linux::netlink::{LinkChange, LinkKind, Netlink, NewLink, VethPeer, in_namespace};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Ours, called and not executed.
const IN_PROCESS: &str = "in process";
const MEGABYTES: usize = 512;
const ROUND_TRIPS: u32 = 20_000;

/// A set of plugins and the host that it works on.
struct Set {
    name: String,
    folder: Option<PathBuf>,
    host: OwnedFd,
    leases: PathBuf,
}

/// By measure, by set: all that was measured.
type Figures = BTreeMap<&'static str, BTreeMap<String, Vec<f64>>>;

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: load ROUNDS PODS NAME=FOLDER…";
    let [rounds, pods, folders @ ..] = words.as_slice() else {
        return Err(usage.into());
    };
    let (rounds, pods): (usize, usize) = (rounds.parse()?, pods.parse()?);
    let base = std::env::temp_dir().join(format!("cni-load-{}", std::process::id()));
    let mut sets = vec![Set::new(IN_PROCESS, None, &base)?];
    for word in folders {
        let (name, folder) = word.split_once('=').ok_or(usage)?;
        sets.push(Set::new(name, Some(folder.into()), &base)?);
    }
    let mut figures = Figures::new();
    let measured = measure(&sets, rounds, pods, &mut figures);
    let _ = std::fs::remove_dir_all(&base);
    measured?;
    let medians: BTreeMap<_, BTreeMap<_, f64>> = figures
        .into_iter()
        .map(|(measure, sets)| {
            let sets = sets.into_iter().map(|(set, all)| (set, median(all)));
            (measure, sets.collect())
        })
        .collect();
    println!("{}", json!(medians));
    Ok(())
}

fn measure(sets: &[Set], rounds: usize, pods: usize, figures: &mut Figures) -> Outcome<()> {
    for _ in 0..rounds {
        for set in sets {
            let (add, del) = set.add_and_del(pods)?;
            note(figures, "add", &set.name, add);
            note(figures, "del", &set.name, del);
        }
    }
    for _ in 0..rounds.min(5) {
        for set in sets.iter().filter(|set| set.folder.is_some()) {
            let (one, other) = (new_namespace()?, new_namespace()?);
            set.add("from", &one)?;
            let address = address(&set.add("to", &other)?)?;
            note_way(figures, &set.name, &one, &other, address)?;
            set.del("from", &one)?;
            set.del("to", &other)?;
        }
        let (one, other) = (new_namespace()?, new_namespace()?);
        wire(&one, &other)?;
        note_way(figures, "plain veth", &one, &other, "10.91.0.2".parse()?)?;
    }
    Ok(())
}

fn note(figures: &mut Figures, measure: &'static str, set: &str, all: Vec<f64>) {
    let sets = figures.entry(measure).or_default();
    sets.entry(set.to_owned()).or_default().extend(all);
}

fn note_way(
    figures: &mut Figures,
    name: &str,
    from: &OwnedFd,
    to: &OwnedFd,
    address: IpAddr,
) -> Outcome<()> {
    let (throughput, latency) = way(from, to, address)?;
    note(figures, "throughput", name, vec![throughput]);
    note(figures, "latency", name, vec![latency]);
    Ok(())
}

impl Set {
    fn new(name: &str, folder: Option<PathBuf>, base: &std::path::Path) -> Outcome<Self> {
        let leases = base.join(name);
        std::fs::create_dir_all(&leases)?;
        Ok(Self {
            name: name.to_owned(),
            folder,
            host: new_namespace()?,
            leases,
        })
    }

    /// Milliseconds of each ADD and each DEL of the chain.
    fn add_and_del(&self, pods: usize) -> Outcome<(Vec<f64>, Vec<f64>)> {
        let namespaces: Vec<OwnedFd> = (0..pods)
            .map(|_| new_namespace())
            .collect::<Result<_, _>>()?;
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        in_namespace(&self.host, || -> Outcome<()> {
            for (number, netns) in namespaces.iter().enumerate() {
                let began = Instant::now();
                self.chain_add(&format!("pod{number}"), number, netns)?;
                adds.push(milliseconds(began));
            }
            for (number, netns) in namespaces.iter().enumerate() {
                let began = Instant::now();
                self.chain_del(&format!("pod{number}"), number, netns)?;
                dels.push(milliseconds(began));
            }
            Ok(())
        })??;
        Ok((adds, dels))
    }

    fn add(&self, id: &str, netns: &OwnedFd) -> Outcome<Value> {
        in_namespace(&self.host, || self.chain_add(id, id.len(), netns))?
    }

    fn del(&self, id: &str, netns: &OwnedFd) -> Outcome<()> {
        in_namespace(&self.host, || self.chain_del(id, id.len(), netns))?
    }

    fn chain_add(&self, id: &str, number: usize, netns: &OwnedFd) -> Outcome<Value> {
        let result = self.call("ADD", id, netns, &self.bridge())?;
        self.call("ADD", id, netns, &portmap(number, &result))
    }

    fn chain_del(&self, id: &str, number: usize, netns: &OwnedFd) -> Outcome<()> {
        self.call("DEL", id, netns, &portmap(number, &Value::Null))?;
        self.call("DEL", id, netns, &self.bridge())?;
        Ok(())
    }

    fn bridge(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "load", "type": "bridge", "bridge": "load0",
            "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": self.leases,
                "ranges": [[{ "subnet": "10.90.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })
    }

    fn call(&self, command: &str, id: &str, netns: &OwnedFd, config: &Value) -> Outcome<Value> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        let folder = self.folder.clone().unwrap_or_default();
        let env: BTreeMap<String, String> = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", &path),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", &folder.to_string_lossy()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let plugin = config["type"].as_str().ok_or("no type")?;
        let stdin = config.to_string();
        let (succeeded, stdout) = match &self.folder {
            None => {
                let output = cni_plugins::run(plugin, &env, stdin.as_bytes()).ok_or("no plugin")?;
                (output.code == 0, output.stdout)
            }
            Some(folder) => {
                let mut child = Command::new(folder.join(plugin))
                    .envs(env)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()?;
                let mut input = child.stdin.take().ok_or("no stdin")?;
                input.write_all(stdin.as_bytes())?;
                drop(input);
                let output = child.wait_with_output()?;
                (output.status.success(), output.stdout)
            }
        };
        let text = String::from_utf8_lossy(&stdout);
        if !succeeded {
            return Err(format!("{}: {command} of {plugin}: {text}", self.name).into());
        }
        Ok(serde_json::from_str(&text).unwrap_or_default())
    }
}

fn portmap(number: usize, result: &Value) -> Value {
    let mapping = json!({ "hostPort": 20_000 + number, "containerPort": 80, "protocol": "tcp" });
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "load", "type": "portmap",
        "runtimeConfig": { "portMappings": [mapping] },
    });
    if !result.is_null() {
        config["prevResult"] = result.clone();
    }
    config
}

fn address(result: &Value) -> Outcome<IpAddr> {
    let text = result["ips"][0]["address"].as_str().ok_or("no address")?;
    Ok(text.split('/').next().unwrap_or_default().parse()?)
}

fn new_namespace() -> Outcome<OwnedFd> {
    let make = || -> Outcome<OwnedFd> {
        unshare(&[NamespaceKind::Network])?;
        let mut netlink = Netlink::open()?;
        let lo = netlink.link_by_name("lo")?.ok_or("no lo")?;
        netlink.change_link(lo.index, &up())?;
        Ok(open_own(NamespaceKind::Network)?)
    };
    thread::spawn(make).join().map_err(|_| "a thread failed")?
}

fn up() -> LinkChange<'static> {
    LinkChange {
        up: Some(true),
        ..LinkChange::default()
    }
}

/// Connects two namespaces by a virtual cable alone.
fn wire(one: &OwnedFd, other: &OwnedFd) -> Outcome<()> {
    let configure = |name: &str, address: &str| -> Outcome<()> {
        let mut netlink = Netlink::open()?;
        let index = netlink.link_by_name(name)?.ok_or("no link")?.index;
        netlink.add_address(index, address.parse()?)?;
        Ok(netlink.change_link(index, &up())?)
    };
    in_namespace(one, || -> Outcome<()> {
        let peer = VethPeer {
            name: "far",
            netns: Some(other.as_fd()),
            mac: None,
            mtu: None,
        };
        Netlink::open()?.add_link(&NewLink::new("near", LinkKind::Veth(peer)))?;
        configure("near", "10.91.0.1/24")
    })??;
    in_namespace(other, || configure("far", "10.91.0.2/24"))?
}

/// Gigabits a second of one TCP stream, and the median of round trips in microseconds.
fn way(from: &OwnedFd, to: &OwnedFd, address: IpAddr) -> Outcome<(f64, f64)> {
    let address = SocketAddr::new(address, 5001);
    let listener = in_namespace(to, || TcpListener::bind(address))??;
    let server = thread::spawn(move || -> Outcome<()> {
        let (mut stream, _) = listener.accept()?;
        let mut block = vec![0; 256 << 10];
        let mut left = MEGABYTES << 20;
        while left > 0 {
            left = left.saturating_sub(stream.read(&mut block)?.max(1));
        }
        stream.write_all(&[1])?;
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        for _ in 0..ROUND_TRIPS {
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
        Ok(())
    });
    let mut stream = in_namespace(from, || TcpStream::connect(address))??;
    let (block, mut byte) = (vec![0; 1 << 20], [0]);
    let began = Instant::now();
    for _ in 0..MEGABYTES {
        stream.write_all(&block)?;
    }
    stream.read_exact(&mut byte)?;
    let gigabits = (MEGABYTES << 23) as f64 / 1e9 / began.elapsed().as_secs_f64();
    let mut stream = in_namespace(from, || TcpStream::connect(address))??;
    stream.set_nodelay(true)?;
    let mut trips = Vec::new();
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        trips.push(milliseconds(began) * 1000.0);
    }
    server.join().map_err(|_| "the server failed")??;
    Ok((gigabits, median(trips)))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
