//! The control plane: the API server, and the scheduler and controllers as its clients.

use std::net::IpAddr;

use anyhow::Context;
use controlplane::apiserver::{self, Server};
use controlplane::{controllers, scheduler};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::layout::Layout;

/// A running control plane.
pub struct ControlPlane {
    /// Its API server.
    pub server: Server,
    loops: JoinSet<()>,
    stop: CancellationToken,
}

impl ControlPlane {
    /// Starts it. Nothing is left running if it fails.
    pub async fn start(
        layout: &Layout,
        api: &cli::Api,
        network: &cli::Network,
        advertise: Option<IpAddr>,
        names: Vec<String>,
        kubelet_port: u16,
    ) -> anyhow::Result<Self> {
        let mut config = apiserver::Config::new(layout.root());
        config.listen = vec![api.listen()];
        config.advertise = advertise;
        config.extra_sans = names;
        config.service_cidrs = network.service_cluster_ip_range.clone();
        config.kubelet_port = kubelet_port;
        let server = Server::start(config)
            .await
            .context("start the API server")?;
        let (mut loops, stop) = (JoinSet::new(), CancellationToken::new());
        let controllers = controllers::Config {
            cluster_cidrs: network.cluster_cidr.clone(),
            node_mask_sizes: controllers::MaskSizes {
                ipv4: network.node_cidr_mask_size_ipv4.unwrap_or(24),
                ipv6: network.node_cidr_mask_size_ipv6,
            },
            ca_pem: server.pki().ca().to_owned(),
        };
        let manager = server.client("system:kube-controller-manager", &["system:masters"]);
        loops.spawn(controllers::run(controllers, manager, stop.clone()));
        loops.spawn(scheduler::run(
            server.client("system:kube-scheduler", &["system:masters"]),
            stop.clone(),
        ));
        Ok(Self {
            server,
            loops,
            stop,
        })
    }

    /// Stops it; every write that it acknowledged is in the store.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.loops.join_next().await.is_some() {}
        self.server.shutdown().await;
    }
}
