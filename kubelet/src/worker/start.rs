//! Starting one container: image, environment, mounts, create, start, postStart.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri_api::v1;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use super::{Worker, now_ns};
use crate::hooks;
use crate::images::Ready;
use crate::plan::{FailedStart, Kill, Start, backoff};
use crate::pod::{ContainerExt, PodExt};
use crate::recorder::Kind;
use crate::runtime::view::Sandbox;
use crate::spec::container::{Ingredients, container_config};
use crate::spec::sandbox::sandbox_config;
use crate::spec::{env, hosts};
use crate::volumes::{ContainerMounts, container_mounts};

impl Worker {
    /// Starts a container; tells whether it runs. If not, the reason is remembered for the status.
    pub(super) async fn start_container(
        &mut self,
        pod: &Arc<Pod>,
        sandbox: &Sandbox,
        start: &Start,
    ) -> bool {
        let Some(spec) = pod.container(&start.name).cloned() else {
            return true;
        };
        if let Some(ended) = start.previous_end {
            self.memory.backoff.next(&start.name, ended, now_ns());
        }
        match self
            .try_start(pod, &spec, sandbox, start.restart_count)
            .await
        {
            Ok(()) => {
                self.memory.failed_starts.remove(&start.name);
                true
            }
            Err(failed) => {
                tracing::info!(
                    pod = pod.described(),
                    container = start.name,
                    reason = failed.reason,
                    message = failed.message,
                    "container not started"
                );
                self.memory.failed_starts.insert(start.name.clone(), failed);
                false
            }
        }
    }

    async fn try_start(
        &mut self,
        pod: &Arc<Pod>,
        spec: &Spec,
        sandbox: &Sandbox,
        restart_count: u32,
    ) -> Result<(), FailedStart> {
        let shared = self.shared.clone();
        let stages = self.stages.clone();
        let sandbox_config = sandbox_config(pod, sandbox.attempt, &self.node_setup(pod));
        let image = shared
            .images
            .ensure(pod, spec, &self.present.secrets, &sandbox_config);
        let image = stages.time(format!("image {}", spec.name), image).await?;
        let (config, _held) = self
            .config(pod, spec, sandbox, restart_count, &image)
            .await?;
        let log_path = config.log_path.clone();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let made = stages
            .time(
                format!("create {}", spec.name),
                shared.cri.create_container(request),
            )
            .await;
        let id = made
            .map_err(|error| self.failed(pod, spec, "CreateContainerError", error.message()))?
            .container_id;
        shared.recorder.container(
            pod,
            &spec.name,
            Kind::Normal,
            "Created",
            "Container created",
        );
        self.link_log(pod, spec, &id, &log_path);
        let has_hook = spec
            .lifecycle
            .as_ref()
            .is_some_and(|l| l.post_start.is_some());
        if has_hook {
            self.memory.starting.insert(id.clone());
        }
        let started = stages
            .time(
                format!("start {}", spec.name),
                shared.cri.start_container(&id),
            )
            .await;
        if let Err(error) = shared
            .cache
            .refresh_container(&self.uid, &sandbox.id, &id)
            .await
        {
            tracing::debug!(%error, "status of a container just started");
        }
        started.map_err(|error| self.failed(pod, spec, "RunContainerError", error.message()))?;
        shared.recorder.container(
            pod,
            &spec.name,
            Kind::Normal,
            "Started",
            "Container started",
        );
        if has_hook {
            self.post_start(pod, spec, sandbox, &id).await?;
        }
        Ok(())
    }

    async fn post_start(
        &mut self,
        pod: &Arc<Pod>,
        spec: &Spec,
        sandbox: &Sandbox,
        id: &str,
    ) -> Result<(), FailedStart> {
        let Some(handler) = spec.lifecycle.as_ref().and_then(|l| l.post_start.clone()) else {
            return Ok(());
        };
        let runtime = self.runtime(pod);
        self.show(pod, &runtime, &Default::default(), false);
        let outcome = hooks::run(
            &self.shared.cri,
            &handler,
            spec,
            id,
            sandbox.ips.first().copied(),
        )
        .await;
        self.memory.starting.remove(id);
        let Err(message) = outcome else {
            return Ok(());
        };
        self.shared.recorder.container(
            pod,
            &spec.name,
            Kind::Warning,
            "FailedPostStartHook",
            format!("PostStartHook failed: {message}"),
        );
        let kill = Kill {
            id: id.to_owned(),
            name: spec.name.clone(),
            message: "FailedPostStartHook".into(),
            grace_seconds: None,
        };
        self.begin_kill(pod, &kill);
        Err(FailedStart {
            reason: "PostStartHookError",
            message,
            retry_at: now_ns() + backoff::INITIAL,
            retry_on_wake: true,
        })
    }

    fn failed(&self, pod: &Pod, spec: &Spec, reason: &'static str, message: &str) -> FailedStart {
        self.shared.recorder.container(
            pod,
            &spec.name,
            Kind::Warning,
            "Failed",
            format!("Error: {message}"),
        );
        FailedStart {
            reason,
            message: message.to_owned(),
            retry_at: now_ns() + backoff::INITIAL,
            retry_on_wake: reason == "CreateContainerConfigError",
        }
    }

    async fn config(
        &mut self,
        pod: &Arc<Pod>,
        spec: &Spec,
        sandbox: &Sandbox,
        restart_count: u32,
        image: &Ready,
    ) -> Result<(v1::ContainerConfig, ContainerMounts), FailedStart> {
        const CONFIG_ERROR: &str = "CreateContainerConfigError";
        self.present = self.shared.objects.present(&self.references).await;
        let ips: Vec<String> = if pod.host_network() {
            &self.shared.config.node_ips
        } else {
            &sandbox.ips
        }
        .iter()
        .map(ToString::to_string)
        .collect();
        let sources = env::Sources {
            config_maps: self.present.config_maps.clone(),
            secrets: self.present.secrets.clone(),
            services: self.shared.services.variables(pod).await,
            pod_ips: &ips,
        };
        let env = env::environment(pod, spec, &self.shared.facts, &sources)
            .map_err(|error| self.failed(pod, spec, CONFIG_ERROR, &error.to_string()))?;
        let mounts = self.mounts(pod, spec, &env, &ips, restart_count).await;
        let mut mounts = mounts.map_err(|error| self.failed(pod, spec, CONFIG_ERROR, &error))?;
        let config = container_config(
            pod,
            spec,
            Ingredients {
                restart_count,
                env,
                mounts: std::mem::take(&mut mounts.mounts),
                image_ref: image.reference.clone(),
                image_user: &image.user,
                user: self.user,
                seccomp_default: self.shared.config.seccomp_default,
                node_memory: self.shared.node_memory,
                cgroup_unified: self.shared.cgroup_unified,
            },
        )
        .map_err(|error| self.failed(pod, spec, CONFIG_ERROR, &error.to_string()))?;
        Ok((config, mounts))
    }

    async fn mounts(
        &self,
        pod: &Arc<Pod>,
        spec: &Spec,
        env: &[(String, Vec<u8>)],
        ips: &[String],
        restart_count: u32,
    ) -> Result<ContainerMounts, String> {
        let places = self.places.clone().unwrap_or_default();
        let (pod, spec, env, ips) = (pod.clone(), spec.clone(), env.to_vec(), ips.to_vec());
        let pod_dir = self.shared.config.pod_dir(self.uid.as_str());
        let domain = self.shared.config.cluster_domain.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut all = container_mounts(&spec, &places, env::lookup(&env))
                .map_err(|error| error.to_string())?;
            let wanted = |path: &str| !all.mounts.iter().any(|m| m.container_path == path);
            let hosts_wanted = wanted("/etc/hosts");
            if hosts_wanted {
                let path = write_hosts(&pod_dir, &pod, &ips, &domain)
                    .map_err(|error| format!("write /etc/hosts: {error}"))?;
                all.mounts.push(bind("/etc/hosts", &path));
            }
            let path = termination_log(&pod_dir, &spec.name, restart_count)
                .map_err(|error| format!("make termination log: {error}"))?;
            all.mounts
                .push(bind(spec.termination_message_path(), &path));
            Ok(all)
        });
        work.await.map_err(|error| error.to_string())?
    }

    /// `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`, for log collectors.
    fn link_log(&self, pod: &Pod, spec: &Spec, id: &str, log_path: &str) {
        let config = &self.shared.config;
        let target = config
            .pod_log_dir(pod.namespace(), pod.name(), self.uid.as_str())
            .join(log_path);
        let link = log_link(
            &config.container_logs_dir,
            pod.namespace(),
            pod.name(),
            &spec.name,
            id,
        );
        let made = std::fs::create_dir_all(&config.container_logs_dir)
            .and_then(|()| std::os::unix::fs::symlink(&target, &link));
        if let Err(error) = made {
            tracing::warn!(link = %link.display(), %error, "link a container's log");
        }
    }
}

pub(super) fn log_link(
    folder: &Path,
    namespace: &str,
    pod: &str,
    container: &str,
    id: &str,
) -> PathBuf {
    folder.join(format!("{pod}_{namespace}_{container}-{id}.log"))
}

fn bind(container_path: &str, host_path: &Path) -> v1::Mount {
    v1::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..v1::Mount::default()
    }
}

fn write_hosts(
    pod_dir: &Path,
    pod: &Pod,
    ips: &[String],
    domain: &str,
) -> std::io::Result<PathBuf> {
    let text = if pod.host_network() {
        hosts::node_hosts(
            pod,
            &std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        )
    } else {
        hosts::pod_hosts(pod, ips, domain)
    };
    std::fs::create_dir_all(pod_dir)?;
    let path = pod_dir.join("etc-hosts");
    // Running containers have this very file: it is written in place.
    if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    }
    Ok(path)
}

/// A file for one instance's last words; those of the instance before last are removed.
fn termination_log(
    pod_dir: &Path,
    container: &str,
    restart_count: u32,
) -> std::io::Result<PathBuf> {
    let folder = pod_dir.join("containers").join(container);
    std::fs::create_dir_all(&folder)?;
    if let Some(old) = restart_count.checked_sub(2) {
        let _ = std::fs::remove_file(folder.join(old.to_string()));
    }
    let path = folder.join(restart_count.to_string());
    std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o666)
        .open(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    Ok(path)
}
