//! What every namespace has: the ServiceAccount `default`, and the ConfigMap with the cluster's CA.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::Context;
use super::informer::Informer;
use super::object::{ConfigMap, Key, Namespace, ServiceAccount, is_code};
use super::queue::Queue;

/// The ConfigMap's name, which projected token volumes refer to.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// Keeps both in each namespace that isn't going.
pub struct Controller {
    context: Context,
    ca_pem: String,
    namespaces: Arc<Informer<Namespace>>,
    accounts: Arc<Informer<ServiceAccount>>,
    maps: Arc<Informer<ConfigMap>>,
}

impl Controller {
    /// `maps` need only hold ConfigMaps named [`ROOT_CA`].
    pub fn new(
        context: Context,
        ca_pem: String,
        namespaces: Arc<Informer<Namespace>>,
        accounts: Arc<Informer<ServiceAccount>>,
        maps: Arc<Informer<ConfigMap>>,
        queue: &Queue<Key>,
    ) -> Self {
        let q = queue.clone();
        namespaces.on_change(move |change| {
            change
                .new
                .iter()
                .for_each(|namespace| q.add(Key::of(&**namespace)))
        });
        let q = queue.clone();
        accounts.on_change(move |change| {
            change.both().for_each(|account| {
                q.add(Key::new(
                    "",
                    account.metadata.namespace.as_deref().unwrap_or_default(),
                ))
            });
        });
        let q = queue.clone();
        maps.on_change(move |change| {
            change.both().for_each(|map| {
                q.add(Key::new(
                    "",
                    map.metadata.namespace.as_deref().unwrap_or_default(),
                ))
            });
        });
        Self {
            context,
            ca_pem,
            namespaces,
            accounts,
            maps,
        }
    }

    /// Creates or mends both in one namespace.
    pub async fn reconcile(&self, key: Key) -> Result<Option<Duration>, kube::Error> {
        let live = self
            .namespaces
            .get(&key)
            .filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
        if live.is_none() {
            return Ok(None);
        }
        let writer = &self.context.writer;
        if self.accounts.get(&Key::new(&key.name, "default")).is_none() {
            let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
            unless_there(writer.create::<ServiceAccount>(&key.name, &account).await)?;
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.ca_pem.clone())]);
        let name = Key::new(&key.name, ROOT_CA);
        match self.maps.get(&name) {
            Some(map) if map.data == data => {}
            Some(_) => drop(
                writer
                    .merge::<ConfigMap>(&name, None, &json!({ "data": data }))
                    .await?,
            ),
            None => {
                let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": data, "metadata": { "name": ROOT_CA,
                    "annotations": { "kubernetes.io/description": "The certificate authority with which a pod verifies the API server." } } });
                unless_there(writer.create::<ConfigMap>(&key.name, &map).await)?;
            }
        }
        Ok(None)
    }
}

/// A creation that lost to another, or whose namespace went meanwhile, has nothing left to do.
fn unless_there(result: Result<serde_json::Value, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error)
            if [403, 404, 409]
                .into_iter()
                .any(|code| is_code(&error, code)) =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}
