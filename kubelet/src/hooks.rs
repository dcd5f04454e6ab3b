//! postStart and preStop (`lifecycle`): exec, http, sleep.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::probes::{http, resolve_port};
use crate::runtime::Cri;

/// Runs a hook to its end; the error is for people.
pub async fn run(
    cri: &Cri,
    handler: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    pod_ip: Option<IpAddr>,
) -> Result<(), String> {
    if let Some(action) = &handler.exec {
        let command = action.command.as_deref().unwrap_or(&[]);
        let reply = cri.exec_sync(container_id, command, Duration::ZERO).await;
        return match reply {
            Ok(reply) if reply.exit_code == 0 => Ok(()),
            Ok(reply) => Err(format!(
                "Exec lifecycle hook ({}) for Container {:?} failed - error: command exited with {}, message: {:?}",
                command.join(" "),
                container.name,
                reply.exit_code,
                String::from_utf8_lossy(&[reply.stdout, reply.stderr].concat()),
            )),
            Err(error) => Err(error.message().to_owned()),
        };
    }
    if let Some(action) = &handler.http_get {
        let port = resolve_port(&action.port, Some(container)).ok_or("invalid port")?;
        let host = action
            .host
            .clone()
            .filter(|h| !h.is_empty())
            .or_else(|| pod_ip.map(|ip| ip.to_string()));
        let host = host.ok_or("the pod has no address")?;
        // Any reply will do: the request was the hook.
        return http::get(action, &host, port, "kube-lifecycle/1.36")
            .await
            .map(drop)
            .map_err(|error| error.message);
    }
    if let Some(action) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(action.seconds.max(0).unsigned_abs())).await;
    }
    Ok(())
}
