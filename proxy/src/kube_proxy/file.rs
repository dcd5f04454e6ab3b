//! `KubeProxyConfiguration`, version `kubeproxy.config.k8s.io/v1alpha1`: the fields that the proxy uses.

use super::Error;
use serde::{Deserialize, Serialize};

/// The file; its fields are upstream's, which documents them. Fields that aren't here are read over: they belong to other modes or systems.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    pub mode: String,
    pub hostname_override: String,
    pub bind_address: String,
    pub oom_score_adj: Option<i32>,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub detect_local_mode: String,
    pub detect_local: DetectLocalFields,
    pub client_connection: ClientConnection,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    #[serde(deserialize_with = "null_is_default")]
    pub node_port_addresses: Vec<String>,
    pub conntrack: Conntrack,
    pub nftables: Rules,
    /// Used with an empty mode, too: it is upstream's default.
    pub iptables: Rules,
}

/// `detectLocal`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocalFields {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// `clientConnection`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    pub kubeconfig: String,
}

/// `conntrack`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conntrack {
    pub max_per_core: Option<u32>,
    pub min: Option<u32>,
    pub tcp_established_timeout: Option<String>,
    pub tcp_close_wait_timeout: Option<String>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: Option<String>,
    pub udp_stream_timeout: Option<String>,
}

/// `nftables` and `iptables`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rules {
    pub masquerade_all: bool,
    pub masquerade_bit: Option<i32>,
    pub min_sync_period: Option<String>,
    pub sync_period: Option<String>,
    /// Of `iptables` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub localhost_node_ports: Option<bool>,
}

fn null_is_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

const VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

impl KubeProxyConfiguration {
    /// The file's text, as YAML that [`KubeProxyConfiguration::parse`] reads. What is empty stays so, and means the
    /// default, as upstream.
    ///
    /// # Errors
    /// [`Error::Parse`], if it can't be written as YAML.
    pub fn text(&self) -> Result<String, Error> {
        let named = KubeProxyConfiguration {
            api_version: VERSION.to_owned(),
            kind: KIND.to_owned(),
            ..self.clone()
        };
        serde_saphyr::to_string(&named).map_err(|error| Error::Parse(error.to_string()))
    }

    /// Parses the file's text, YAML or JSON.
    ///
    /// # Errors
    /// [`Error::Parse`], with the place; also for another kind or version.
    pub fn parse(text: &str) -> Result<KubeProxyConfiguration, Error> {
        let parsed: KubeProxyConfiguration =
            serde_saphyr::from_str(text).map_err(|error| Error::Parse(error.to_string()))?;
        if (parsed.api_version.as_str(), parsed.kind.as_str()) != (VERSION, KIND) {
            return Err(Error::Parse(format!(
                "it is {:?} of {:?}, not {KIND:?} of {VERSION:?}",
                parsed.kind, parsed.api_version
            )));
        }
        Ok(parsed)
    }
}
