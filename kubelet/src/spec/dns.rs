//! A pod's resolver configuration (`dnsPolicy`, `dnsConfig`) and its host name.

use std::net::IpAddr;

use cri_api::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::pod::PodExt;

/// The kernel's limit on a host name.
const MAX_HOSTNAME: usize = 63;
/// What resolvers read of `nameserver` and `search`.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// What the node gives its pods.
#[derive(Clone, Debug, Default)]
pub struct NodeDns {
    /// The cluster's name servers; empty if it has none.
    pub servers: Vec<IpAddr>,
    /// The cluster's domain.
    pub domain: String,
    /// The node's own resolver configuration.
    pub host: DnsConfig,
}

/// Reads a `resolv.conf`.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            // The last line of either counts.
            Some("search" | "domain") => config.searches = words.map(str::to_owned).collect(),
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config
}

/// The pod's resolver configuration.
pub fn dns_config(pod: &Pod, node: &NodeDns) -> DnsConfig {
    let spec = pod.pod_spec();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !pod.host_network(),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut config = match policy {
        "None" => DnsConfig::default(),
        _ if cluster && !node.servers.is_empty() => {
            let domain = &node.domain;
            let mut searches = Vec::new();
            if !domain.is_empty() {
                searches.push(format!("{}.svc.{domain}", pod.namespace()));
                searches.push(format!("svc.{domain}"));
                searches.push(domain.clone());
            }
            searches.extend(node.host.searches.iter().cloned());
            DnsConfig {
                servers: node.servers.iter().map(IpAddr::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => node.host.clone(),
    };
    if let Some(own) = &spec.dns_config {
        append(
            &mut config.servers,
            own.nameservers.iter().flatten().cloned(),
        );
        append(&mut config.searches, own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            config.options.retain(|o| o.split(':').next() != Some(name));
            config.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    config.searches.retain(|s| seen.insert(s.clone()));
    config.servers.truncate(MAX_SERVERS);
    config.searches.truncate(MAX_SEARCHES);
    config
}

fn append(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

/// The pod's host name, and its domain if it has a subdomain.
pub fn hostname_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod.pod_spec();
    if let Some(name) = &spec.hostname_override {
        return (name.clone(), String::new());
    }
    let mut name = spec
        .hostname
        .clone()
        .unwrap_or_else(|| pod.name().to_owned());
    if name.len() > MAX_HOSTNAME {
        name.truncate(MAX_HOSTNAME);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let domain = spec
        .subdomain
        .as_ref()
        .map(|sub| format!("{sub}.{}.svc.{cluster_domain}", pod.namespace()))
        .unwrap_or_default();
    (name, domain)
}

/// The name that the sandbox gets: with its domain if `setHostnameAsFQDN` asks for that.
pub fn sandbox_hostname(pod: &Pod, cluster_domain: &str, node_name: &str) -> String {
    if pod.host_network() {
        return node_name.to_owned();
    }
    let (name, domain) = hostname_and_domain(pod, cluster_domain);
    if pod.pod_spec().set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        format!("{name}.{domain}")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node() -> NodeDns {
        NodeDns {
            servers: vec!["10.96.0.10".parse().expect("an address")],
            domain: "cluster.local".into(),
            host: parse_resolv_conf("nameserver 1.1.1.1\nsearch example.org\noptions timeout:1\n"),
        }
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}))
            .expect("a pod")
    }

    #[test]
    fn cluster_first_searches_the_namespace_then_the_node() {
        let config = dns_config(&pod(json!({"containers": []})), &node());
        assert_eq!(config.servers, ["10.96.0.10"]);
        assert_eq!(
            config.searches,
            [
                "ns.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local",
                "example.org"
            ]
        );
        assert_eq!(config.options, ["ndots:5"]);
    }

    #[test]
    fn host_network_falls_back_to_the_nodes_resolver() {
        let config = dns_config(
            &pod(json!({"containers": [], "hostNetwork": true})),
            &node(),
        );
        assert_eq!(config.servers, ["1.1.1.1"]);
    }

    #[test]
    fn own_options_replace_the_policys() {
        let spec = json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "2"}], "searches": ["x.y"]}});
        let config = dns_config(&pod(spec), &node());
        assert_eq!(config.options, ["ndots:2"]);
        assert!(config.searches.contains(&"x.y".to_owned()));
    }

    #[test]
    fn a_subdomain_gives_the_pod_a_domain() {
        let pod = pod(
            json!({"containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}),
        );
        assert_eq!(
            sandbox_hostname(&pod, "cluster.local", "node"),
            "h.s.ns.svc.cluster.local"
        );
    }
}
