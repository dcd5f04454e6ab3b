//! Waiting for what the demo is to become: by watches, with a bound.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};

use super::objects::{NAME, NAMESPACE};

/// The longest that any one claim may take to come true.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the Deployment has so many ready pods and no others, and lists them.
pub async fn rolled_out(client: &Client, replicas: u32) -> anyhow::Result<Vec<Pod>> {
    let wanted = i32::try_from(replicas)?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let waiting = watch_until(deployments, NAME, |deployment| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.is_some_and(|status| {
            status.ready_replicas == Some(wanted) && status.replicas == Some(wanted)
        })
    });
    if let Err(error) = waiting.await {
        return Err(error.context(why_pods_wait(&pods).await));
    }
    let selector = ListParams::default().labels(&format!("app={NAME}"));
    watch_until_all(&pods, "to end", |pods| {
        pods.iter()
            .all(|pod| pod.metadata.deletion_timestamp.is_none())
    })
    .await?;
    Ok(pods.list(&selector).await?.items)
}

/// What the pods' own status says about why they don't run.
async fn why_pods_wait(pods: &Api<Pod>) -> String {
    let Ok(list) = pods
        .list(&ListParams::default().labels(&format!("app={NAME}")))
        .await
    else {
        return "the demo's pods are not ready".to_owned();
    };
    let mut lines = vec!["the demo's pods are not ready:".to_owned()];
    for pod in list {
        let status = pod.status.clone().unwrap_or_default();
        let waiting = status
            .container_statuses
            .iter()
            .flatten()
            .filter_map(|c| c.state.as_ref()?.waiting.clone());
        let waiting = waiting.map(|w| {
            format!(
                "{}: {}",
                w.reason.unwrap_or_default(),
                w.message.unwrap_or_default()
            )
        });
        let untrue = status
            .conditions
            .iter()
            .flatten()
            .filter(|c| c.status != "True");
        let untrue = untrue.map(|c| {
            format!(
                "not {}: {}",
                c.type_,
                c.message.clone().or(c.reason.clone()).unwrap_or_default()
            )
        });
        let reasons: Vec<_> = waiting.chain(untrue).collect();
        lines.push(format!(
            "  {} is {}; {}",
            pod.name_any(),
            status.phase.unwrap_or_default(),
            reasons.join("; ")
        ));
    }
    lines.join("\n")
}

/// Waits until `holds` is true of the object (None while it doesn't exist).
pub async fn watch_until<K>(
    api: Api<K>,
    name: &str,
    mut holds: impl FnMut(Option<&K>) -> bool,
) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let states = watcher::watch_object(api, name);
    futures::pin_mut!(states);
    let waiting = async {
        while let Some(state) = states.next().await {
            // An interrupted watch resumes by itself.
            if let Ok(state) = state
                && holds(state.as_ref())
            {
                return true;
            }
        }
        false
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(true) => Ok(()),
        Ok(false) => bail!("the watch of {name} ended"),
        Err(_) => bail!("{name} did not get there in {PATIENCE:?}"),
    }
}

/// Waits until `holds` is true of all of the demo's pods.
pub async fn watch_until_all(
    api: &Api<Pod>,
    what: &str,
    holds: impl Fn(&[Pod]) -> bool,
) -> anyhow::Result<()> {
    let selector = format!("app={NAME}");
    let events =
        watcher(api.clone(), watcher::Config::default().labels(&selector)).default_backoff();
    futures::pin_mut!(events);
    let waiting = async {
        let mut listed = false;
        while let Some(event) = events.next().await {
            listed |= matches!(event, Ok(watcher::Event::InitDone));
            if listed
                && holds(
                    &api.list(&ListParams::default().labels(&selector))
                        .await?
                        .items,
                )
            {
                return Ok(());
            }
        }
        bail!("the watch of pods ended")
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .with_context(|| format!("wait for pods {what}"))?
}

/// Tries until true: for what no watch tells.
pub async fn eventually(
    what: &str,
    mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await? {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "not true in {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
