//! Routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Result;
use super::conversation::Netlink;
use super::message::{Message, attributes, family, ip, u32_at};

/// Where a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Everything of IPv4 that no other route takes.
    DefaultV4,
    /// Everything of IPv6 that no other route takes.
    DefaultV6,
    /// One network; its host bits are ignored.
    Net(IpNet),
}

impl From<IpNet> for Destination {
    /// A prefix of length 0 is the default route.
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) if net.prefix_len() == 0 => Self::DefaultV4,
            IpNet::V6(net) if net.prefix_len() == 0 => Self::DefaultV6,
            net => Self::Net(net.trunc()),
        }
    }
}

impl Destination {
    /// Whether it is of IPv6.
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::DefaultV4 => false,
            Self::DefaultV6 => true,
            Self::Net(net) => net.addr().is_ipv6(),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultV4 => f.write_str("0.0.0.0/0"),
            Self::DefaultV6 => f.write_str("::/0"),
            Self::Net(net) => net.fmt(f),
        }
    }
}

/// How far the destination is (`RT_SCOPE_*`). Of IPv6 the kernel keeps none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RouteScope {
    /// Behind a gateway.
    #[default]
    Universe,
    /// On the link itself.
    Link,
    /// This host.
    Host,
    /// Another number.
    Other(u8),
}

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// What it is for.
    pub destination: Destination,
    /// The next hop; none for what is on the link.
    pub gateway: Option<IpAddr>,
    /// The interface; the kernel finds it by the gateway if absent.
    pub index: Option<u32>,
    /// The source address that connections from this host get.
    pub source: Option<IpAddr>,
    /// How far.
    pub scope: RouteScope,
    /// Lower is preferred; the kernel's default if absent.
    pub metric: Option<u32>,
    /// `main` (254) if absent.
    pub table: Option<u32>,
    /// Largest packet along this route, in bytes.
    pub mtu: Option<u32>,
    /// Largest TCP segment advertised, in bytes.
    pub advmss: Option<u32>,
    /// The gateway is taken to be on the link, whatever the addresses say.
    pub on_link: bool,
    /// Who made it (`RTPROT_*`); static (4) is what an administrator and a CNI plugin write.
    pub protocol: u8,
}

impl Route {
    /// A route to `destination` by `gateway`.
    pub fn via(destination: impl Into<Destination>, gateway: IpAddr) -> Self {
        Self {
            gateway: Some(gateway),
            ..Self::to(destination)
        }
    }

    /// A route to what is on the link of interface `index`.
    pub fn link(destination: impl Into<Destination>, index: u32) -> Self {
        Self {
            index: Some(index),
            scope: RouteScope::Link,
            ..Self::to(destination)
        }
    }

    fn to(destination: impl Into<Destination>) -> Self {
        Self {
            destination: destination.into(),
            gateway: None,
            index: None,
            source: None,
            scope: RouteScope::Universe,
            metric: None,
            table: None,
            mtu: None,
            advmss: None,
            on_link: false,
            protocol: libc::RTPROT_STATIC,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to {}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(index) = self.index {
            write!(f, " on interface {index}")?;
        }
        match self.table {
            Some(table) => write!(f, " in table {table}"),
            None => Ok(()),
        }
    }
}

impl Netlink {
    /// Adds a route.
    ///
    /// # Errors
    /// EEXIST if there is one to the same destination with the same metric; ENETUNREACH if the gateway is on no link.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.execute(request(libc::RTM_NEWROUTE, flags, route))
            .map_err(|r| r.on("add route", route.to_string()))
    }

    /// Adds a route or puts it in the place of the one to the same destination with the same metric.
    ///
    /// # Errors
    /// As [`Netlink::add_route`], without EEXIST.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.execute(request(libc::RTM_NEWROUTE, flags, route))
            .map_err(|r| r.on("replace route", route.to_string()))
    }

    /// Deletes a route. Does nothing if it is not there.
    ///
    /// # Errors
    /// EPERM.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        match self.execute(request(libc::RTM_DELROUTE, libc::NLM_F_ACK, route)) {
            Err(refusal) if !matches!(refusal.errno, libc::ESRCH | libc::ENODEV) => {
                Err(refusal.on("delete route", route.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The unicast routes of one table (`main` is 254), both families.
    ///
    /// # Errors
    /// ENOBUFS and its like.
    pub fn routes(&mut self, table: u32) -> Result<Vec<Route>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let ask = || {
                let mut header = [0; 12];
                header[0] = family as u8;
                Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &header)
            };
            let wanted = |payload: &[u8]| read(payload).filter(|route| route.table == Some(table));
            let found = self.dump(ask, wanted);
            all.extend(
                found.map_err(|refusal| refusal.on("list routes", format!("of table {table}")))?,
            );
        }
        Ok(all)
    }
}

/// `struct rtmsg`, then attributes.
fn request(kind: u16, flags: i32, route: &Route) -> Message {
    let (family, prefix) = match route.destination {
        Destination::DefaultV4 => (libc::AF_INET as u8, 0),
        Destination::DefaultV6 => (libc::AF_INET6 as u8, 0),
        Destination::Net(net) => (family(net.addr()), net.prefix_len()),
    };
    let table = route.table.unwrap_or(u32::from(libc::RT_TABLE_MAIN));
    let short_table = u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC);
    // A deletion that names a scope or metrics would pass over a route whose own were changed since.
    let deletes = kind == libc::RTM_DELROUTE;
    let scope = match route.scope {
        RouteScope::Universe if deletes => libc::RT_SCOPE_NOWHERE,
        RouteScope::Universe => libc::RT_SCOPE_UNIVERSE,
        RouteScope::Link => libc::RT_SCOPE_LINK,
        RouteScope::Host => libc::RT_SCOPE_HOST,
        RouteScope::Other(number) => number,
    };
    let header = [
        family,
        prefix,
        0,
        0,
        short_table,
        route.protocol,
        scope,
        libc::RTN_UNICAST,
    ];
    let mut fixed = [0; 12];
    fixed[..8].copy_from_slice(&header);
    let on_link = if route.on_link { RTNH_F_ONLINK } else { 0 };
    fixed[8..].copy_from_slice(&on_link.to_ne_bytes());
    let mut message = Message::new(kind, flags, &fixed);
    message.u32(libc::RTA_TABLE, table);
    if let Destination::Net(net) = route.destination {
        message.ip(libc::RTA_DST, net.network());
    }
    if let Some(gateway) = route.gateway {
        message.ip(libc::RTA_GATEWAY, gateway);
    }
    if let Some(source) = route.source {
        message.ip(libc::RTA_PREFSRC, source);
    }
    if let Some(index) = route.index {
        message.u32(libc::RTA_OIF, index);
    }
    if let Some(metric) = route.metric {
        message.u32(libc::RTA_PRIORITY, metric);
    }
    if !deletes && (route.mtu.is_some() || route.advmss.is_some()) {
        message.nested(libc::RTA_METRICS, |metrics| {
            for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
                value.into_iter().for_each(|value| metrics.u32(kind, value));
            }
        });
    }
    message
}

/// `linux/rtnetlink.h`
const RTNH_F_ONLINK: u32 = 4;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

fn read(payload: &[u8]) -> Option<Route> {
    let [family, prefix, _, _, table, protocol, scope, kind] = *payload.first_chunk()?;
    if kind != libc::RTN_UNICAST {
        return None;
    }
    let default = if i32::from(family) == libc::AF_INET {
        Destination::DefaultV4
    } else {
        Destination::DefaultV6
    };
    let mut route = Route::to(default);
    route.protocol = protocol;
    route.table = Some(u32::from(table));
    route.on_link = u32_at(payload, 8)? & RTNH_F_ONLINK != 0;
    route.scope = match scope {
        libc::RT_SCOPE_UNIVERSE => RouteScope::Universe,
        libc::RT_SCOPE_LINK => RouteScope::Link,
        libc::RT_SCOPE_HOST => RouteScope::Host,
        number => RouteScope::Other(number),
    };
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => {
                route.destination = Destination::Net(IpNet::new(ip(value)?, prefix).ok()?)
            }
            libc::RTA_GATEWAY => route.gateway = ip(value),
            libc::RTA_PREFSRC => route.source = ip(value),
            libc::RTA_OIF => route.index = u32_at(value, 0),
            libc::RTA_PRIORITY => route.metric = u32_at(value, 0),
            libc::RTA_TABLE => route.table = u32_at(value, 0),
            libc::RTA_METRICS => {
                for (kind, value) in attributes(value) {
                    match kind {
                        RTAX_MTU => route.mtu = u32_at(value, 0),
                        RTAX_ADVMSS => route.advmss = u32_at(value, 0),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(route)
}
