//! Service variables in containers' environments (`enableServiceLinks`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pod::PodExt;

/// What a variable needs of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    cluster_ip: String,
    ports: Vec<(Option<String>, u16, String)>,
}

type Map = BTreeMap<(String, String), Known>;

/// The cluster's Services with an address. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    services: Arc<Mutex<Map>>,
    synced: watch::Receiver<bool>,
}

impl Services {
    /// Follows all Services until `shutdown`.
    pub fn follow(client: kube::Client, shutdown: CancellationToken) -> Self {
        let (listed, synced) = watch::channel(false);
        let services: Arc<Mutex<Map>> = Arc::default();
        let kept = services.clone();
        tokio::spawn(async move {
            let mut events = Box::pin(
                watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff(),
            );
            let mut fresh = Map::new();
            loop {
                let event = tokio::select! {
                    () = shutdown.cancelled() => return,
                    event = events.next() => event,
                };
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    None => return,
                    Some(Ok(watcher::Event::Init)) => fresh.clear(),
                    Some(Ok(watcher::Event::InitApply(service))) => take(&mut fresh, &service),
                    Some(Ok(watcher::Event::InitDone)) => {
                        *kept = std::mem::take(&mut fresh);
                        listed.send_replace(true);
                    }
                    Some(Ok(watcher::Event::Apply(service))) => take(&mut kept, &service),
                    Some(Ok(watcher::Event::Delete(service))) => {
                        kept.remove(&key(&service));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "watch of Services broke off; it will be tried again")
                    }
                }
            }
        });
        Self { services, synced }
    }

    /// The variables that a pod gets, once the Services are known at all.
    pub async fn variables(&self, pod: &Pod) -> Vec<(String, String)> {
        // An error means that the kubelet ends.
        let _ = self.synced.clone().wait_for(|synced| *synced).await;
        let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let links = pod.pod_spec().enable_service_links.unwrap_or(true);
        variables(&services, pod.namespace(), links)
    }
}

fn key(service: &Service) -> (String, String) {
    let metadata = &service.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

fn take(map: &mut Map, service: &Service) {
    let spec = service.spec.as_ref();
    let cluster_ip = spec.and_then(|s| s.cluster_ip.clone()).unwrap_or_default();
    if cluster_ip.is_empty() || cluster_ip == "None" {
        map.remove(&key(service));
        return;
    }
    let ports = spec
        .into_iter()
        .flat_map(|s| s.ports.iter().flatten())
        .filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((port.name.clone(), u16::try_from(port.port).ok()?, protocol))
        });
    map.insert(
        key(service),
        Known {
            cluster_ip,
            ports: ports.collect(),
        },
    );
}

/// Docker's link variables, as upstream makes them: the pod's own namespace, and `kubernetes` of `default`.
fn variables(services: &Map, namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for ((of, name), service) in services {
        let is_master = of == "default" && name == "kubernetes";
        let linked = links && of == namespace;
        if !(is_master || linked) {
            continue;
        }
        let upper = name.to_uppercase().replace('-', "_");
        let ip = &service.cluster_ip;
        let bracketed = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.clone()
        };
        let Some((_, first, protocol)) = service.ports.first() else {
            continue;
        };
        all.push((format!("{upper}_SERVICE_HOST"), ip.clone()));
        all.push((format!("{upper}_SERVICE_PORT"), first.to_string()));
        for (port_name, port, _) in &service.ports {
            if let Some(port_name) = port_name.as_deref().filter(|n| !n.is_empty()) {
                let port_name = port_name.to_uppercase().replace('-', "_");
                all.push((
                    format!("{upper}_SERVICE_PORT_{port_name}"),
                    port.to_string(),
                ));
            }
        }
        all.push((
            format!("{upper}_PORT"),
            format!("{}://{bracketed}:{first}", protocol.to_lowercase()),
        ));
        for (_, port, protocol) in &service.ports {
            let prefix = format!("{upper}_PORT_{port}_{protocol}");
            let lower = protocol.to_lowercase();
            all.push((prefix.clone(), format!("{lower}://{bracketed}:{port}")));
            all.push((format!("{prefix}_PROTO"), lower));
            all.push((format!("{prefix}_PORT"), port.to_string()));
            all.push((format!("{prefix}_ADDR"), ip.clone()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_sees_its_namespaces_services_and_the_api_server() {
        let mut map = Map::new();
        for (namespace, name, ip) in [
            ("default", "kubernetes", "10.0.0.1"),
            ("n", "my-svc", "10.0.0.2"),
            ("m", "x", "10.0.0.3"),
        ] {
            let service = serde_json::json!({"metadata": {"namespace": namespace, "name": name},
                "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80}]}});
            take(
                &mut map,
                &serde_json::from_value(service).expect("a service"),
            );
        }
        let found: BTreeMap<String, String> = variables(&map, "n", true).into_iter().collect();
        assert_eq!(found["MY_SVC_SERVICE_HOST"], "10.0.0.2");
        assert_eq!(found["MY_SVC_SERVICE_PORT_HTTP"], "80");
        assert_eq!(found["KUBERNETES_PORT_80_TCP"], "tcp://10.0.0.1:80");
        assert!(!found.contains_key("X_SERVICE_HOST"));
        let without: BTreeMap<String, String> = variables(&map, "n", false).into_iter().collect();
        assert!(
            !without.contains_key("MY_SVC_SERVICE_HOST")
                && without.contains_key("KUBERNETES_SERVICE_HOST")
        );
    }
}
