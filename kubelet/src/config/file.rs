//! Reading a KubeletConfiguration (kubelet.config.k8s.io/v1beta1).
//!
//! What this kubelet does is taken over; what it doesn't do is named, so that nobody believes that it is heeded.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use api::quantity::Quantity;
use serde::Deserialize;

use super::{Config, IDS_UNIT, ServerConfig};

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It isn't YAML, or a field has the wrong form.
    #[error("parse KubeletConfiguration: {0}")]
    Parse(String),
    /// It is something else.
    #[error("the file is a {0}, not a kubelet.config.k8s.io/v1beta1 KubeletConfiguration")]
    Kind(String),
    /// A field has a value that can't be used.
    #[error("KubeletConfiguration: {field}: {cause}")]
    Value {
        /// Which.
        field: &'static str,
        /// Why not.
        cause: String,
    },
    /// A file that it names can't be read.
    #[error("KubeletConfiguration: {field}: read {}: {source}", path.display())]
    File {
        /// Which field.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    kind: String,
    api_version: String,
    address: Option<IpAddr>,
    port: Option<u16>,
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
    authentication: Authentication,
    static_pod_path: Option<PathBuf>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<IpAddr>,
    cluster_domain: Option<String>,
    resolv_conf: Option<PathBuf>,
    max_pods: Option<u32>,
    register_node: Option<bool>,
    cgroup_root: Option<String>,
    seccomp_default: Option<bool>,
    system_reserved: BTreeMap<String, String>,
    kube_reserved: BTreeMap<String, String>,
    pod_logs_dir: Option<PathBuf>,
    container_log_max_size: Option<String>,
    container_log_max_files: Option<u32>,
    container_runtime_endpoint: Option<String>,
    user_namespaces: UserNamespaces,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct UserNamespaces {
    ids_per_pod: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Authentication {
    x509: X509,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct X509 {
    client_ca_file: Option<PathBuf>,
}

/// Who calls a kubelet besides administrators, as kubeadm and others name the API server's client.
const API_SERVER: &str = "kube-apiserver-kubelet-client";

impl Config {
    /// Takes over what a KubeletConfiguration says; what it doesn't say stays. Returns the fields that it has and
    /// this kubelet doesn't heed.
    ///
    /// # Errors
    /// The text is no KubeletConfiguration, or names a file that can't be read.
    pub fn apply_file(&mut self, text: &str) -> Result<Vec<String>, Error> {
        let file: File =
            serde_saphyr::from_str(text).map_err(|error| Error::Parse(error.to_string()))?;
        if file.kind != "KubeletConfiguration"
            || file.api_version != "kubelet.config.k8s.io/v1beta1"
        {
            return Err(Error::Kind(format!("{} {}", file.api_version, file.kind)));
        }
        self.apply_server(&file)?;
        let logs = file
            .container_log_max_size
            .as_deref()
            .map(|text| bytes("containerLogMaxSize", text))
            .transpose()?;
        let ids = file.user_namespaces.ids_per_pod.map(ids_per_pod);
        take(&mut self.ids_per_pod, ids.transpose()?);
        take(&mut self.log_max_bytes, logs);
        take(&mut self.log_max_files, file.container_log_max_files);
        take(&mut self.cluster_domain, file.cluster_domain);
        take(&mut self.resolv_conf, file.resolv_conf);
        take(&mut self.max_pods, file.max_pods);
        take(&mut self.register_node, file.register_node);
        take(&mut self.cgroup_root, file.cgroup_root);
        take(&mut self.seccomp_default, file.seccomp_default);
        take(&mut self.pod_logs_dir, file.pod_logs_dir);
        if !file.cluster_dns.is_empty() {
            self.cluster_dns = file.cluster_dns;
        }
        if file.static_pod_path.is_some() {
            self.static_pod_path = file.static_pod_path;
        }
        if let Some(endpoint) = file.container_runtime_endpoint {
            self.cri_socket = endpoint.trim_start_matches("unix://").into();
        }
        for (name, amount) in file.system_reserved.into_iter().chain(file.kube_reserved) {
            let sum = self.reserved.entry(name).or_insert_with(|| "0".into());
            *sum = (quantity(sum)? + quantity(&amount)?).to_string();
        }
        Ok(file.others.into_keys().collect())
    }

    fn apply_server(&mut self, file: &File) -> Result<(), Error> {
        if let (Some(cert), Some(key), Some(ca)) = (
            &file.tls_cert_file,
            &file.tls_private_key_file,
            &file.authentication.x509.client_ca_file,
        ) {
            self.server = Some(ServerConfig {
                address: IpAddr::from([0, 0, 0, 0]),
                port: 10250,
                cert_pem: read("tlsCertFile", cert)?,
                key_pem: read("tlsPrivateKeyFile", key)?,
                client_ca_pem: read("authentication.x509.clientCAFile", ca)?,
                allowed_users: vec![API_SERVER.to_owned()],
            });
        }
        if let Some(server) = &mut self.server {
            take(&mut server.address, file.address);
            take(&mut server.port, file.port);
        }
        Ok(())
    }
}

fn take<T>(into: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *into = value;
    }
}

fn read(field: &'static str, path: &PathBuf) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File {
        field,
        path: path.clone(),
        source,
    })
}

fn bytes(field: &'static str, text: &str) -> Result<u64, Error> {
    let amount: Quantity =
        text.parse()
            .map_err(|error: api::quantity::ParseError| Error::Value {
                field,
                cause: error.to_string(),
            })?;
    Ok(amount.value().max(0).unsigned_abs())
}

fn ids_per_pod(count: i64) -> Result<u32, Error> {
    u32::try_from(count)
        .ok()
        .filter(|count| *count > 0 && count % IDS_UNIT == 0)
        .ok_or_else(|| Error::Value {
            field: "userNamespaces.idsPerPod",
            cause: format!("{count} is not a multiple of {IDS_UNIT} below 2^32"),
        })
}

fn quantity(text: &str) -> Result<Quantity, Error> {
    text.parse()
        .map_err(|error: api::quantity::ParseError| Error::Value {
            field: "systemReserved, kubeReserved",
            cause: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_is_taken_over_and_the_rest_is_named() {
        let mut config = Config::new("n", Vec::new());
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDNS: [10.96.0.10]\n\
            clusterDomain: example.test\ncontainerLogMaxSize: 1Mi\ncontainerRuntimeEndpoint: unix:///run/x.sock\n\
            kubeReserved: {cpu: 100m}\nsystemReserved: {cpu: 200m}\nevictionHard: {memory.available: 5%}\n";
        let unheeded = config.apply_file(text).expect("a configuration");
        assert_eq!(unheeded, ["evictionHard"]);
        assert_eq!(config.cluster_domain, "example.test");
        assert_eq!(config.log_max_bytes, 1 << 20);
        assert_eq!(config.cri_socket, PathBuf::from("/run/x.sock"));
        assert_eq!(config.reserved["cpu"], "300m");
        assert_eq!(config.max_pods, 110);
    }

    #[test]
    fn ids_of_a_pod_come_in_multiples_of_65536() {
        let mut config = Config::new("n", Vec::new());
        let mut apply = |ids: &str| {
            let text = format!(
                "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nuserNamespaces: {{idsPerPod: {ids}}}\n"
            );
            config.apply_file(&text).map(|_| config.ids_per_pod)
        };
        assert_eq!(apply("131072").expect("a configuration"), 131_072);
        for bad in ["0", "65537", "-65536", "4294967296"] {
            let error = apply(bad).expect_err(bad).to_string();
            assert!(error.contains("userNamespaces.idsPerPod"), "{error}");
        }
    }

    #[test]
    fn another_kind_is_refused() {
        let mut config = Config::new("n", Vec::new());
        assert!(matches!(
            config.apply_file("kind: Pod\napiVersion: v1\n"),
            Err(Error::Kind(_))
        ));
        assert!(matches!(config.apply_file(": :"), Err(Error::Parse(_))));
    }
}
