//! How the CRI server is set up.

use std::path::PathBuf;

use crate::image::Limits;

/// Where things are, and how large they may get. [`Config::default`] is what `orlop cri` runs with.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The unix socket that is served.
    pub listen: PathBuf,
    /// Images, containers' writable layers and the journal: what outlives the kernel.
    pub root: PathBuf,
    /// Pins, the keeper's socket, sandboxes' files: what doesn't. On a tmpfs.
    pub state: PathBuf,
    /// Where network namespaces are pinned, visible to others' plugins and tools.
    pub netns_dir: PathBuf,
    /// The folder of CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// Where the default network keeps the leases of pod addresses.
    pub cni_data_dir: PathBuf,
    /// The folders of CNI plugins that aren't ours.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The folders of the files that describe CDI devices; a later one's win over an earlier one's.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// The program that is started as keeper: this one, unless a test says otherwise.
    pub keeper_program: PathBuf,
    /// The cgroup of the keeper and the scribe, from each hierarchy's root; `None` leaves them in the server's.
    pub keeper_cgroup: Option<String>,
    /// The cgroup below which a sandbox without `cgroup_parent` gets its own, from the hierarchies' roots.
    pub cgroup_root: String,
    /// The address that exec, attach and port-forward streams are served on; the port is chosen by the kernel if 0.
    pub stream_address: std::net::SocketAddr,
    /// Where metrics are served in Prometheus' text, at `/metrics`; absent, nowhere.
    pub metrics_address: Option<std::net::SocketAddr>,
    /// What one image layer may unpack to.
    pub layer_limits: Limits,
    /// Folders of hosts files, in the form of containerd's `certs.d`, that say where a registry's content is really
    /// fetched from. The first one that knows a registry wins.
    pub registry_hosts_dirs: Vec<PathBuf>,
}

impl Config {
    /// Reads a configuration file; what it doesn't say stays as in [`Config::default`].
    ///
    /// # Errors
    /// When it is not TOML, or has a key that is not one of this structure's.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

impl Config {
    /// The configuration as a file with its documentation, which [`Config::from_toml`] reads again.
    pub fn documented(&self) -> String {
        let absent = |value: Option<String>, name: &str, example: &str| match value {
            Some(value) => format!("{name} = {value:?}"),
            None => format!("# {name} = {example:?}"),
        };
        let keeper_cgroup = absent(self.keeper_cgroup.clone(), "keeper_cgroup", "orlop-keeper");
        let metrics_address = self.metrics_address.map(|address| address.to_string());
        let metrics_address = absent(metrics_address, "metrics_address", "127.0.0.1:1338");
        format!(
            "# The unix socket that is served.\nlisten = {:?}\n\
             # Images, containers' writable layers and the journal: what outlives the kernel.\nroot = {:?}\n\
             # What doesn't outlive it: pins, the keeper's socket, sandboxes' files. On a tmpfs.\nstate = {:?}\n\
             # Where network namespaces are pinned.\nnetns_dir = {:?}\n\
             # The folder of CNI configurations; it is watched.\ncni_conf_dir = {:?}\n\
             # Where the default network keeps the leases of pod addresses.\ncni_data_dir = {:?}\n\
             # The folders of CNI plugins that aren't this program's own.\ncni_bin_dirs = {:?}\n\
             # The folders of the files that describe CDI devices; a later one's win.\ncdi_spec_dirs = {:?}\n\
             # The program that is started as keeper of the containers.\nkeeper_program = {:?}\n\
             # The cgroup of the keeper and the scribe, from the hierarchies' roots.\n{keeper_cgroup}\n\
             # The cgroup below which a sandbox without `cgroup_parent` gets its own.\ncgroup_root = {:?}\n\
             # Where exec, attach and port-forward streams are served; port 0 is one that is free.\nstream_address = \"{}\"\n\
             # Where metrics are served in Prometheus' text, at /metrics; absent, nowhere.\n{metrics_address}\n\
             # Folders of hosts files, in the form of containerd's certs.d: mirrors, authorities, client certificates.\nregistry_hosts_dirs = {:?}\n\n\
             # What one layer of an image, or an imported archive, may unpack to.\n[layer_limits]\nsize_bytes = {}\nentries = {}\n",
            self.listen,
            self.root,
            self.state,
            self.netns_dir,
            self.cni_conf_dir,
            self.cni_data_dir,
            self.cni_bin_dirs,
            self.cdi_spec_dirs,
            self.keeper_program,
            self.cgroup_root,
            self.stream_address,
            self.registry_hosts_dirs,
            self.layer_limits.size_bytes,
            self.layer_limits.entries,
        )
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "/run/orlop/cri.sock".into(),
            root: "/var/lib/orlop".into(),
            state: "/run/orlop".into(),
            netns_dir: "/run/netns".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_data_dir: "/var/lib/cni/networks".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            keeper_program: "/proc/self/exe".into(),
            keeper_cgroup: Some("orlop-keeper".into()),
            cgroup_root: "/orlop".into(),
            stream_address: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics_address: None,
            layer_limits: Limits::default(),
            registry_hosts_dirs: vec![
                "/etc/orlop/certs.d".into(),
                "/etc/containerd/certs.d".into(),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_the_configuration() {
        for config in [
            Config::default(),
            Config {
                metrics_address: Some(([127, 0, 0, 1], 9).into()),
                cgroup_root: "/a \"b\"".into(),
                ..Config::default()
            },
        ] {
            let again = Config::from_toml(&config.documented()).unwrap();
            assert_eq!(format!("{again:?}"), format!("{config:?}"));
        }
    }

    #[test]
    fn a_key_that_is_unknown_is_named() {
        let error = Config::from_toml("rooot = \"/\"").unwrap_err().to_string();
        assert!(error.contains("rooot"), "{error}");
    }
}
