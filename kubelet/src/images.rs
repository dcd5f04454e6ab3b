//! Having a container's image on the node (`imagePullPolicy`), with upstream's events, reasons and back-off.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use cri_api::v1;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::image_name;
use crate::plan::FailedStart;
use crate::plan::backoff::{self, Backoffs};
use crate::pod::{ContainerExt, PodExt, PullPolicy};
use crate::recorder::{Kind, Recorder};
use crate::runtime::{Cri, image_spec};
use crate::spec::security::ImageUser;

/// Pulls that run at once.
const PARALLEL_PULLS: usize = 5;

/// An image that is on the node.
pub struct Ready {
    /// The id by which a container is made of it.
    pub reference: String,
    /// The image's own user.
    pub user: ImageUser,
}

/// Has images on the node. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    cri: Cri,
    recorder: Recorder,
    pulls: Arc<Semaphore>,
    failures: Arc<Mutex<Failures>>,
}

#[derive(Default)]
struct Failures {
    backoffs: Backoffs,
    /// When each image last failed, by pod and image.
    at: HashMap<String, (i64, String)>,
}

impl Images {
    /// Images of `cri`'s node.
    pub fn new(cri: Cri, recorder: Recorder) -> Self {
        Self {
            cri,
            recorder,
            pulls: Arc::new(Semaphore::new(PARALLEL_PULLS)),
            failures: Arc::default(),
        }
    }

    /// Has the image of a container, pulled if its policy says so.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        secrets: &HashMap<String, Arc<Secret>>,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<Ready, FailedStart> {
        let name = container.image.as_deref().unwrap_or_default();
        if let Some(problem) = image_name::problem(name) {
            let message = format!(
                "Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: {problem}"
            );
            self.recorder.container(
                pod,
                &container.name,
                Kind::Warning,
                "InspectFailed",
                message.clone(),
            );
            return Err(failed("InvalidImageName", message, backoff::INITIAL));
        }
        let policy = container.pull_policy();
        let present = self.cri.image_status(name).await.map_err(|error| {
            self.recorder.container(
                pod,
                &container.name,
                Kind::Warning,
                "Failed",
                format!("Failed to inspect image {name:?}: {}", error.message()),
            );
            failed(
                "ImageInspectError",
                format!("Failed to inspect image {name:?}: {}", error.message()),
                backoff::INITIAL,
            )
        })?;
        match (policy, present) {
            (PullPolicy::Never, None) => {
                let message =
                    format!("Container image {name:?} is not present with pull policy of Never");
                self.recorder.container(
                    pod,
                    &container.name,
                    Kind::Warning,
                    "ErrImageNeverPull",
                    message.clone(),
                );
                Err(failed("ErrImageNeverPull", message, backoff::INITIAL))
            }
            (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => {
                let message = format!(
                    "Container image {name:?} already present on machine and can be accessed by the pod"
                );
                self.recorder
                    .container(pod, &container.name, Kind::Normal, "Pulled", message);
                Ok(ready(image))
            }
            _ => self.pull(pod, container, name, secrets, sandbox).await,
        }
    }

    async fn pull(
        &self,
        pod: &Pod,
        container: &Container,
        name: &str,
        secrets: &HashMap<String, Arc<Secret>>,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<Ready, FailedStart> {
        let key = format!("{}/{name}", pod.uid());
        if let Some(waiting) = self.backing_off(&key, name) {
            self.recorder.container(
                pod,
                &container.name,
                Kind::Normal,
                "BackOff",
                waiting.message.clone(),
            );
            return Err(waiting);
        }
        self.recorder.container(
            pod,
            &container.name,
            Kind::Normal,
            "Pulling",
            format!("Pulling image {name:?}"),
        );
        let begun = Instant::now();
        // The semaphore is never closed.
        let _permit = self.pulls.acquire().await;
        let waited = begun.elapsed();
        let pulled = self
            .pull_with_credentials(name, credentials(pod, name, secrets), sandbox)
            .await;
        match pulled {
            Ok(()) => {
                self.failures().backoffs.reset(&key);
                self.failures().at.remove(&key);
                let image = self
                    .cri
                    .image_status(name)
                    .await
                    .ok()
                    .flatten()
                    .unwrap_or_default();
                let took = begun.elapsed();
                let message = format!(
                    "Successfully pulled image {name:?} in {:?} ({took:?} including waiting). Image size: {} bytes.",
                    took - waited,
                    image.size
                );
                self.recorder
                    .container(pod, &container.name, Kind::Normal, "Pulled", message);
                Ok(ready(image))
            }
            Err(error) => {
                self.recorder.container(
                    pod,
                    &container.name,
                    Kind::Warning,
                    "Failed",
                    format!("Failed to pull image {name:?}: {error}"),
                );
                self.recorder.container(
                    pod,
                    &container.name,
                    Kind::Warning,
                    "Failed",
                    "Error: ErrImagePull",
                );
                Err(self.note_failure(&key, error))
            }
        }
    }

    async fn pull_with_credentials(
        &self,
        name: &str,
        credentials: Vec<Option<v1::AuthConfig>>,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<(), String> {
        let mut errors = Vec::new();
        for auth in credentials {
            let request = v1::PullImageRequest {
                image: Some(image_spec(name)),
                auth,
                sandbox_config: Some(sandbox.clone()),
            };
            match self.cri.pull_image(request).await {
                Ok(_) => return Ok(()),
                Err(error) => errors.push(error.message().to_owned()),
            }
        }
        Err(errors.join("; "))
    }

    fn backing_off(&self, key: &str, name: &str) -> Option<FailedStart> {
        let failures = self.failures();
        let (failed_at, error) = failures.at.get(key)?;
        let until = failures.backoffs.until(key, *failed_at)?;
        (until > now()).then(|| FailedStart {
            reason: "ImagePullBackOff",
            message: format!("Back-off pulling image {name:?}: ErrImagePull: {error}"),
            retry_at: until,
            retry_on_wake: false,
        })
    }

    /// The first sight of the failure is ErrImagePull; a second later it shows as the back-off that it is.
    fn note_failure(&self, key: &str, error: String) -> FailedStart {
        let now = now();
        let mut failures = self.failures();
        failures.backoffs.next(key, now, now);
        failures.at.insert(key.to_owned(), (now, error.clone()));
        failed("ErrImagePull", error, 1_000_000_000)
    }

    /// Forgets a pod's failures.
    pub fn forget(&self, pod_uid: &str) {
        let prefix = format!("{pod_uid}/");
        let mut failures = self.failures();
        let keys: Vec<String> = failures
            .at
            .keys()
            .filter(|k| k.starts_with(&prefix))
            .cloned()
            .collect();
        for key in keys {
            failures.at.remove(&key);
            failures.backoffs.reset(&key);
        }
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

fn failed(reason: &'static str, message: String, retry_in: i64) -> FailedStart {
    FailedStart {
        reason,
        message,
        retry_at: now() + retry_in,
        retry_on_wake: false,
    }
}

fn ready(image: v1::Image) -> Ready {
    Ready {
        reference: image.id,
        user: ImageUser {
            uid: image.uid.map(|uid| uid.value),
            name: image.username,
        },
    }
}

/// What to try a pull with: each fitting entry of the pod's pull secrets; without any, nothing.
fn credentials(
    pod: &Pod,
    image: &str,
    secrets: &HashMap<String, Arc<Secret>>,
) -> Vec<Option<v1::AuthConfig>> {
    let names = pod
        .pod_spec()
        .image_pull_secrets
        .iter()
        .flatten()
        .map(|r| &r.name);
    let mut found: Vec<Option<v1::AuthConfig>> = names
        .filter_map(|name| secrets.get(name))
        .flat_map(|secret| of_secret(secret, image))
        .map(Some)
        .collect();
    if found.is_empty() {
        found.push(None);
    }
    found
}

fn of_secret(secret: &Secret, image: &str) -> Vec<v1::AuthConfig> {
    let data = secret.data.as_ref();
    let modern = data.and_then(|d| d.get(".dockerconfigjson"));
    let old = data.and_then(|d| d.get(".dockercfg"));
    let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    let auths = match (modern, old) {
        (Some(bytes), _) => parse(&bytes.0).and_then(|v| v.get("auths").cloned()),
        (None, Some(bytes)) => parse(&bytes.0),
        (None, None) => None,
    };
    let Some(serde_json::Value::Object(auths)) = auths else {
        return Vec::new();
    };
    auths
        .iter()
        .filter(|(server, _)| serves(server, image))
        .map(|(server, entry)| auth_config(server, entry))
        .collect()
}

/// Whether an entry of a docker configuration is for an image: by host, and by path if it has one.
fn serves(server: &str, image: &str) -> bool {
    let server = server
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let (host, path) = server.split_once('/').unwrap_or((server, ""));
    let first = image.split('/').next().unwrap_or_default();
    let has_host =
        image.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    let (image_host, image_path) = match has_host {
        true => image.split_once('/').unwrap_or((image, "")),
        false => ("docker.io", image),
    };
    let hub = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let same_host = host == image_host || (hub(host) && hub(image_host));
    let path = path.trim_end_matches('/');
    same_host && (path.is_empty() || path == "v1" || path == "v2" || image_path.starts_with(path))
}

fn auth_config(server: &str, entry: &serde_json::Value) -> v1::AuthConfig {
    let text = |key: &str| {
        entry
            .get(key)
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let mut config = v1::AuthConfig {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        server_address: server.to_owned(),
        auth: String::new(),
    };
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(text("auth"))
        .unwrap_or_default();
    if let Some((user, password)) = String::from_utf8_lossy(&decoded).split_once(':') {
        config.username = user.to_owned();
        config.password = password.trim_end_matches('\0').to_owned();
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_fit_by_host_and_path() {
        assert!(serves("https://index.docker.io/v1/", "library/busybox"));
        assert!(serves(
            "registry.example:5000",
            "registry.example:5000/a/b:1"
        ));
        assert!(serves("registry.example/team", "registry.example/team/x"));
        assert!(!serves("registry.example/team", "registry.example/other/x"));
        assert!(!serves("registry.example", "other.example/x"));
    }

    #[test]
    fn a_docker_configuration_gives_user_and_password() {
        let config = auth_config("r", &serde_json::json!({"auth": "dTpwOnE="}));
        assert_eq!(
            (config.username.as_str(), config.password.as_str()),
            ("u", "p:q")
        );
    }
}
