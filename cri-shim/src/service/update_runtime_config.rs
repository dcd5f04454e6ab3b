//! UpdateRuntimeConfig: the kubelet tells which addresses the node's pods have.

use std::path::Path;

use cri_api::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};
use ipnet::IpNet;

use super::error::Error;
use crate::cni::{DEFAULT_CONFLIST, default_conflist};
use crate::runtime::Runtime;

impl Runtime {
    /// Writes the default pod network for these CIDRs, unless the folder has a configuration whose name sorts before
    /// its: a network that somebody chose knows its addresses.
    ///
    /// # Errors
    /// When a CIDR is not one, or the file can't be written.
    pub fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse, Error> {
        let network = request
            .runtime_config
            .and_then(|config| config.network_config);
        let pod_cidr = network.map(|network| network.pod_cidr).unwrap_or_default();
        if pod_cidr.is_empty() {
            return Ok(UpdateRuntimeConfigResponse {});
        }
        let mut cidrs = Vec::new();
        for text in pod_cidr.split(',') {
            let cidr: Result<IpNet, _> = text.trim().parse();
            cidrs.push(
                cidr.map_err(|_| Error::Invalid(format!("pod_cidr: {text:?} is not a CIDR")))?,
            );
        }
        let ours = self.config.cni_conf_dir.join(DEFAULT_CONFLIST);
        // What sorts before it is somebody's choice for the node's pods; what sorts after it is often that of another
        // program that only shares the folder (podman's `87-podman-bridge.conflist`).
        if self
            .network
            .conflist_path()?
            .is_none_or(|first| first >= ours)
        {
            let text = default_conflist(&cidrs, &self.config.cni_data_dir);
            write_whole(&ours, &text).map_err(|source| Error::Io {
                what: format!("write {}", ours.display()),
                source,
            })?;
        }
        Ok(UpdateRuntimeConfigResponse {})
    }
}

/// A reader sees the old file or the new one, never a part.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // The plugins' loaders take files by their ending: a name that has another is not read.
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}
