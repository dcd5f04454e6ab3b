//! Version, Status and the runtime's configuration.

use std::collections::HashMap;

use cri_api::v1::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigResponse,
    RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusResponse,
    VersionResponse,
};
use serde_json::json;

use crate::runtime::Runtime;

/// The version of the CRI that is spoken.
const API_VERSION: &str = "v1";
/// What clients send and expect back as the version of the question itself.
const QUESTION_VERSION: &str = "0.1.0";

impl Runtime {
    /// CRI Version.
    pub fn version(&self) -> VersionResponse {
        VersionResponse {
            version: QUESTION_VERSION.into(),
            runtime_name: "orlop".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: API_VERSION.into(),
        }
    }

    /// CRI Status: whether pods can be run, and have a network.
    pub async fn status(&self, verbose: bool) -> StatusResponse {
        let condition = |kind: &str, problem: Option<(&str, String)>| RuntimeCondition {
            r#type: kind.into(),
            status: problem.is_none(),
            reason: problem
                .as_ref()
                .map(|(reason, _)| (*reason).to_owned())
                .unwrap_or_default(),
            message: problem.map(|(_, message)| message).unwrap_or_default(),
        };
        let keeper = self
            .keeper
            .list()
            .await
            .err()
            .map(|error| ("KeeperNotReady", error.to_string()));
        let network = self
            .network
            .status()
            .await
            .err()
            .map(|error| ("NetworkPluginNotReady", error.to_string()));
        let conditions = vec![
            condition("RuntimeReady", keeper),
            condition("NetworkReady", network),
        ];
        let mut info = HashMap::new();
        if verbose {
            let shown = json!({
                "root": self.config.root,
                "state": self.config.state,
                "cniConfDir": self.config.cni_conf_dir,
                "cgroupLayout": format!("{:?}", self.cgroups.hierarchies().layout()),
                "sandboxes": self.state.sandboxes().len(),
                "containers": self.state.containers().len(),
            });
            info.insert("config".to_owned(), shown.to_string());
        }
        let features = RuntimeHandlerFeatures {
            recursive_read_only_mounts: self.abilities.recursive_read_only_mounts,
            user_namespaces: self.abilities.user_namespaces.is_ok(),
        };
        StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info,
            runtime_handlers: vec![RuntimeHandler {
                name: String::new(),
                features: Some(features),
            }],
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                ..Default::default()
            }),
        }
    }

    /// CRI RuntimeConfig.
    pub fn runtime_config(&self) -> RuntimeConfigResponse {
        let linux = LinuxRuntimeConfiguration {
            cgroup_driver: CgroupDriver::Cgroupfs as i32,
        };
        RuntimeConfigResponse { linux: Some(linux) }
    }
}
