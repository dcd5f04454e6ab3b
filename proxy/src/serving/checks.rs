//! Each Service with `externalTrafficPolicy: Local` and a load balancer has a port of its own, where the balancer asks
//! whether this node has endpoints of it.

use super::{Reply, reply, serve_address};
use crate::health::{Health, ServiceHealth};
use http::{HeaderValue, StatusCode};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::task::JoinSet;

/// Serves the health checks as they come and go.
pub async fn serve_checks(health: Health) {
    let mut checks = health.checks();
    let mut tasks = JoinSet::new();
    let mut served: BTreeMap<u16, tokio::task::AbortHandle> = BTreeMap::new();
    loop {
        let wanted: Vec<u16> = checks.borrow_and_update().keys().copied().collect();
        served.retain(|port, task| {
            let keep = wanted.contains(port);
            if !keep {
                task.abort();
            }
            keep
        });
        for port in wanted {
            served.entry(port).or_insert_with(|| {
                let health = health.clone();
                let address = SocketAddr::new(any_address(), port);
                tasks.spawn(serve_address(
                    address,
                    "a Service's health check",
                    move |_| {
                        let check = health.checks().borrow().get(&port).cloned();
                        check.map_or_else(not_found, |check| answer(&check, health.is_healthy()))
                    },
                ))
            });
        }
        while tasks.try_join_next().is_some() {}
        if checks.changed().await.is_err() {
            return;
        }
    }
}

/// All addresses; of IPv4 alone on a host without IPv6.
fn any_address() -> IpAddr {
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

fn not_found() -> Reply {
    reply(StatusCode::NOT_FOUND, "text/plain", String::new())
}

/// Upstream's form of the answer (`pkg/proxy/healthcheck/service_health.go`).
fn answer(check: &ServiceHealth, healthy: bool) -> Reply {
    let (namespace, name) = check.service.parts();
    let count = check.local_endpoints;
    let good = healthy && count > 0;
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
         \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    let mut reply = reply(status, "application/json", body);
    reply
        .headers_mut()
        .insert("x-load-balancing-endpoint-weight", HeaderValue::from(count));
    reply
}
