//! `/etc/hosts` of a pod (`hostAliases`).

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;

use super::dns;
use crate::pod::PodExt;

/// The file's text for a pod on its own network.
pub fn pod_hosts(pod: &Pod, pod_ips: &[String], cluster_domain: &str) -> String {
    let mut text = String::from("# Kubernetes-managed hosts file.\n");
    for line in [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "fe00::\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
    ] {
        text.push_str(line);
        text.push('\n');
    }
    let (name, domain) = dns::hostname_and_domain(pod, cluster_domain);
    for ip in pod_ips {
        let _ = if domain.is_empty() {
            writeln!(text, "{ip}\t{name}")
        } else {
            writeln!(text, "{ip}\t{name}.{domain}\t{name}")
        };
    }
    text.push_str(&aliases(pod));
    text
}

/// The file's text for a pod on the node's network: the node's own, with the pod's aliases.
pub fn node_hosts(pod: &Pod, node_file: &str) -> String {
    format!(
        "# Kubernetes-managed hosts file (host network).\n{node_file}{}",
        aliases(pod)
    )
}

fn aliases(pod: &Pod) -> String {
    let aliases = pod.pod_spec().host_aliases.as_deref().unwrap_or(&[]);
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or(&[]).join("\t");
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_and_alias_has_a_line() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}
        }))
        .expect("a pod");
        let text = pod_hosts(
            &pod,
            &["10.0.0.2".into(), "fd00::2".into()],
            "cluster.local",
        );
        assert!(text.contains("10.0.0.2\tp\nfd00::2\tp\n"));
        assert!(text.ends_with("1.2.3.4\ta\tb\n"));
    }
}
