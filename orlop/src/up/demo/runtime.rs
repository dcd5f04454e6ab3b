//! What only the runtime can tell of the demo, or do to it.

use std::path::Path;

use anyhow::Context;
use cri_api::v1 as cri;

type Runtime = cri::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>;

/// A client of the CRI server.
pub async fn connect(socket: &Path) -> anyhow::Result<Runtime> {
    let channel = crate::cri_client::connect(socket).await?;
    Ok(cri::runtime_service_client::RuntimeServiceClient::new(
        channel,
    ))
}

/// Kills a container's first process from outside, as an administrator or the kernel might.
pub async fn kill(socket: &Path, container_id: &str) -> anyhow::Result<()> {
    let mut runtime = connect(socket).await?;
    let request = cri::ContainerStatusRequest {
        container_id: container_id.to_owned(),
        verbose: true,
    };
    let info = runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(
        info.get("info")
            .context("the runtime gives no information")?,
    )?;
    let pid = i32::try_from(info["pid"].as_i64().context("the runtime gives no pid")?)?;
    let pid = rustix::process::Pid::from_raw(pid)
        .filter(|pid| pid.as_raw_nonzero().get() > 1)
        .context("the container has no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        .with_context(|| format!("kill process {pid:?}"))
}
