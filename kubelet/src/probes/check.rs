//! One probe, done once.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::http;
use crate::pod::PodExt;
use crate::runtime::Cri;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Success,
    /// Not as it should be: why.
    Failure(String),
    /// Nobody listens, so that nobody was asked.
    Refused(String),
}

/// The most that a message quotes of a command's output.
const QUOTED: usize = 10 * 1024;

pub async fn check(
    cri: &Cri,
    pod: &Pod,
    container: &str,
    container_id: &str,
    pod_ip: Option<IpAddr>,
    probe: &Probe,
    timeout: Duration,
) -> Outcome {
    if let Some(action) = &probe.exec {
        return exec(
            cri,
            container_id,
            action.command.as_deref().unwrap_or(&[]),
            timeout,
        )
        .await;
    }
    let spec = pod.container(container);
    let address = |host: Option<&str>| match host.filter(|h| !h.is_empty()) {
        Some(host) => Some(host.to_owned()),
        None => pod_ip.map(|ip| ip.to_string()),
    };
    if let Some(action) = &probe.http_get {
        let Some(port) = resolve_port(&action.port, spec) else {
            return Outcome::Failure(format!("invalid port: {:?}", action.port));
        };
        let Some(host) = address(action.host.as_deref()) else {
            return Outcome::Refused("the pod has no address".into());
        };
        return match tokio::time::timeout(
            timeout,
            http::get(action, &host, port, "kube-probe/1.36"),
        )
        .await
        {
            Err(_) => Outcome::Failure(format!(
                "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                http::url(action, &host, port)
            )),
            Ok(Err(error)) if error.refused => Outcome::Refused(error.message),
            Ok(Err(error)) => Outcome::Failure(error.message),
            Ok(Ok(status)) if (200..400).contains(&status) => Outcome::Success,
            Ok(Ok(status)) => {
                Outcome::Failure(format!("HTTP probe failed with statuscode: {status}"))
            }
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let Some(port) = resolve_port(&action.port, spec) else {
            return Outcome::Failure(format!("invalid port: {:?}", action.port));
        };
        let Some(host) = address(action.host.as_deref()) else {
            return Outcome::Refused("the pod has no address".into());
        };
        return tcp(&host, port, timeout).await;
    }
    if let Some(action) = &probe.grpc {
        let Some(host) = address(None) else {
            return Outcome::Refused("the pod has no address".into());
        };
        let port = u16::try_from(action.port).unwrap_or(0);
        return http::grpc_health(
            &host,
            port,
            action.service.as_deref().unwrap_or_default(),
            timeout,
        )
        .await;
    }
    Outcome::Success
}

async fn exec(cri: &Cri, id: &str, command: &[String], timeout: Duration) -> Outcome {
    match cri.exec_sync(id, command, timeout).await {
        Ok(reply) if reply.exit_code == 0 => Outcome::Success,
        Ok(reply) => {
            let mut output = reply.stdout;
            output.extend_from_slice(&reply.stderr);
            output.truncate(QUOTED);
            Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(error) if error.status.code() == tonic::Code::DeadlineExceeded => Outcome::Failure(
            format!("command timed out: {command:?} timed out after {timeout:?}"),
        ),
        Err(error) => Outcome::Failure(error.message().to_owned()),
    }
}

async fn tcp(host: &str, port: u16, timeout: Duration) -> Outcome {
    let target = format!("dial tcp {}", http::host_port(host, port));
    match tokio::time::timeout(timeout, tokio::net::TcpStream::connect((host, port))).await {
        Err(_) => Outcome::Failure(format!("{target}: i/o timeout")),
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Outcome::Refused(format!("{target}: connect: connection refused"))
        }
        Ok(Err(error)) => Outcome::Failure(format!("{target}: {error}")),
    }
}

/// A port by number, or by the name that the container gives it.
pub fn resolve_port(
    port: &IntOrString,
    container: Option<&k8s_openapi::api::core::v1::Container>,
) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|n| *n > 0),
        IntOrString::String(name) => {
            let ports = container?.ports.iter().flatten();
            let named = { ports }
                .find(|p| p.name.as_deref() == Some(name))
                .map(|p| p.container_port);
            let number = named.or_else(|| name.parse().ok())?;
            u16::try_from(number).ok().filter(|n| *n > 0)
        }
    }
}
