//! The node's pod addresses, handed on to the runtime as soon as the cluster assigns them.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::runtime::Cri;

/// Tells the runtime the node's pod CIDRs (CRI UpdateRuntimeConfig) when they are assigned and when they change,
/// until `shutdown`; `look` then finds the network ready.
pub async fn hand_on(
    client: kube::Client,
    node_name: String,
    cri: Cri,
    look: std::sync::Arc<Notify>,
    shutdown: CancellationToken,
) {
    let states = watcher::watch_object(Api::<Node>::all(client), &node_name);
    futures::pin_mut!(states);
    let mut told = String::new();
    loop {
        let state = tokio::select! {
            () = shutdown.cancelled() => return,
            state = states.next() => state,
        };
        // An interrupted watch resumes by itself.
        let node = match state {
            None => return,
            Some(Ok(Some(node))) => node,
            Some(_) => continue,
        };
        let spec = node.spec.unwrap_or_default();
        let cidrs = spec.pod_cidrs.filter(|cidrs| !cidrs.is_empty());
        let pod_cidr = match cidrs {
            Some(cidrs) => cidrs.join(","),
            None => spec.pod_cidr.unwrap_or_default(),
        };
        if pod_cidr.is_empty() || pod_cidr == told {
            continue;
        }
        let network_config = Some(cri_api::v1::NetworkConfig {
            pod_cidr: pod_cidr.clone(),
        });
        let runtime_config = Some(cri_api::v1::RuntimeConfig { network_config });
        let request = cri_api::v1::UpdateRuntimeConfigRequest { runtime_config };
        match cri.update_runtime_config(request).await {
            Ok(_) => told = pod_cidr,
            Err(error) => tracing::warn!(%error, pod_cidr, "tell the runtime the node's pod CIDR"),
        }
        look.notify_one();
    }
}
