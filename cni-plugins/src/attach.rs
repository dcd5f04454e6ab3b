//! The course that most plugins share: make the container's interface, get addresses for it, configure it.

use std::os::fd::OwnedFd;

use linux::netlink::{Link, LinkChange, MacAddress, Netlink};
use serde::Deserialize;

use crate::protocol::{Error, NetResult, Request};
use crate::{delegate, interface, netns};

/// The hardware address that the runtime or the configuration asks for.
#[derive(Default, Deserialize)]
pub struct MacConf {
    #[serde(default)]
    mac: String,
    #[serde(default)]
    args: MacArgs,
    #[serde(default, rename = "runtimeConfig")]
    runtime: MacRuntime,
}

#[derive(Default, Deserialize)]
struct MacArgs {
    #[serde(default)]
    cni: MacRuntime,
}

#[derive(Default, Deserialize)]
struct MacRuntime {
    #[serde(default)]
    mac: String,
}

impl MacConf {
    /// The runtime's word goes before the configuration's, with `args` and `CNI_ARGS` in between.
    ///
    /// # Errors
    /// Code 7 for what is no hardware address.
    pub fn read(&self, request: &Request) -> Result<Option<MacAddress>, Error> {
        let variable = request.args()?.remove("MAC").unwrap_or_default();
        let stated = [&self.runtime.mac, &self.args.cni.mac, &variable, &self.mac];
        match stated.into_iter().find(|mac| !mac.is_empty()) {
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|reason| Error::config(format!("mac: {reason}"))),
            None => Ok(None),
        }
    }
}

/// ADD of a plugin whose interface `make` creates in the container's namespace. If a later step fails, the interface is
/// deleted and the addresses are given back.
///
/// # Errors
/// `make`'s, the address plugin's, the kernel's.
pub fn add(
    request: &Request,
    make: impl FnOnce(&mut Netlink, &OwnedFd) -> Result<(), Error>,
) -> Result<NetResult, Error> {
    let delete = |netns: &OwnedFd| {
        netns::inside(netns, |inner| {
            interface::retire(inner, &request.attachment.ifname, true)
        })
    };
    add_moved(request, make, delete)
}

/// The same for an interface that is not to be deleted but undone by `undo`.
///
/// # Errors
/// As [`add`].
pub fn add_moved(
    request: &Request,
    make: impl FnOnce(&mut Netlink, &OwnedFd) -> Result<(), Error>,
    undo: impl FnOnce(&OwnedFd) -> Result<(), Error>,
) -> Result<NetResult, Error> {
    let netns = netns::open(request)?;
    make(&mut Netlink::open()?, &netns)?;
    configure(request, &netns).map_err(|error| error.and_undo(undo(&netns)))
}

/// Gives the container's interface its addresses, if the configuration has an address plugin, and reports it.
fn configure(request: &Request, netns: &OwnedFd) -> Result<NetResult, Error> {
    let name = &request.attachment.ifname;
    if delegate::ipam_type(request).is_none() {
        let link = netns::inside(netns, |inner| {
            let link = interface::find(inner, name)?;
            inner.change_link(
                link.index,
                &LinkChange {
                    up: Some(true),
                    ..LinkChange::default()
                },
            )?;
            interface::find(inner, name)
        })?;
        return Ok(describe(request, &link, NetResult::default()));
    }
    let mut addresses = delegate::ipam_add(request)?;
    addresses
        .ips
        .iter_mut()
        .for_each(|ip| ip.interface = Some(0));
    let done = if addresses.ips.is_empty() {
        Err(Error::failed("IPAM plugin returned missing IP config"))
    } else {
        netns::inside(netns, |inner| {
            interface::configure(inner, name, &addresses, false)?;
            interface::find(inner, name)
        })
    };
    match done {
        Ok(link) => Ok(describe(request, &link, addresses)),
        Err(error) => Err(error.and_undo(delegate::ipam_del(request))),
    }
}

fn describe(request: &Request, link: &Link, addresses: NetResult) -> NetResult {
    NetResult {
        interfaces: vec![interface::report(link, request.netns_path())],
        dns: request.dns().unwrap_or(addresses.dns),
        ips: addresses.ips,
        routes: addresses.routes,
    }
}

/// DEL: the interface is deleted and its addresses are given back.
///
/// # Errors
/// The kernel's, the address plugin's.
pub fn del(request: &Request) -> Result<(), Error> {
    let netns = netns::open_if_there(request)?;
    delegate::ipam_del_and(request, || match netns {
        Some(netns) => netns::inside(&netns, |inner| {
            interface::retire(inner, &request.attachment.ifname, !request.netns_ends())
        }),
        None => Ok(()),
    })
}

/// CHECK: addresses, routes and hardware address are as the result says; `examine` looks at the rest.
///
/// # Errors
/// Code 999 naming the first difference.
pub fn check(
    request: &Request,
    examine: impl FnOnce(&Link) -> Result<(), Error>,
) -> Result<(), Error> {
    delegate::ipam_pass_on(request, "CHECK")?;
    let result = request.required_previous()?;
    let name = &request.attachment.ifname;
    let Some((_, expected)) = result.container_interface(name) else {
        return Err(Error::failed(format!("check {name}: not in prevResult")));
    };
    let netns = netns::open(request)?;
    let link = netns::inside(&netns, |inner| interface::verify(inner, name, result))?;
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !expected.mac.is_empty() && !expected.mac.eq_ignore_ascii_case(&mac) {
        return Err(Error::failed(format!(
            "check {name}: hardware address {mac}, expected {}",
            expected.mac
        )));
    }
    examine(&link)
}

/// CHECK of a plugin whose interface is of a certain kind.
///
/// # Errors
/// As [`check`].
pub fn check_kind(request: &Request, kind: &str) -> Result<(), Error> {
    check(request, |link| {
        let name = &link.name;
        if link.is_kind(kind) {
            Ok(())
        } else {
            Err(Error::failed(format!("check {name}: not of kind {kind}")))
        }
    })
}

/// GC and STATUS of a plugin that holds nothing itself.
///
/// # Errors
/// The address plugin's.
pub fn gc(request: &Request) -> Result<(), Error> {
    delegate::ipam_pass_on(request, "GC")
}

/// As [`gc`].
///
/// # Errors
/// The address plugin's.
pub fn status(request: &Request) -> Result<(), Error> {
    delegate::ipam_pass_on(request, "STATUS")
}

/// The interface `name`, or the one of the default route if it is empty.
///
/// # Errors
/// Code 7 if there is none.
pub fn parent(netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
    if !name.is_empty() {
        let missing = || {
            Error::config(format!(
                "master: failed to lookup master {name:?}: no such interface"
            ))
        };
        return netlink.link_by_name(name)?.ok_or_else(missing);
    }
    const MAIN_TABLE: u32 = 254;
    let routes = netlink.routes(MAIN_TABLE)?;
    let default = routes
        .iter()
        .find(|route| route.destination == linux::netlink::Destination::DefaultV4);
    let index = default.or(routes
        .iter()
        .find(|r| r.destination == linux::netlink::Destination::DefaultV6));
    let index = index.and_then(|route| route.index);
    let index =
        index.ok_or_else(|| Error::config("master: not given, and there is no default route"))?;
    netlink
        .link_by_index(index)?
        .ok_or_else(|| Error::config("master: the default route's interface is gone"))
}

/// The MTU that is asked for, which can't be larger than the parent's.
///
/// # Errors
/// Code 7.
pub fn mtu(wanted: u32, parent: &Link) -> Result<Option<u32>, Error> {
    if wanted > parent.mtu {
        let reason = format!(
            "mtu: invalid MTU {wanted}, must be [0, master MTU({})]",
            parent.mtu
        );
        return Err(Error::config(reason));
    }
    Ok(Some(wanted).filter(|mtu| *mtu != 0))
}
