//! The pods that the API server has bound to this node.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Mirrors;
use crate::pod::{ANNOTATION_SOURCE, PodExt};
use crate::pods::{Pods, Source};

/// Follows the pods of a node until `shutdown`; `synced` is told after the first complete list.
pub async fn follow_api(
    client: kube::Client,
    node_name: String,
    pods: Pods,
    mirrors: Mirrors,
    synced: watch::Sender<bool>,
    shutdown: CancellationToken,
) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut events = Box::pin(watcher(Api::<Pod>::all(client), config).default_backoff());
    let mut present = HashSet::new();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Ok(watcher::Event::Init)) => {
                present.clear();
                mirrors.begin_list();
            }
            Some(Ok(watcher::Event::InitApply(pod))) => {
                present.insert(pod.uid());
                take(&pods, &mirrors, pod);
            }
            Some(Ok(watcher::Event::InitDone)) => {
                pods.retain(Source::Api, &present);
                mirrors.end_list();
                synced.send_replace(true);
            }
            Some(Ok(watcher::Event::Apply(pod))) => take(&pods, &mirrors, pod),
            Some(Ok(watcher::Event::Delete(pod))) if pod.is_mirror() => mirrors.deleted(&pod),
            Some(Ok(watcher::Event::Delete(pod))) => pods.remove(&pod.uid()),
            Some(Err(error)) => {
                tracing::warn!(%error, "watch of this node's pods broke off; it will be tried again")
            }
        }
    }
}

fn take(pods: &Pods, mirrors: &Mirrors, mut pod: Pod) {
    // Most of a pod's size, and of no use here.
    pod.metadata.managed_fields = None;
    if pod.is_mirror() {
        mirrors.seen(&pod);
    } else {
        // Only a file on this node makes a static pod, whatever an object claims.
        if let Some(annotations) = &mut pod.metadata.annotations {
            annotations.remove(ANNOTATION_SOURCE);
        }
        pods.apply(Source::Api, Arc::new(pod));
    }
}
