//! Stopping: one container, a pod that has ended, and a pod that is to go for good.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use tokio::sync::watch;
use tokio::time::Instant;

use super::start::log_link;
use super::{Stop, Worker};
use crate::hooks;
use crate::plan::Kill;
use crate::pod::{ContainerExt, PodExt, RestartPolicy};
use crate::recorder::Kind;
use crate::runtime::Error;
use crate::runtime::view::{Container, PodRuntime};
use crate::shared::Shared;
use crate::volumes;

/// What a container gets after its hook used up the grace period.
const LEAST_GRACE: i64 = 2;
/// How long a pod that is to stop waits until the node's rules have let go of it.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a request may take that was on its way when the rules let go.
const IN_FLIGHT: Duration = Duration::from_millis(200);
/// How long the last status may take to be written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);

impl Worker {
    /// Begins to stop a container; the worker is told when that is done.
    pub(super) fn begin_kill(&mut self, pod: &Arc<Pod>, kill: &Kill) {
        let Some(container) = self
            .runtime(pod)
            .containers
            .iter()
            .find(|c| c.id == kill.id)
            .cloned()
        else {
            return;
        };
        if !self.memory.killing.insert(kill.id.clone()) {
            return;
        }
        let sidecar = pod
            .container(&kill.name)
            .is_some_and(ContainerExt::is_sidecar);
        if sidecar || pod.restart_policy() != RestartPolicy::Never {
            self.memory.restarting.insert(kill.id.clone());
        }
        let grace = kill.grace_seconds.unwrap_or_else(|| pod.grace_seconds());
        let (shared, pod, message) = (self.shared.clone(), pod.clone(), kill.message.clone());
        let pre_stopped = self.pre_stopped.clone();
        self.kills.spawn(async move {
            let once = |id: &str| first_time(&pre_stopped, id);
            let outcome = stop_container(&shared, &pod, &container, grace, &message, once).await;
            if let Err(error) = &outcome {
                tracing::warn!(pod = pod.described(), %error, "stop a container; it will be tried again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            (container.id, outcome.is_ok())
        });
    }

    /// The pod ended by itself, or by the kubelet's verdict: what still runs is stopped, its address is given back,
    /// its containers stay for their logs.
    pub(super) async fn end(&mut self, pod: &Arc<Pod>) {
        let grace = pod.grace_seconds();
        self.probes.retain(|_| false);
        let mut pause = Duration::from_millis(200);
        while let Err(error) = self.stop_everything(pod, grace).await {
            tracing::warn!(pod = pod.described(), %error, "end a pod; it will be tried again");
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
        let runtime = self.runtime(pod);
        self.show(pod, &runtime, &Default::default(), true);
        let (shared, uid) = (self.shared.clone(), self.uid.clone());
        let work = tokio::task::spawn_blocking(move || {
            volumes::tear_down_volumes(&shared.config, uid.as_str())
        });
        if let Ok(Err(error)) = work.await {
            tracing::warn!(pod = pod.described(), %error, "remove the volumes of a pod that has ended");
        }
        self.finished = true;
        self.stages.wait_for(Vec::new());
    }

    /// Ends the pod, removes everything that it has on this node, and then its object from the API.
    pub(super) async fn terminate(&mut self) {
        self.probes.retain(|_| false);
        let pod = self.desired.borrow().pod.clone();
        self.kills.abort_all();
        self.leave_services(&pod).await;
        self.stop_with_grace(&pod).await;
        self.sandbox_calls.close();
        self.sandbox_calls.wait().await;
        let desired = self.desired.borrow_and_update().clone();
        let (pod, gone) = (desired.pod, desired.stop.is_some_and(|s| s.gone));
        let runtime = self.runtime(&pod);
        self.show(&pod, &runtime, &Default::default(), true);
        let mut pause = Duration::from_millis(200);
        while let Err(error) = self.clean_up(&pod).await {
            tracing::warn!(
                pod = pod.described(),
                error,
                "clean up after a pod; it will be tried again"
            );
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
        if !gone {
            let _ = tokio::time::timeout(FLUSH_PATIENCE, self.shared.writer.flush(&self.uid)).await;
            self.delete_from_api(&pod).await;
        }
        self.forget();
    }

    /// Waits, within bounds, until the node's rules send nothing to the pod any more: a request that came a moment ago
    /// still finds its program.
    async fn leave_services(&self, pod: &Pod) {
        let grace = self
            .desired
            .borrow()
            .stop
            .as_ref()
            .map_or(0, |stop| stop.grace_seconds);
        let (Some(served), false, true) = (
            self.shared.config.served.clone(),
            pod.host_network(),
            grace > 1,
        ) else {
            return;
        };
        let runtime = self.runtime(pod);
        let Some(sandbox) = runtime.ready_sandbox() else {
            return;
        };
        let mut shorter = self.desired.clone();
        tokio::select! {
            () = until_left(served, sandbox.ips.clone(), LEAVE_PATIENCE) => {}
            _ = shorter.wait_for(|d| d.stop.as_ref().is_some_and(|s| s.grace_seconds < grace)) => {}
        }
    }

    /// Stops everything; a grace period that is shortened meanwhile counts at once.
    async fn stop_with_grace(&mut self, pod: &Arc<Pod>) {
        let mut pause = Duration::from_millis(200);
        loop {
            let Some(Stop { grace_seconds, .. }) = self.desired.borrow_and_update().stop.clone()
            else {
                return;
            };
            let mut shorter = self.desired.clone();
            let outcome = tokio::select! {
                outcome = self.stop_everything(pod, grace_seconds.max(1)) => outcome,
                Ok(_) = shorter.wait_for(|d| d.stop.as_ref().is_some_and(|s| s.grace_seconds < grace_seconds)) => continue,
            };
            match outcome {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(pod = pod.described(), %error, "stop a pod; it will be tried again");
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    /// App containers together, then sidecars in reverse order, then the sandboxes.
    async fn stop_everything(&self, pod: &Arc<Pod>, grace: i64) -> Result<(), Error> {
        let begun = Instant::now();
        let runtime = self.runtime(pod);
        let sidecars: Vec<&str> = pod
            .init_containers()
            .iter()
            .filter(|c| c.is_sidecar())
            .map(|c| c.name.as_str())
            .collect();
        let is_sidecar = |c: &&Container| sidecars.contains(&c.name.as_str());
        let once = |id: &str| first_time(&self.pre_stopped, id);
        let stop = |container: &Container, grace: i64| {
            let (pod, container) = (pod.clone(), container.clone());
            let shared = self.shared.clone();
            async move {
                let message = format!("Stopping container {}", container.name);
                stop_container(&shared, &pod, &container, grace, &message, once).await
            }
        };
        let apps = join_all(
            runtime
                .live()
                .filter(|c| !is_sidecar(c))
                .map(|c| stop(c, grace)),
        )
        .await;
        for name in sidecars.iter().rev() {
            for container in runtime.live().filter(|c| c.name == **name) {
                let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(grace);
                stop(container, (grace - used).max(LEAST_GRACE)).await?;
            }
        }
        for outcome in apps {
            outcome?;
        }
        for sandbox in &runtime.sandboxes {
            self.shared.cri.stop_pod_sandbox(&sandbox.id).await?;
            let _ = self
                .shared
                .cache
                .refresh_sandbox(&self.uid, &sandbox.id)
                .await;
        }
        Ok(())
    }

    async fn clean_up(&self, pod: &Arc<Pod>) -> Result<(), String> {
        // Anything that a call which was abandoned has made in the meantime.
        self.adopt_strays()
            .await
            .map_err(|error| error.to_string())?;
        let runtime = self.runtime(pod);
        for container in &runtime.containers {
            self.remove_container(&container.id)
                .await
                .map_err(|error| error.to_string())?;
        }
        for sandbox in &runtime.sandboxes {
            self.shared
                .cri
                .stop_pod_sandbox(&sandbox.id)
                .await
                .map_err(|error| error.to_string())?;
            self.shared
                .cri
                .remove_pod_sandbox(&sandbox.id)
                .await
                .map_err(|error| error.to_string())?;
            self.shared.cache.removed_sandbox(&self.uid, &sandbox.id);
        }
        let (shared, uid) = (self.shared.clone(), self.uid.clone());
        let logs = shared
            .config
            .pod_log_dir(&runtime.namespace, &runtime.name, uid.as_str());
        let work = tokio::task::spawn_blocking(move || {
            volumes::tear_down(&shared.config, uid.as_str())
                .map_err(|error| format!("remove volumes: {error}"))?;
            match std::fs::remove_dir_all(&logs) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(format!("remove {}: {error}", logs.display()))
                }
                _ => Ok(()),
            }
        });
        work.await.map_err(|error| error.to_string())?
    }

    async fn adopt_strays(&self) -> Result<(), Error> {
        use cri_api::v1;
        let selector = std::collections::HashMap::from([(
            crate::runtime::labels::POD_UID.to_owned(),
            self.uid.as_str().to_owned(),
        )]);
        let filter = v1::PodSandboxFilter {
            label_selector: selector.clone(),
            ..Default::default()
        };
        let sandboxes = self
            .shared
            .cri
            .list_pod_sandbox(v1::ListPodSandboxRequest {
                filter: Some(filter),
            })
            .await?;
        for sandbox in sandboxes.items {
            let _ = self
                .shared
                .cache
                .refresh_sandbox(&self.uid, &sandbox.id)
                .await;
        }
        let filter = v1::ContainerFilter {
            label_selector: selector,
            ..Default::default()
        };
        let containers = self
            .shared
            .cri
            .list_containers(v1::ListContainersRequest {
                filter: Some(filter),
            })
            .await?;
        for container in containers.containers {
            let _ = self
                .shared
                .cache
                .refresh_container(&self.uid, &container.pod_sandbox_id, &container.id)
                .await;
        }
        Ok(())
    }

    /// Removes a container, and what points at its log.
    pub(super) async fn remove_container(&self, id: &str) -> Result<(), Error> {
        remove_container(&self.shared, &self.uid, id).await
    }

    async fn delete_from_api(&self, pod: &Pod) {
        let api: Api<Pod> = Api::namespaced(self.shared.client.clone(), pod.namespace());
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.as_str().to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let mut pause = Duration::from_millis(200);
        loop {
            match api.delete(pod.name(), &params).await {
                Ok(_) => return,
                // It is gone already, or a successor has its name.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    tracing::warn!(pod = pod.described(), %error, "delete a pod that has ended; it will be tried again");
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    fn forget(&self) {
        let shared = &self.shared;
        shared.objects.refer(&self.uid, &Default::default());
        shared.tokens.forget(&self.uid);
        shared.images.forget(self.uid.as_str());
        shared.writer.forget(&self.uid);
        shared.cache.forget(&self.uid);
        shared.wakes.forget(&self.uid);
    }
}

/// Removes a container of a pod, and what points at its log.
pub(crate) async fn remove_container(
    shared: &Shared,
    uid: &crate::ids::PodUid,
    id: &str,
) -> Result<(), Error> {
    let runtime = shared.cache.pod(uid);
    shared.cri.remove_container(id).await?;
    if let Some(PodRuntime {
        namespace,
        name,
        containers,
        ..
    }) = runtime
        && let Some(container) = containers.iter().find(|c| c.id == id)
    {
        let link = log_link(
            &shared.config.container_logs_dir,
            &namespace,
            &name,
            &container.name,
            id,
        );
        let _ = std::fs::remove_file(link);
    }
    shared.cache.removed_container(uid, id);
    Ok(())
}

/// Waits until none of `addresses` is among those served, `patience` at most, and for what was on its way until then.
async fn until_left(
    mut served: watch::Receiver<BTreeMap<IpAddr, Option<Instant>>>,
    addresses: Vec<IpAddr>,
    patience: Duration,
) {
    let left = async {
        let served = served
            .wait_for(|served| addresses.iter().all(|ip| served.get(ip) != Some(&None)))
            .await
            .ok()?;
        addresses.iter().filter_map(|ip| *served.get(ip)?).max()
    };
    // A proxy that ended tells nothing any more; nor is there a need to wait for it then.
    let last = tokio::time::timeout(patience, left).await;
    if let Ok(Some(last)) = last {
        tokio::time::sleep(IN_FLIGHT.saturating_sub(last.elapsed())).await;
    }
}

fn first_time(pre_stopped: &std::sync::Mutex<std::collections::HashSet<String>>, id: &str) -> bool {
    pre_stopped
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .insert(id.to_owned())
}

/// Stops one container: its preStop hook, then the runtime with what is left of the grace period.
async fn stop_container(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    grace: i64,
    message: &str,
    once: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    let begun = Instant::now();
    let spec = pod.container(&container.name);
    let first = once(&container.id);
    if first {
        shared
            .recorder
            .container(pod, &container.name, Kind::Normal, "Killing", message);
    }
    let hook = spec.and_then(|s| s.lifecycle.as_ref()?.pre_stop.as_ref().map(|h| (s, h)));
    let mut left = grace;
    if let (Some((spec, hook)), true) = (hook, first && grace > 0) {
        let ip = shared
            .cache
            .pod(&pod.uid())
            .and_then(|p| p.ready_sandbox()?.ips.first().copied());
        let run = hooks::run(&shared.cri, hook, spec, &container.id, ip);
        let limit = Duration::from_secs(grace.unsigned_abs());
        if let Ok(Err(error)) = tokio::time::timeout(limit, run).await {
            let message = format!("PreStopHook failed: {error}");
            shared.recorder.container(
                pod,
                &container.name,
                Kind::Warning,
                "FailedPreStopHook",
                message,
            );
        }
        let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(grace);
        left = (grace - used).max(LEAST_GRACE);
    }
    shared.cri.stop_container(&container.id, left).await?;
    match shared
        .cache
        .refresh_container(&pod.uid(), &container.sandbox_id, &container.id)
        .await
    {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_waits_until_its_address_is_served_no_more_and_not_for_ever() {
        const LONG: Duration = Duration::from_secs(3600);
        let [mine, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let (sender, served) = watch::channel(BTreeMap::from([(mine, None), (other, None)]));
        let waiting = tokio::spawn(until_left(served.clone(), vec![mine], LONG));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let left = Instant::now();
        sender.send_replace(BTreeMap::from([(mine, Some(left)), (other, None)]));
        waiting.await.unwrap();
        assert!(left.elapsed() >= IN_FLIGHT, "a request was on its way");
        until_left(served.clone(), vec![other], Duration::from_millis(1)).await;
        drop(sender);
        until_left(served, vec![other], LONG).await;
    }
}
