//! Service account tokens for projected volumes: asked for by TokenRequest, bound to the pod, replaced in time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, PostParams};

use crate::ids::PodUid;
use crate::pod::PodExt;
use crate::volumes::payload;

const HOUR: i64 = 3600;

#[derive(Clone)]
struct Token {
    text: String,
    refresh_at: Timestamp,
    expires_at: Timestamp,
}

type Key = (PodUid, String, String);

/// The tokens of this node's pods. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    client: kube::Client,
    tokens: Arc<Mutex<HashMap<Key, Token>>>,
}

/// A pod's tokens, by volume and path.
#[derive(Default)]
pub struct Issued {
    /// The tokens.
    pub tokens: HashMap<(String, String), String>,
    /// When the first of them is to be replaced.
    pub refresh_at: Option<Timestamp>,
}

impl Tokens {
    /// Tokens that `client`'s API server issues.
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            tokens: Arc::default(),
        }
    }

    /// All tokens that a pod's volumes need; those that are due are replaced. An old one that still holds does when
    /// the API server doesn't answer.
    pub async fn issue(&self, pod: &Pod) -> Result<Issued, String> {
        let mut issued = Issued::default();
        for (volume, projection) in payload::token_projections(pod) {
            let key = (pod.uid(), volume.to_owned(), projection.path.clone());
            let known = self.lock().get(&key).cloned();
            let now = Timestamp::now();
            let token = match known {
                Some(token) if token.refresh_at > now => token,
                known => match (
                    self.request(
                        pod,
                        projection.audience.as_deref(),
                        projection.expiration_seconds,
                    )
                    .await,
                    known,
                ) {
                    (Ok(token), _) => token,
                    (Err(error), Some(old)) if old.expires_at > now => {
                        tracing::warn!(
                            pod = pod.described(),
                            error,
                            "replace service account token"
                        );
                        Token {
                            refresh_at: now + SignedDuration::from_secs(10),
                            ..old
                        }
                    }
                    (Err(error), _) => return Err(error),
                },
            };
            let first = issued
                .refresh_at
                .map_or(token.refresh_at, |t: Timestamp| t.min(token.refresh_at));
            issued.refresh_at = Some(first);
            issued
                .tokens
                .insert((key.1.clone(), key.2.clone()), token.text.clone());
            self.lock().insert(key, token);
        }
        Ok(issued)
    }

    /// Forgets a pod's tokens.
    pub fn forget(&self, uid: &PodUid) {
        self.lock().retain(|(of, _, _), _| of != uid);
    }

    async fn request(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        seconds: Option<i64>,
    ) -> Result<Token, String> {
        let account = pod
            .pod_spec()
            .service_account_name
            .as_deref()
            .unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod.namespace());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience
                    .filter(|a| !a.is_empty())
                    .map(|a| vec![a.to_owned()]),
                expiration_seconds: Some(seconds.unwrap_or(HOUR)),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name().into()),
                    uid: Some(pod.uid().as_str().into()),
                }),
            }),
            ..TokenRequest::default()
        };
        let asked_at = Timestamp::now();
        let reply: TokenRequest = api
            .create_subresource("token", account, &PostParams::default(), &request)
            .await
            .map_err(|error| error.to_string())?;
        let status = reply.status.unwrap_or_default();
        let text = status
            .token
            .filter(|t| !t.is_empty())
            .ok_or("the reply has no token")?;
        let expires_at = status
            .expiration_timestamp
            .map_or(asked_at + SignedDuration::from_hours(1), |t| t.0);
        Ok(Token {
            text,
            refresh_at: refresh_at(asked_at, expires_at),
            expires_at,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After 80 % of its life, at most a day; a little earlier or later for each, so that not all come at once.
fn refresh_at(from: Timestamp, until: Timestamp) -> Timestamp {
    let life = until.duration_since(from).as_secs().max(0);
    let early = rand::random_range(0..=10);
    let after = (life * 8 / 10).min(24 * HOUR) - early;
    from + SignedDuration::from_secs(after.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_after_four_fifths_of_its_life() {
        let from = Timestamp::from_second(1_000_000).expect("a time");
        let due = refresh_at(from, from + SignedDuration::from_secs(1000))
            .duration_since(from)
            .as_secs();
        assert!((790..=800).contains(&due), "{due}");
        let due = refresh_at(from, from + SignedDuration::from_hours(1000))
            .duration_since(from)
            .as_secs();
        assert!(due <= 24 * HOUR);
    }
}
