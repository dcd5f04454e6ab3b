//! `bandwidth`: how fast a container may send and receive.
//!
//! What it receives is shaped on the host's end of its cable. What it sends arrives there too, and is redirected to a
//! device of its own on which sending can be shaped.

use linux::netlink::{Link, LinkChange, LinkKind, Netlink, NewLink, TokenBucket};
use serde::Deserialize;

use crate::protocol::{AttachmentKey, Error, Interface, NetResult, Request, all_of};
use crate::{Plugin, host_end, interface, netns};

pub const PLUGIN: Plugin = Plugin {
    name: "bandwidth",
    add,
    del,
    check,
    gc,
    status: |request| Config::read(request).map(drop),
};

/// Upstream's keys: bits a second, and bits.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Limits {
    ingress_rate: i64,
    ingress_burst: i64,
    egress_rate: i64,
    egress_burst: i64,
}

impl Limits {
    fn is_stated(&self) -> bool {
        let all = [
            self.ingress_rate,
            self.ingress_burst,
            self.egress_rate,
            self.egress_burst,
        ];
        all.iter().any(|limit| *limit != 0)
    }
}

#[derive(Deserialize)]
struct NetConf {
    #[serde(flatten)]
    limits: Limits,
    #[serde(default, rename = "runtimeConfig")]
    runtime: RuntimeConfig,
    #[serde(default, rename = "shapedSubnets")]
    shaped: Vec<String>,
    #[serde(default, rename = "unshapedSubnets")]
    unshaped: Vec<String>,
}

#[derive(Default, Deserialize)]
struct RuntimeConfig {
    bandwidth: Option<Limits>,
}

/// What is to be shaped, in each direction seen from the container.
struct Config {
    receive: Option<TokenBucket>,
    send: Option<TokenBucket>,
}

/// How long a packet may wait.
const LATENCY_MS: u64 = 25;

impl Config {
    fn read(request: &Request) -> Result<Self, Error> {
        let conf: NetConf = request.config()?;
        if !conf.shaped.is_empty() || !conf.unshaped.is_empty() {
            return Err(Error::config(
                "shapedSubnets, unshapedSubnets: not supported",
            ));
        }
        // The configuration's own go first, as upstream has it.
        let limits = match (conf.limits.is_stated(), conf.runtime.bandwidth) {
            (false, Some(limits)) => limits,
            _ => conf.limits,
        };
        Ok(Self {
            receive: bucket("ingress", limits.ingress_rate, limits.ingress_burst)?,
            send: bucket("egress", limits.egress_rate, limits.egress_burst)?,
        })
    }
}

fn bucket(direction: &str, rate: i64, burst: i64) -> Result<Option<TokenBucket>, Error> {
    let refuse = |reason: &str| {
        Err(Error::config(format!(
            "{direction}Rate, {direction}Burst: {reason}"
        )))
    };
    let (Ok(rate), Ok(burst)) = (u64::try_from(rate), u64::try_from(burst)) else {
        return refuse("rate and burst must be a positive integer");
    };
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => refuse("if rate is set, burst must also be set"),
        (0, _) => refuse("if burst is set, rate must also be set"),
        _ => {
            let Ok(burst) = u32::try_from(burst / 8) else {
                return refuse("burst cannot be more than 4GB");
            };
            let rate = (rate / 8).max(1);
            let waiting = u32::try_from(rate.saturating_mul(LATENCY_MS) / 1000).unwrap_or(u32::MAX);
            Ok(Some(TokenBucket {
                rate,
                burst,
                limit: waiting.saturating_add(burst),
            }))
        }
    }
}

fn add(request: &Request) -> Result<NetResult, Error> {
    let config = Config::read(request)?;
    let mut result = request.required_previous()?.clone();
    if config.receive.is_none() && config.send.is_none() {
        return Ok(result);
    }
    let mut host = Netlink::open()?;
    let cable = host_end_of(request, &mut host)?;
    if let Some(send) = &config.send {
        let device = make_device(request, &mut host, &cable)?;
        let shaped = host
            .set_token_bucket(device.index, send)
            .map_err(Error::from);
        let done = shaped.and_then(|()| Ok(host.redirect_received(cable.index, device.index)?));
        if let Err(error) = done {
            return Err(error.and_undo(undo(&mut host, &cable, Some(&device))));
        }
        result.interfaces.push(interface::report(&device, ""));
    }
    if let Some(receive) = &config.receive
        && let Err(cause) = host.set_token_bucket(cable.index, receive)
    {
        let name = device_name(request);
        let device = host.link_by_name(&name)?.filter(|_| config.send.is_some());
        return Err(Error::from(cause).and_undo(undo(&mut host, &cable, device.as_ref())));
    }
    Ok(result)
}

/// Nothing is redirected to a device any more, then the device goes.
fn undo(host: &mut Netlink, cable: &Link, device: Option<&Link>) -> Result<(), Error> {
    let Some(device) = device else {
        return Ok(());
    };
    let restored = host.stop_redirecting(cable.index).map_err(Error::from);
    all_of([
        restored,
        host.delete_link(device.index).map_err(Error::from),
    ])
}

/// The host's end of the container's cable.
fn host_end_of(request: &Request, host: &mut Netlink) -> Result<Link, Error> {
    let name = &request.attachment.ifname;
    let netns = netns::open(request)?;
    let inner = netns::inside(&netns, |inner| interface::find(inner, name))?;
    let no_cable = || {
        Error::failed(format!(
            "shape {name}: not a veth, whose other end is on the host"
        ))
    };
    let index = inner
        .parent
        .filter(|_| inner.is_kind("veth"))
        .ok_or_else(no_cable)?;
    let end = host
        .link_by_index(index)?
        .filter(|link| link.is_kind("veth"))
        .ok_or_else(no_cable)?;
    // The number may be that of another veth here, if the cable leads to another namespace.
    let listed = &request.required_previous()?.interfaces;
    let is_it = |interface: &Interface| interface.sandbox.is_empty() && interface.name == end.name;
    if !listed.iter().any(is_it) {
        return Err(Error::failed(format!(
            "shape {name}: no interface of the host's in prevResult is its other end"
        )));
    }
    Ok(end)
}

fn make_device(request: &Request, host: &mut Netlink, cable: &Link) -> Result<Link, Error> {
    let name = device_name(request);
    let kind = LinkKind::Ifb;
    let link = NewLink {
        mtu: Some(cable.mtu),
        up: true,
        ..NewLink::new(&name, kind)
    };
    let device = interface::make(host, &link)?;
    let alias = host_end::alias(&request.network, &request.attachment);
    match host.change_link(
        device.index,
        &LinkChange {
            alias: Some(&alias),
            ..LinkChange::default()
        },
    ) {
        Ok(()) => Ok(device),
        Err(cause) => {
            Err(Error::from(cause).and_undo(host.delete_link(device.index).map_err(Error::from)))
        }
    }
}

/// `bwp`, as upstream's, and the hash that names the cable too.
fn device_name(request: &Request) -> String {
    host_end::name(&request.network, &request.attachment).replacen("veth", PREFIX, 1)
}

const PREFIX: &str = "bwp";

/// The shaping of what is received goes with the cable.
fn del(request: &Request) -> Result<(), Error> {
    let mut host = Netlink::open()?;
    match host.link_by_name(&device_name(request))? {
        Some(device) => Ok(host.delete_link(device.index)?),
        None => Ok(()),
    }
}

fn check(request: &Request) -> Result<(), Error> {
    let config = Config::read(request)?;
    let mut host = Netlink::open()?;
    let cable = host_end_of(request, &mut host)?;
    let device = device_name(request);
    let wanted = [
        (cable.name.as_str(), config.receive),
        (device.as_str(), config.send),
    ];
    for (name, bucket) in wanted
        .iter()
        .filter_map(|(name, bucket)| Some((name, (*bucket)?)))
    {
        let link = interface::find(&mut host, name)?;
        let seen = host.token_bucket_rate(link.index)?;
        if seen != Some(bucket.rate) {
            return Err(Error::failed(format!(
                "check {name}: {seen:?} bytes/s, expected {}",
                bucket.rate
            )));
        }
    }
    Ok(())
}

fn gc(request: &Request) -> Result<(), Error> {
    let mut host = Netlink::open()?;
    let stale = |owner: AttachmentKey| !request.valid_attachments.contains(&owner);
    let devices = host
        .links()?
        .into_iter()
        .filter(|link| link.name.starts_with(PREFIX) && link.is_kind("ifb"));
    let devices =
        devices.filter(|link| host_end::owner(&request.network, &link.alias).is_some_and(stale));
    all_of(devices.map(|device| host.delete_link(device.index).map_err(Error::from)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Instant;

    use linux::netlink::in_namespace;
    use serde_json::json;

    use crate::lab::{Host, Pod, ips};

    const RATE_BITS: u64 = 8_000_000;
    const BURST_BITS: u64 = 800_000;

    /// Seconds that a transfer from one namespace to another takes.
    fn transfer(
        from: &std::os::fd::OwnedFd,
        to: &std::os::fd::OwnedFd,
        address: SocketAddr,
        bytes: usize,
    ) -> f64 {
        let listener =
            in_namespace(to, || TcpListener::bind(address).expect("bind")).expect("enter");
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("read");
            all.len()
        });
        let mut stream =
            in_namespace(from, || TcpStream::connect(address).expect("connect")).expect("enter");
        let begin = Instant::now();
        stream.write_all(&vec![0; bytes]).expect("write");
        drop(stream);
        assert_eq!(receiver.join().expect("join"), bytes);
        begin.elapsed().as_secs_f64()
    }

    #[test]
    fn both_directions_are_held_to_their_rates() {
        let host = Host::new();
        let pod = Pod::new("a");
        let result = host
            .call("ADD", &pod, &host.bridge_config())
            .expect("bridge");
        let before = host.links();
        let bandwidth = json!({
            "ingressRate": RATE_BITS, "ingressBurst": BURST_BITS, "egressRate": RATE_BITS, "egressBurst": BURST_BITS,
        });
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "bandwidth",
            "runtimeConfig": { "bandwidth": bandwidth },
            "prevResult": result,
        });
        let shaped = host.call("ADD", &pod, &config).expect("add");
        assert_eq!(
            shaped["interfaces"].as_array().expect("interfaces").len(),
            4
        );
        // 600 kB at 1 MB/s, of which 100 kB go at once.
        let own = ips(&shaped)[0];
        let received = transfer(&host.netns, &pod.netns, SocketAddr::new(own, 80), 600_000);
        let sent = transfer(
            &pod.netns,
            &host.netns,
            "10.1.0.1:81".parse().expect("address"),
            600_000,
        );
        assert!(
            (0.3..3.0).contains(&received) && (0.3..3.0).contains(&sent),
            "{received} s, {sent} s"
        );
        config["prevResult"] = shaped;
        host.call("CHECK", &pod, &config).expect("check");
        host.call("DEL", &pod, &config).expect("del");
        host.call("DEL", &pod, &config).expect("del again");
        assert_eq!(host.links(), before);
        host.call("CHECK", &pod, &config).expect_err("gone");
    }

    #[test]
    fn a_rate_without_a_burst_is_refused() {
        let host = Host::new();
        let pod = Pod::new("a");
        let cases = [
            json!({ "ingressRate": 1000 }),
            json!({ "egressBurst": 1000 }),
            json!({ "ingressRate": -1, "ingressBurst": 8 }),
            json!({ "ingressRate": 8, "ingressBurst": 1_u64 << 36 }),
        ];
        for bandwidth in cases {
            let runtime = json!({ "bandwidth": bandwidth });
            let config = json!({ "cniVersion": "1.0.0", "name": "net", "type": "bandwidth", "runtimeConfig": runtime });
            assert_eq!(host.call("ADD", &pod, &config).expect_err("bad")["code"], 7);
        }
    }
}
