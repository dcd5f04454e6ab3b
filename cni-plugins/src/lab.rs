//! A host and its pods, in network namespaces that end with the test.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use linux::namespace::{NamespaceKind, open_own, unshare};
use linux::netlink::{LinkChange, LinkKind, Netlink, NewLink, VethPeer, in_namespace};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host: plugins called on it see its namespace as the host's.
pub struct Host {
    pub netns: OwnedFd,
    /// For leases.
    pub dir: TempDir,
}

/// A container's namespace.
pub struct Pod {
    pub id: String,
    pub netns: OwnedFd,
}

impl Host {
    pub fn new() -> Self {
        let host = Self {
            netns: new_namespace(),
            dir: tempfile::tempdir().expect("tempdir"),
        };
        host.inside(|| {
            let mut netlink = Netlink::open().expect("netlink");
            let lo = netlink.link_by_name("lo").expect("get").expect("lo").index;
            netlink
                .change_link(
                    lo,
                    &LinkChange {
                        up: Some(true),
                        ..LinkChange::default()
                    },
                )
                .expect("lo up");
        });
        host
    }

    /// Runs `work` as the host.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(&self.netns, work).expect("enter host")
    }

    /// A configuration of `bridge` with `host-local` for both families.
    pub fn bridge_config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "bridge",
            "bridge": "br0",
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": self.dir.path(),
                "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        })
    }

    /// Calls a plugin for a pod; its result or its error.
    pub fn call(&self, command: &str, pod: &Pod, config: &Value) -> Result<Value, Value> {
        self.call_with(
            command,
            &[("CNI_CONTAINERID", &pod.id), ("CNI_NETNS", &pod.path())],
            config,
        )
    }

    /// Calls a plugin for a pod whose namespace ends right after.
    pub fn call_ending(&self, command: &str, pod: &Pod, config: &Value) -> Result<Value, Value> {
        let path = pod.path();
        self.call_with(
            command,
            &[
                ("CNI_CONTAINERID", &pod.id),
                ("CNI_NETNS", &path),
                (crate::NETNS_ENDS, "1"),
            ],
            config,
        )
    }

    /// Calls a plugin for a pod whose namespace is gone.
    pub fn call_without_netns(
        &self,
        command: &str,
        id: &str,
        config: &Value,
    ) -> Result<Value, Value> {
        self.call_with(command, &[("CNI_CONTAINERID", id)], config)
    }

    fn call_with(
        &self,
        command: &str,
        more: &[(&str, &str)],
        config: &Value,
    ) -> Result<Value, Value> {
        let env = environment(command, more);
        let name = config["type"].as_str().expect("type");
        let stdin = config.to_string();
        let output = self
            .inside(|| crate::run(name, &env, stdin.as_bytes()))
            .expect("plugin");
        let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.code == 0 {
            Ok(value)
        } else {
            Err(value)
        }
    }

    /// The variables of a call for a pod.
    pub fn env(&self, command: &str, pod: &Pod) -> BTreeMap<String, String> {
        let path = pod.path();
        environment(
            command,
            &[("CNI_CONTAINERID", &pod.id), ("CNI_NETNS", &path)],
        )
    }

    /// The names of the host's interfaces.
    pub fn links(&self) -> Vec<String> {
        self.inside(|| Netlink::open().expect("netlink").links().expect("links"))
            .into_iter()
            .map(|l| l.name)
            .collect()
    }

    /// The addresses that are leased, sorted.
    pub fn leases(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("net")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("name")
        });
        let mut ips: Vec<String> = names
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect();
        ips.sort();
        ips
    }
}

fn environment(command: &str, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let standard = [
        ("CNI_COMMAND", command),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/usr/lib/cni"),
    ];
    let env = standard.iter().chain(more);
    env.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

impl Pod {
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            netns: new_namespace(),
        }
    }

    /// A path that leads to the namespace as long as this lives.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.netns.as_raw_fd())
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(&self.netns, work).expect("enter pod")
    }
}

/// The addresses of a result.
pub fn ips(result: &Value) -> Vec<IpAddr> {
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    result["ips"]
        .as_array()
        .expect("ips")
        .iter()
        .map(|ip| address(ip).expect("address"))
        .collect()
}

/// Makes a TCP connection from one namespace to a listener at `address` in another; the address that the listener sees,
/// or `None`.
pub fn connect(from: &OwnedFd, to: &OwnedFd, address: SocketAddr) -> Option<IpAddr> {
    connect_by(from, to, address.port(), address)
}

/// The same with a listener on `port`, reached by an address that is translated on the way.
pub fn connect_by(from: &OwnedFd, to: &OwnedFd, port: u16, address: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0u16; 8].into()
    };
    let listener =
        in_namespace(to, || TcpListener::bind((any, port)).expect("bind")).expect("enter");
    let waiting = listener.try_clone().expect("clone");
    let seen = thread::spawn(move || {
        let (mut stream, peer) = waiting.accept().ok()?;
        stream.write_all(b"hello").ok()?;
        Some(peer.ip())
    });
    let reached = reach(from, address);
    // Ends the wait of a listener that nobody reached.
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).expect("shutdown");
    reached.then(|| seen.join().expect("join")).flatten()
}

/// Whether a greeting comes from `address`.
pub fn reach(from: &OwnedFd, address: SocketAddr) -> bool {
    let greet = || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).ok()
    };
    in_namespace(from, greet).expect("enter").is_some()
}

pub fn new_namespace() -> OwnedFd {
    let make = || {
        unshare(&[NamespaceKind::Network]).expect("these tests need root");
        open_own(NamespaceKind::Network).expect("open own namespace")
    };
    thread::spawn(make).join().expect("join")
}

/// A link from the host to a namespace outside.
pub fn wire_to_world(host: &Host, world: &OwnedFd) {
    let configure = |name: &str, addresses: [&str; 2]| {
        let mut netlink = Netlink::open().expect("netlink");
        let index = netlink
            .link_by_name(name)
            .expect("get")
            .expect("link")
            .index;
        for address in addresses {
            netlink
                .add_address(index, address.parse().expect("net"))
                .expect("address");
        }
        let up = LinkChange {
            up: Some(true),
            ..Default::default()
        };
        netlink.change_link(index, &up).expect("up");
    };
    host.inside(|| {
        let peer = VethPeer {
            name: "up0",
            netns: Some(world.as_fd()),
            mac: None,
            mtu: None,
        };
        let link = NewLink::new("out0", LinkKind::Veth(peer));
        Netlink::open()
            .expect("netlink")
            .add_link(&link)
            .expect("wire");
        configure("out0", ["192.0.2.1/24", "2001:db8::1/64"]);
    });
    in_namespace(world, || {
        configure("up0", ["192.0.2.2/24", "2001:db8::2/64"])
    })
    .expect("enter world");
}
