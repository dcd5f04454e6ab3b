//! Where everything lies.

use std::path::{Path, PathBuf};

/// The root folder where none is given.
pub const DEFAULT_ROOT: &str = "/var/lib/orlop";
const DEFAULT_RUN: &str = "/run/orlop";

/// The folders and files of one installation.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn is_default(&self) -> bool {
        self.root == Path::new(DEFAULT_ROOT)
    }

    /// What outlives a reboot.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What dies with the kernel: sockets, pins.
    pub fn run(&self) -> PathBuf {
        if self.is_default() {
            DEFAULT_RUN.into()
        } else {
            self.root.join("run")
        }
    }

    /// The CRI server's socket.
    pub fn cri_socket(&self) -> PathBuf {
        self.run().join("cri.sock")
    }

    /// Held by the process that uses the folder.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    /// The kubelet's own files.
    pub fn kubelet(&self) -> PathBuf {
        self.root.join("kubelet")
    }

    /// Container logs by pod.
    pub fn pod_logs(&self) -> PathBuf {
        if self.is_default() {
            "/var/log/pods".into()
        } else {
            self.root.join("log/pods")
        }
    }

    /// Links to the current log of each container.
    pub fn container_logs(&self) -> PathBuf {
        if self.is_default() {
            "/var/log/containers".into()
        } else {
            self.root.join("log/containers")
        }
    }

    /// CNI configuration lists.
    pub fn cni_conf(&self) -> PathBuf {
        if self.is_default() {
            "/etc/cni/net.d".into()
        } else {
            self.root.join("cni/net.d")
        }
    }

    /// Where leases of pod addresses are kept.
    pub fn cni_leases(&self) -> PathBuf {
        if self.is_default() {
            "/var/lib/cni/networks".into()
        } else {
            self.root.join("cni/networks")
        }
    }
}
