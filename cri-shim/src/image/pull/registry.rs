//! One pull's conversation with a registry and its mirrors: who is asked in which order, as whom, and how often.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, PROXY_AUTHORIZATION, RANGE, RETRY_AFTER,
    USER_AGENT, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::auth::{Challenge, Credentials};
use super::connect::{self, HttpClient};
use super::hosts::{self, Endpoint};
use super::proxy::Proxies;
use crate::image::digest::Digest;
use crate::image::error::Error;
use crate::image::reference::Reference;

/// Documents are small; more is an attack or a mistake.
pub const DOCUMENT_LIMIT_BYTES: usize = 16 << 20;
/// How often a server that is busy or stumbles is asked again, and how long after at first.
const RETRIES: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(250);
/// The longest that a server may ask us to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// How long a server may take for an answer's head.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 5;
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     */*;q=0.1";

/// A registry as one pull sees it. Clones share what was learnt.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    /// The image's name, for messages.
    image: String,
    domain: String,
    path: String,
    credentials: Credentials,
    hosts: Vec<Host>,
}

struct Host {
    endpoint: Endpoint,
    client: HttpClient,
    proxies: Arc<Proxies>,
    /// The header that it accepted last.
    authorization: Mutex<Option<String>>,
}

/// Why one host gave nothing.
enum Failure {
    /// It has no such thing, or refuses: another may have it.
    Refused(String),
    /// It, or the way to it, is broken for now.
    Broken(String),
}

impl Host {
    /// Asks a server, through a proxy if one is set for its URL.
    async fn request(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        // A tunnel's way is opened with it; a plain request carries it itself.
        let plain = request.uri().scheme_str() == Some("http");
        let proxy = self.proxies.of(request.uri()).filter(|_| plain);
        if let Some(header) = proxy.and_then(|proxy| proxy.authorization.as_ref())
            && let Ok(mut header) = http::HeaderValue::from_str(header)
        {
            header.set_sensitive(true);
            request.headers_mut().insert(PROXY_AUTHORIZATION, header);
        }
        self.client.request(request).await
    }
}

impl Registry {
    /// Prepares to talk to an image's registry.
    ///
    /// # Errors
    /// When a hosts file or an authority's certificate can't be read.
    pub fn open(
        reference: &Reference,
        credentials: Credentials,
        folders: &[PathBuf],
        proxies: &Arc<Proxies>,
    ) -> Result<Self, Error> {
        let failed = |why: String| Error::Pull {
            image: reference.to_string(),
            why,
        };
        let endpoints = hosts::endpoints(&reference.domain, folders)
            .map_err(|error| failed(error.to_string()))?;
        let open = |endpoint: Endpoint| {
            let client =
                connect::client(&endpoint, proxies).map_err(|error| failed(error.to_string()))?;
            Ok(Host {
                proxies: proxies.clone(),
                endpoint,
                client,
                authorization: Mutex::new(None),
            })
        };
        let hosts = endpoints
            .into_iter()
            .map(open)
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Self {
            inner: Arc::new(Inner {
                image: reference.to_string(),
                domain: reference.domain.clone(),
                path: reference.path.clone(),
                credentials,
                hosts,
            }),
        })
    }

    /// An error of this pull.
    pub fn failed(&self, why: impl Into<String>) -> Error {
        Error::Pull {
            image: self.inner.image.clone(),
            why: why.into(),
        }
    }

    /// Registry and repository: downloads of one blob are shared within it.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.inner.domain, self.inner.path)
    }

    /// How many hosts there are to ask.
    pub fn hosts(&self) -> usize {
        self.inner.hosts.len()
    }

    /// A manifest or index by tag or digest.
    ///
    /// # Errors
    /// [`Error::Pull`] with what each host said.
    pub async fn manifest(&self, wanted: &str) -> Result<Vec<u8>, Error> {
        let by_tag = !wanted.contains(':');
        let hosts = self
            .inner
            .hosts
            .iter()
            .filter(|host| host.endpoint.resolves || !by_tag);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, http::HeaderValue::from_static(MANIFESTS));
        let response = self
            .ask(hosts, &format!("manifests/{wanted}"), headers)
            .await?;
        self.read(response).await
    }

    /// A blob from a byte on, of the hosts after the first `skip`.
    ///
    /// # Errors
    /// As [`Registry::manifest`].
    pub async fn blob(
        &self,
        digest: &Digest,
        from: u64,
        skip: usize,
    ) -> Result<Response<Incoming>, Error> {
        let mut headers = HeaderMap::new();
        if from > 0
            && let Ok(range) = format!("bytes={from}-").parse()
        {
            headers.insert(RANGE, range);
        }
        self.ask(
            self.inner.hosts.iter().skip(skip),
            &format!("blobs/{digest}"),
            headers,
        )
        .await
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Vec<u8>, Error> {
        let body = Limited::new(response.into_body(), DOCUMENT_LIMIT_BYTES)
            .collect()
            .await;
        let body = body.map_err(|error| self.failed(format!("read a document: {error}")))?;
        Ok(body.to_bytes().to_vec())
    }

    /// Asks host after host until one has it.
    async fn ask<'a>(
        &self,
        hosts: impl Iterator<Item = &'a Host>,
        what: &str,
        headers: HeaderMap,
    ) -> Result<Response<Incoming>, Error> {
        let mut said = Vec::new();
        for host in hosts {
            match self.ask_host(host, what, &headers).await {
                Ok(response) => return Ok(response),
                Err(Failure::Refused(why) | Failure::Broken(why)) => said.push(why),
            }
        }
        Err(self.failed(said.join("; ")))
    }

    async fn ask_host(
        &self,
        host: &Host,
        what: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, Failure> {
        let mut url = format!("{}/{}/{what}", host.endpoint.base, self.inner.path);
        if host.endpoint.mirror {
            url.push_str(&format!("?ns={}", self.inner.domain));
        }
        let mut wait = BACKOFF;
        for attempt in 0.. {
            let outcome = self.ask_as(host, &url, headers).await;
            let (why, asked) = match outcome {
                Ok(response) if is_busy(response.status()) => {
                    (says(&url, response.status(), ""), retry_after(&response))
                }
                Ok(response) => return accept(&url, response).await,
                Err(Failure::Broken(why)) => (why, None),
                Err(refused) => return Err(refused),
            };
            if attempt == RETRIES {
                return Err(Failure::Broken(why));
            }
            tokio::time::sleep(asked.unwrap_or(wait).mul_f64(rand::random_range(0.8..1.2))).await;
            wait *= 2;
        }
        Err(Failure::Broken(format!("{url}: gave up")))
    }

    /// One request, with the authorization that the host turns out to want.
    async fn ask_as(
        &self,
        host: &Host,
        url: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Incoming>, Failure> {
        let known = host.authorization.lock().await.clone();
        let response = send(host, url, headers, known.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let wanted = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = wanted
            .filter_map(|header| Challenge::parse(header.to_str().ok()?))
            .next();
        let Some(challenge) = challenge else {
            return Ok(response);
        };
        // Whoever else waits for a token of this host's gets this one.
        let mut authorization = host.authorization.lock().await;
        if *authorization == known {
            *authorization = self.authorize(host, &challenge).await?;
        }
        let fresh = authorization.clone();
        drop(authorization);
        if fresh == known || fresh.is_none() {
            return Ok(response);
        }
        send(host, url, headers, fresh.as_deref()).await
    }

    /// The header that answers a challenge; `None` where there is nothing to answer with.
    async fn authorize(
        &self,
        host: &Host,
        challenge: &Challenge,
    ) -> Result<Option<String>, Failure> {
        // A mirror is somebody else: it doesn't get what is for the registry.
        let anonymous = Credentials::Anonymous;
        let credentials = if host.endpoint.mirror {
            &anonymous
        } else {
            &self.inner.credentials
        };
        match (challenge, credentials) {
            (_, Credentials::Bearer(token)) => Ok(Some(format!("Bearer {token}"))),
            (Challenge::Basic, credentials) => Ok(credentials.basic_header()),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                credentials,
            ) => {
                let own = format!("repository:{}:pull", self.inner.path);
                let scope = if scope.is_empty() { &own } else { scope };
                let token = fetch_token(host, realm, service, scope, credentials).await?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }
}

/// What a token server answers.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

async fn fetch_token(
    host: &Host,
    realm: &str,
    service: &str,
    scope: &str,
    credentials: &Credentials,
) -> Result<String, Failure> {
    let mut parameters = vec![("service", service), ("scope", scope)];
    let request = Request::builder().header(USER_AGENT, user_agent());
    let request = if let Credentials::Identity(refresh) = credentials {
        parameters.extend([
            ("grant_type", "refresh_token"),
            ("client_id", "orlop"),
            ("refresh_token", refresh),
        ]);
        let form = Full::new(Bytes::from(encode(&parameters)));
        request
            .method(Method::POST)
            .uri(realm)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form)
    } else {
        let separator = if realm.contains('?') { '&' } else { '?' };
        let mut request = request.uri(format!("{realm}{separator}{}", encode(&parameters)));
        if let Some(basic) = credentials.basic_header() {
            request = request.header(AUTHORIZATION, basic);
        }
        request.body(Full::default())
    };
    let request =
        request.map_err(|error| Failure::Refused(format!("token server {realm}: {error}")))?;
    let broken = |why: String| Failure::Broken(format!("token server {realm}: {why}"));
    let answer = tokio::time::timeout(ANSWER_PATIENCE, host.request(request)).await;
    let answer = answer
        .map_err(|_| broken("no answer".into()))?
        .map_err(|error| broken(chain(&error)))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), DOCUMENT_LIMIT_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| broken(error.to_string()))?.to_bytes();
    if !status.is_success() {
        return Err(Failure::Refused(says(realm, status, &message(&body))));
    }
    let token: Token = serde_json::from_slice(&body)
        .map_err(|error| broken(format!("malformed answer: {error}")))?;
    Ok(if token.token.is_empty() {
        token.access_token
    } else {
        token.token
    })
}

/// A GET that follows redirects. Another host isn't shown what is for this one.
async fn send(
    host: &Host,
    url: &str,
    headers: &HeaderMap,
    authorization: Option<&str>,
) -> Result<Response<Incoming>, Failure> {
    let refused = |error: http::Error| Failure::Refused(format!("{url}: {error}"));
    let first: Uri = url
        .parse()
        .map_err(|error| Failure::Refused(format!("{url}: {error}")))?;
    let mut uri = first.clone();
    for _ in 0..=REDIRECTS {
        let mut request = Request::builder()
            .uri(&uri)
            .header(USER_AGENT, user_agent());
        let itself = uri.authority() == first.authority();
        if let Some(own) = request.headers_mut() {
            own.extend(headers.clone());
            if itself {
                own.extend(host.endpoint.headers.clone());
            }
        }
        if let Some(authorization) = authorization.filter(|_| itself) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::default()).map_err(refused)?;
        let broken = |why: String| Failure::Broken(format!("{url}: {why}"));
        let answer = tokio::time::timeout(ANSWER_PATIENCE, host.request(request)).await;
        let answer = answer
            .map_err(|_| broken("no answer".into()))?
            .map_err(|error| broken(chain(&error)))?;
        let location = answer
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok());
        match location.filter(|_| answer.status().is_redirection()) {
            Some(location) => {
                uri =
                    redirect(&uri, location).ok_or_else(|| broken("a malformed redirect".into()))?
            }
            None => return Ok(answer),
        }
    }
    Err(Failure::Refused(format!("{url}: too many redirects")))
}

/// Where a `Location` leads from `uri`. From TLS it never leads to plain text.
fn redirect(uri: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        let to: Uri = location.parse().ok()?;
        let downgrade = uri.scheme_str() == Some("https") && to.scheme_str() != Some("https");
        return (!downgrade).then_some(to);
    }
    let path = location.parse::<http::uri::PathAndQuery>().ok()?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).ok()
}

async fn accept(url: &str, response: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), DOCUMENT_LIMIT_BYTES)
        .collect()
        .await;
    let said = body
        .map(|body| message(&body.to_bytes()))
        .unwrap_or_default();
    Err(Failure::Refused(says(url, status, &said)))
}

fn is_busy(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

fn says(url: &str, status: StatusCode, message: &str) -> String {
    let what = match status {
        StatusCode::NOT_FOUND => "not found",
        StatusCode::UNAUTHORIZED => "authorization failed: no or wrong credentials",
        StatusCode::FORBIDDEN => "access denied",
        _ => status.canonical_reason().unwrap_or("refused"),
    };
    let code = status.as_u16();
    if message.is_empty() {
        format!("{url}: {what} ({code})")
    } else {
        format!("{url}: {what} ({code}): {message}")
    }
}

/// The words of a registry's error document.
fn message(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let errors = document["errors"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let words: Vec<&str> = errors
        .iter()
        .filter_map(|error| error["message"].as_str())
        .collect();
    words.join(", ").chars().take(300).collect()
}

/// An error with its causes: the outermost says only that the request failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn user_agent() -> &'static str {
    concat!("orlop/", env!("CARGO_PKG_VERSION"))
}

/// `application/x-www-form-urlencoded`.
fn encode(parameters: &[(&str, &str)]) -> String {
    let escape = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect()
    };
    parameters
        .iter()
        .map(|(key, value)| format!("{key}={}", escape(value)))
        .collect::<Vec<_>>()
        .join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_stays_encrypted() {
        let from: Uri = "https://a.example/v2/x".parse().unwrap();
        assert_eq!(
            redirect(&from, "https://b.example/y").unwrap(),
            "https://b.example/y"
        );
        assert_eq!(
            redirect(&from, "/z?q=1").unwrap(),
            "https://a.example/z?q=1"
        );
        assert_eq!(redirect(&from, "http://b.example/y"), None);
    }

    #[test]
    fn parameters_are_escaped() {
        assert_eq!(
            encode(&[("scope", "repository:a/b:pull")]),
            "scope=repository%3Aa%2Fb%3Apull"
        );
    }
}
