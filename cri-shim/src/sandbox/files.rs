//! The files that every container of a sandbox has: host names and name servers. They lie in the state directory,
//! since a sandbox doesn't outlive the kernel.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cri_api::v1::DnsConfig;

use crate::spec::Files;

/// A sandbox's folder of files.
#[derive(Debug, Clone)]
pub struct SandboxFiles {
    folder: PathBuf,
}

impl SandboxFiles {
    pub fn of(state_dir: &Path, id: &str) -> Self {
        Self {
            folder: state_dir.join("sandboxes").join(id),
        }
    }

    /// Writes them; they may be there already. They belong to the pod's root, `owner` on the host.
    ///
    /// # Errors
    /// The failed call, with the path.
    pub fn write(&self, host_name: &str, dns: Option<&DnsConfig>, owner: u32) -> io::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.folder)?;
        let paths = self.paths();
        std::fs::write(&paths.hostname, format!("{host_name}\n"))?;
        let dns = match dns {
            Some(dns) => resolv_conf(dns),
            None => read_or_empty("/etc/resolv.conf")?,
        };
        std::fs::write(&paths.resolv_conf, dns)?;
        std::fs::write(&paths.hosts, read_or_empty("/etc/hosts")?)?;
        for path in [&paths.resolv_conf, &paths.hostname, &paths.hosts] {
            std::os::unix::fs::chown(path, Some(owner), Some(owner))?;
        }
        Ok(())
    }

    /// Where they are.
    pub fn paths(&self) -> Files {
        Files {
            resolv_conf: self.folder.join("resolv.conf"),
            hostname: self.folder.join("hostname"),
            hosts: self.folder.join("hosts"),
        }
    }

    /// Removes them; what isn't there is fine.
    ///
    /// # Errors
    /// The failed call.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn read_or_empty(path: &str) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The text of `/etc/resolv.conf` (resolv.conf(5)).
pub fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_a_line_for_each_server() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into(), "fd00::10".into()],
            searches: vec![
                "default.svc.cluster.local".into(),
                "svc.cluster.local".into(),
            ],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver fd00::10\n\
             options ndots:5\n"
        );
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }
}
