//! Service account tokens: JWTs that the API server signs, bound to a ServiceAccount and, mostly, to a Pod.

use std::collections::HashSet;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::User;
use crate::apiserver::cache::Cache;
use crate::apiserver::object::Object;

/// Issues and checks tokens.
pub struct Tokens {
    issuer: String,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    public_key: String,
}

/// Why a token is refused. Says nothing of the token itself.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("read the signing key: {0}")]
    Key(jsonwebtoken::errors::Error),
    #[error("verify a service account token: {0}")]
    Jwt(#[from] jsonwebtoken::errors::Error),
    #[error("verify a token of {namespace}/{name}: {kind} {object:?} is gone")]
    Gone {
        namespace: String,
        name: String,
        kind: &'static str,
        object: String,
    },
}

/// What a token says (RFC 7519, and Kubernetes' private claims).
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
    nbf: i64,
    sub: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
}

/// An object by name and uid.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

/// What a token is asked for.
pub struct Request<'a> {
    pub namespace: &'a str,
    pub account: Reference,
    pub pod: Option<Reference>,
    pub secret: Option<Reference>,
    /// The node that the pod is on.
    pub node: Option<Reference>,
    /// Who may accept it; empty for the API server itself.
    pub audiences: Vec<String>,
    pub seconds: i64,
}

impl Tokens {
    /// # Errors
    /// When the keys are not an ECDSA P-256 pair in PEM.
    pub fn new(issuer: String, private_key: &str, public_key: &str) -> Result<Self, TokenError> {
        let signing = EncodingKey::from_ec_pem(private_key.as_bytes()).map_err(TokenError::Key)?;
        let verifying = DecodingKey::from_ec_pem(public_key.as_bytes()).map_err(TokenError::Key)?;
        let key_id = hex::encode(Sha256::digest(public_key.as_bytes()));
        Ok(Self {
            issuer,
            key_id,
            signing,
            verifying,
            public_key: public_key.to_owned(),
        })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The key that others verify tokens with (RFC 7517), `None` when it is not the kind that it should be.
    pub fn key_set(&self) -> Option<Value> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.public_key.as_bytes()).ok()?;
        // The end of a P-256 key's DER is its point: 4, and two coordinates of 32 bytes.
        let [4, point @ ..] = pem.contents.get(pem.contents.len().checked_sub(65)?..)? else {
            return None;
        };
        let (x, y) = point.split_at(32);
        let key = json!({
            "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.key_id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        Some(json!({"keys": [key]}))
    }

    /// Signs a token; returns it with the audiences that it has.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(&self, request: Request<'_>) -> Result<(String, Vec<String>), TokenError> {
        let now = jiff::Timestamp::now().as_second();
        let audiences = if request.audiences.is_empty() {
            vec![self.issuer.clone()]
        } else {
            request.audiences
        };
        let claims = Claims {
            aud: audiences.clone(),
            exp: now + request.seconds,
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!(
                "system:serviceaccount:{}:{}",
                request.namespace, request.account.name
            ),
            nbf: now,
            kubernetes: Bound {
                namespace: request.namespace.to_owned(),
                node: request.node,
                pod: request.pod,
                secret: request.secret,
                serviceaccount: request.account,
            },
        };
        let header = Header {
            kid: Some(self.key_id.clone()),
            ..Header::new(Algorithm::ES256)
        };
        Ok((
            jsonwebtoken::encode(&header, &claims, &self.signing)?,
            audiences,
        ))
    }

    /// The user that a token speaks for. `audiences`: one of them must be the token's; empty for this server.
    ///
    /// # Errors
    /// When the token is not signed by this cluster, is out of date, is for others, or what it is bound to is gone.
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        cache: &Cache,
    ) -> Result<User, TokenError> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_nbf = true;
        let own = [self.issuer.clone()];
        let audiences = if audiences.is_empty() {
            &own
        } else {
            audiences
        };
        validation.aud = Some(audiences.iter().cloned().collect::<HashSet<_>>());
        validation.set_issuer(&[&self.issuer]);
        let claims: Claims = jsonwebtoken::decode(token, &self.verifying, &validation)?.claims;
        let bound = &claims.kubernetes;
        let gone = |kind, object: &Reference| TokenError::Gone {
            namespace: bound.namespace.clone(),
            name: bound.serviceaccount.name.clone(),
            kind,
            object: object.name.clone(),
        };
        let objects = [
            ("serviceaccounts", Some(&bound.serviceaccount)),
            ("pods", bound.pod.as_ref()),
            ("secrets", bound.secret.as_ref()),
        ];
        for (resource, reference) in objects {
            if let Some(reference) = reference
                && !exists(cache, resource, &bound.namespace, reference)
            {
                return Err(gone(resource, reference));
            }
        }
        Ok(user(&claims))
    }
}

fn exists(cache: &Cache, resource: &str, namespace: &str, reference: &Reference) -> bool {
    let found = cache
        .resource("", "v1", resource)
        .and_then(|r| r.get(namespace, &reference.name));
    found.is_some_and(|object: Arc<Object>| api::object::uid(&object.value()) == reference.uid)
}

fn user(claims: &Claims) -> User {
    let bound = &claims.kubernetes;
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{}", bound.namespace),
    ];
    let mut user = User::authenticated(&claims.sub, groups);
    user.uid.clone_from(&bound.serviceaccount.uid);
    let mut extra = |key: &str, value: &str| {
        user.extra.push((
            format!("authentication.kubernetes.io/{key}"),
            vec![value.to_owned()],
        ));
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    for (kind, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(reference) = reference {
            extra(&format!("{kind}-name"), &reference.name);
            extra(&format!("{kind}-uid"), &reference.uid);
        }
    }
    user
}

/// The `boundObjectRef` of a TokenRequest as a reference with its kind.
pub fn bound_object(request: &Value) -> Option<(&str, Reference)> {
    let reference = &request["spec"]["boundObjectRef"];
    let text = |field: &str| reference[field].as_str().unwrap_or_default().to_owned();
    Some((
        reference["kind"].as_str()?,
        Reference {
            name: text("name"),
            uid: text("uid"),
        },
    ))
}

/// Discovery for others that verify tokens (OpenID Connect Discovery 1.0).
pub fn openid_configuration(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}
