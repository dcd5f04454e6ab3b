//! Bringing a pod to what is wanted: plan, do, show, until there is nothing left to do now.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{Worker, now_ns, remembered_probes};
use crate::objects::ObjectCache;
use crate::plan::{Plan, plan};
use crate::pod::PodExt;
use crate::probes::Subject;
use crate::recorder::Kind;
use crate::runtime::view::{PodRuntime, State};
use crate::spec::sandbox::{NodeSetup, sandbox_config};
use crate::status::Verdict;
use crate::volumes;

/// Everything that a pod's volumes were made of; unchanged: there is nothing to bring up to date.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeInputs {
    labels: Option<std::collections::BTreeMap<String, String>>,
    annotations: Option<std::collections::BTreeMap<String, String>>,
    objects: Vec<String>,
    token_refresh: Option<Timestamp>,
}

/// A pod in which every step works needs about four rounds; more than this is a pod that goes in circles.
const MAX_ROUNDS: usize = 50;

impl Worker {
    /// Does what there is to do now; tells when to look again if nothing happens.
    pub(super) async fn sync(&mut self, pod: Arc<Pod>) -> Option<Instant> {
        if self.finished {
            return None;
        }
        if pod.is_terminal() {
            // What its containers were is known, even if the runtime has forgotten them.
            self.end(&pod).await;
            return None;
        }
        self.refer(&pod);
        for _ in 0..MAX_ROUNDS {
            let runtime = self.runtime(&pod);
            self.probe(&pod, &runtime);
            let plan = plan(&pod, &runtime, &self.memory, now_ns());
            self.show(&pod, &runtime, &plan.backing_off, false);
            self.announce_backoffs(&pod, &plan);
            if self.exceeded_deadline(&pod) || plan.end {
                self.end(&pod).await;
                return None;
            }
            let volumes_due = self.volumes_due(&pod, runtime.ready_sandbox().is_some());
            let idle = plan.create_sandbox.is_none()
                && plan.kill.is_empty()
                && plan.start.is_empty()
                && plan.stop_sandboxes.is_empty();
            if idle && !volumes_due {
                return self.next_look(&pod, &plan);
            }
            if !self.carry_out(&pod, &plan).await {
                let runtime = self.runtime(&pod);
                self.show(&pod, &runtime, &plan.backing_off, false);
                return self.next_look(&pod, &plan);
            }
        }
        tracing::warn!(
            pod = pod.described(),
            "goes in circles; looking again in a while"
        );
        Some(Instant::now() + Duration::from_secs(10))
    }

    /// Tells whether everything worked, so that the next plan is due at once.
    async fn carry_out(&mut self, pod: &Arc<Pod>, plan: &Plan) -> bool {
        for kill in &plan.kill {
            self.begin_kill(pod, kill);
        }
        for id in &plan.stop_sandboxes {
            if let Err(error) = self.shared.cri.stop_pod_sandbox(id).await {
                tracing::warn!(pod = pod.described(), %error, "stop a sandbox that is not wanted");
                self.sandbox_retry.failed();
                return false;
            }
            let _ = self.shared.cache.refresh_sandbox(&self.uid, id).await;
        }
        for id in &plan.remove {
            if let Err(error) = self.remove_container(id).await {
                tracing::warn!(pod = pod.described(), %error, "remove a container that never started");
                return false;
            }
        }
        let makes = plan.create_sandbox.is_some() || !plan.start.is_empty();
        if makes && !self.user_namespace(pod).await {
            return false;
        }
        let ready = match plan.create_sandbox {
            Some(attempt) => self.sandbox_and_volumes(pod, attempt).await,
            None => self.volumes(pod).await,
        };
        if !ready {
            return false;
        }
        let sandbox = self.runtime(pod).ready_sandbox().cloned();
        let Some(sandbox) = sandbox else {
            return plan.start.is_empty();
        };
        let mut all = true;
        for start in &plan.start {
            all &= self.start_container(pod, &sandbox, start).await;
        }
        all
    }

    async fn sandbox_and_volumes(&mut self, pod: &Arc<Pod>, attempt: u32) -> bool {
        if self.sandbox_retry.waits().is_some() {
            return false;
        }
        let shared = self.shared.clone();
        let log_directory =
            shared
                .config
                .pod_log_dir(pod.namespace(), pod.name(), self.uid.as_str());
        if let Err(error) = tokio::fs::create_dir_all(&log_directory).await {
            let message = format!(
                "error making pod log directory {}: {error}",
                log_directory.display()
            );
            shared.recorder.pod(
                pod,
                Kind::Warning,
                "FailedToMakePodDataDirectories",
                message,
            );
            self.sandbox_retry.failed();
            return false;
        }
        let config = sandbox_config(pod, attempt, &self.node_setup(pod));
        let request = cri_api::v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let stages = self.stages.clone();
        let uid = self.uid.clone();
        let cri_side = shared.clone();
        // A sandbox that nobody waited for would be nobody's: the call goes on when this is abandoned, and the
        // pod's clean-up waits for it.
        let making = self.sandbox_calls.spawn(async move {
            let id = cri_side.cri.run_pod_sandbox(request).await?;
            cri_side.cache.refresh_sandbox(&uid, &id).await
        });
        let sandbox = stages.time("sandbox", making);
        let (made, volumes) = tokio::join!(sandbox, self.volumes(pod));
        let made =
            made.unwrap_or_else(|error| Err(crate::runtime::Error::lost("RunPodSandbox", &error)));
        match made {
            Ok(()) => {
                self.sandbox_retry.succeeded();
                let runtime = self.runtime(pod);
                self.show(pod, &runtime, &Default::default(), false);
                volumes
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {}", error.message());
                shared
                    .recorder
                    .pod(pod, Kind::Warning, "FailedCreatePodSandBox", message);
                self.stages
                    .wait_for(vec![format!("sandbox: {}", error.message())]);
                self.sandbox_retry.failed();
                false
            }
        }
    }

    /// Sees to the ids of a pod with `hostUsers: false`; tells whether it may go on.
    async fn user_namespace(&mut self, pod: &Arc<Pod>) -> bool {
        if pod.pod_spec().host_users != Some(false) || self.user.is_some() {
            return true;
        }
        if self.sandbox_retry.waits().is_some() {
            return false;
        }
        match self.ids().await {
            Ok(mapping) => {
                self.user = Some(mapping);
                true
            }
            Err(message) => {
                let message = format!("Failed to create pod sandbox: user namespace: {message}");
                self.stages.wait_for(vec![message.clone()]);
                self.shared
                    .recorder
                    .pod(pod, Kind::Warning, "FailedCreatePodSandBox", message);
                self.sandbox_retry.failed();
                false
            }
        }
    }

    async fn ids(&self) -> Result<cri_api::v1::IdMapping, String> {
        let asked = self.shared.cri.status(Default::default()).await;
        let handlers = asked.map_err(|error| error.to_string())?.runtime_handlers;
        let able = |handler: &cri_api::v1::RuntimeHandler| {
            handler.name.is_empty()
                && handler
                    .features
                    .is_some_and(|features| features.user_namespaces)
        };
        if !handlers.iter().any(able) {
            return Err(
                "the runtime does not support user namespaces (hostUsers: false)".to_owned(),
            );
        }
        let (shared, uid) = (self.shared.clone(), self.uid.clone());
        let work =
            tokio::task::spawn_blocking(move || shared.user_ranges.ensure(uid.as_str())).await;
        work.map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())
    }

    pub(super) fn node_setup(&self, pod: &Pod) -> NodeSetup<'_> {
        let config = &self.shared.config;
        let logs = config.pod_log_dir(pod.namespace(), pod.name(), self.uid.as_str());
        NodeSetup {
            node_name: &config.node_name,
            dns: &self.shared.dns,
            seccomp_default: config.seccomp_default,
            cgroup_root: &config.cgroup_root,
            user: self.user,
            log_directory: logs.to_string_lossy().into_owned(),
        }
    }

    /// Says what the pod refers to, so that changes of it wake this worker.
    fn refer(&mut self, pod: &Pod) {
        let references = ObjectCache::references(pod);
        if references != self.references {
            self.shared.objects.refer(&self.uid, &references);
            self.references = references;
        }
    }

    fn volumes_due(&self, pod: &Pod, has_sandbox: bool) -> bool {
        if self.volume_retry.waits().is_some() {
            return false;
        }
        if self.places.is_none() {
            // Before there is a sandbox, its making brings the volumes along.
            return has_sandbox;
        }
        self.token_refresh.is_some_and(|at| at <= Timestamp::now()) || self.inputs_changed(pod)
    }

    fn inputs_changed(&self, pod: &Pod) -> bool {
        let now = self.shared.objects.fingerprint(&self.references);
        self.volume_inputs.as_ref().is_none_or(|known| {
            known.labels != pod.metadata.labels
                || known.annotations != pod.metadata.annotations
                || known.objects != now
        })
    }

    /// Brings the volumes into place or up to date; tells whether they are there.
    async fn volumes(&mut self, pod: &Arc<Pod>) -> bool {
        self.present = self.shared.objects.present(&self.references).await;
        let issued = match self.shared.tokens.issue(pod).await {
            Ok(issued) => issued,
            Err(error) => {
                return self.volumes_failed(
                    pod,
                    format!("MountVolume.SetUp failed : failed to fetch token: {error}"),
                );
            }
        };
        let inputs = VolumeInputs {
            labels: pod.metadata.labels.clone(),
            annotations: pod.metadata.annotations.clone(),
            objects: self.present.fingerprint.clone(),
            token_refresh: issued.refresh_at,
        };
        if self.places.is_some() && self.volume_inputs.as_ref() == Some(&inputs) {
            return true;
        }
        if !self.present.unknown.is_empty() {
            let message = format!(
                "failed to sync object cache: timed out waiting for the condition: {:?}",
                self.present.unknown
            );
            return self.volumes_failed(pod, message);
        }
        let objects = volumes::payload::Objects {
            config_maps: self.present.config_maps.clone(),
            secrets: self.present.secrets.clone(),
            tokens: issued.tokens,
        };
        let (shared, spec) = (self.shared.clone(), pod.clone());
        let stages = self.stages.clone();
        let work = tokio::task::spawn_blocking(move || {
            volumes::set_up(&shared.config, &spec, &objects, &shared.facts)
        });
        let outcome = if self.places.is_none() {
            stages.time("volumes", work).await
        } else {
            work.await
        };
        match outcome {
            Ok(Ok(places)) => {
                self.places = Some(places);
                self.volume_inputs = Some(inputs);
                self.token_refresh = issued.refresh_at;
                self.volume_retry.succeeded();
                true
            }
            Ok(Err(error)) => self.volumes_failed(pod, error.to_string()),
            Err(error) => self.volumes_failed(pod, error.to_string()),
        }
    }

    fn volumes_failed(&mut self, pod: &Pod, message: String) -> bool {
        if self.volume_retry.waits().is_none() {
            self.shared
                .recorder
                .pod(pod, Kind::Warning, "FailedMount", message.clone());
        }
        self.stages.wait_for(vec![format!("volumes: {message}")]);
        self.volume_retry.failed();
        // A pod that has its volumes goes on with what they hold.
        self.places.is_some()
    }

    /// Begins the probes of what runs, ends those of what doesn't, and takes in their results.
    fn probe(&mut self, pod: &Arc<Pod>, runtime: &PodRuntime) {
        let ip = if pod.host_network() {
            self.shared.config.node_ips.first().copied()
        } else {
            runtime.ready_sandbox().and_then(|s| {
                let primary = self
                    .shared
                    .config
                    .node_ips
                    .first()
                    .is_none_or(std::net::IpAddr::is_ipv4);
                s.ips
                    .iter()
                    .find(|ip| ip.is_ipv4() == primary)
                    .or(s.ips.first())
                    .copied()
            })
        };
        let remembered = remembered_probes(pod);
        for container in &runtime.containers {
            let (State::Running { started_at }, Some(spec)) =
                (&container.state, pod.container(&container.name))
            else {
                continue;
            };
            if self.memory.killing.contains(&container.id)
                || self.memory.starting.contains(&container.id)
            {
                continue;
            }
            self.probes.ensure(&Subject {
                pod,
                spec,
                container_id: &container.id,
                pod_ip: ip,
                age: Duration::from_nanos(
                    now_ns().saturating_sub(*started_at).max(0).unsigned_abs(),
                ),
                known: remembered.get(&container.id).copied().unwrap_or_default(),
            });
        }
        let running = |id: &str| {
            runtime
                .containers
                .iter()
                .any(|c| c.id == id && c.is_running())
        };
        let killing = self.memory.killing.clone();
        self.probes
            .retain(|id| running(id) && !killing.contains(id));
        let known = |id: &str| runtime.containers.iter().any(|c| c.id == id);
        self.memory.restarting.retain(|id| known(id));
        self.memory.probes = self.probes.results();
    }

    /// Says of each wait that it has begun, once.
    fn announce_backoffs(&mut self, pod: &Pod, plan: &Plan) {
        for (name, until) in &plan.backing_off {
            if self.announced.insert(name.clone(), *until) == Some(*until) {
                continue;
            }
            let message = format!(
                "Back-off restarting failed container {name} in pod {}",
                pod.described()
            );
            self.shared
                .recorder
                .container(pod, name, Kind::Warning, "BackOff", message);
        }
    }

    fn exceeded_deadline(&mut self, pod: &Pod) -> bool {
        if self.verdict.is_some() {
            return true;
        }
        if self.deadline(pod).is_some_and(|at| at <= Timestamp::now()) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.shared
                .recorder
                .pod(pod, Kind::Normal, "DeadlineExceeded", message);
            self.verdict = Some(Verdict {
                reason: "DeadlineExceeded",
                message: message.into(),
            });
        }
        self.verdict.is_some()
    }

    /// When `activeDeadlineSeconds` run out.
    fn deadline(&self, pod: &Pod) -> Option<Timestamp> {
        let seconds = pod.pod_spec().active_deadline_seconds?;
        let status = pod.status.as_ref();
        let start = status
            .and_then(|s| s.start_time.as_ref())
            .map_or(self.seen_at, |t| t.0);
        start
            .checked_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds))
            .ok()
    }

    fn next_look(&self, pod: &Pod, plan: &Plan) -> Option<Instant> {
        let now = now_ns();
        let at = |ns: i64| Instant::now() + Duration::from_nanos((ns - now).max(0).unsigned_abs());
        let stamp = |t: Timestamp| at(i64::try_from(t.as_nanosecond()).unwrap_or(i64::MAX));
        let failed = self.memory.failed_starts.values().map(|f| at(f.retry_at));
        let others = [
            plan.look_again_at.map(at),
            self.deadline(pod).map(stamp),
            self.token_refresh.map(stamp),
            self.volume_retry.at,
            self.sandbox_retry.at,
        ];
        failed.chain(others.into_iter().flatten()).min()
    }
}
