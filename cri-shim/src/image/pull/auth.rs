//! What a registry wants to see (RFC 7617 Basic, distribution-spec's token flow), and what CRI hands over.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cri_api::v1::AuthConfig;

/// One pull's credentials. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None: what is public.
    #[default]
    Anonymous,
    /// A user's name and password.
    Basic { user: String, password: String },
    /// A token that a token server exchanges for another (OAuth 2 refresh token).
    Identity(String),
    /// A token for the registry itself.
    Bearer(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Basic { .. } => "basic (hidden)",
            Self::Identity(_) => "identity token (hidden)",
            Self::Bearer(_) => "bearer token (hidden)",
        })
    }
}

impl Credentials {
    /// CRI's, for the registry that an image is pulled from: credentials that are for another server are none.
    ///
    /// # Errors
    /// A word about `auth` that isn't base64 of `user:password`.
    pub fn from_cri(auth: Option<AuthConfig>, registry: &str) -> Result<Self, &'static str> {
        let Some(auth) = auth else {
            return Ok(Self::Anonymous);
        };
        if !auth.server_address.is_empty() && host_of(&auth.server_address) != host_of(registry) {
            return Ok(Self::Anonymous);
        }
        if !auth.registry_token.is_empty() {
            return Ok(Self::Bearer(auth.registry_token));
        }
        if !auth.identity_token.is_empty() {
            return Ok(Self::Identity(auth.identity_token));
        }
        if !auth.username.is_empty() {
            return Ok(Self::Basic {
                user: auth.username,
                password: auth.password,
            });
        }
        if auth.auth.is_empty() {
            return Ok(Self::Anonymous);
        }
        let invalid = "auth is not base64 of user:password";
        let decoded = STANDARD
            .decode(auth.auth.trim_end_matches('\0'))
            .map_err(|_| invalid)?;
        let decoded = String::from_utf8(decoded).map_err(|_| invalid)?;
        let (user, password) = decoded.split_once(':').ok_or(invalid)?;
        Ok(Self::Basic {
            user: user.into(),
            password: password.trim_end_matches('\0').into(),
        })
    }

    /// The header for a registry or a token server that takes a name and a password.
    pub fn basic_header(&self) -> Option<String> {
        match self {
            Self::Basic { user, password } => Some(format!(
                "Basic {}",
                STANDARD.encode(format!("{user}:{password}"))
            )),
            _ => None,
        }
    }
}

/// `https://index.docker.io/v1/` means the same registry as `docker.io`.
fn host_of(server: &str) -> &str {
    let server = server
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let host = server.split('/').next().unwrap_or_default();
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// What a registry asks for with its 401.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    /// A token of that server's.
    Bearer {
        realm: String,
        service: String,
        scope: String,
    },
}

impl Challenge {
    /// Reads a `WWW-Authenticate` header (RFC 9110 §11.6.1); `None` for a scheme that isn't spoken here.
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, String::new(), String::new());
        let mut rest = rest;
        while let Some((key, after)) = rest.split_once('=') {
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => {
                    let (value, next) = quoted.split_once('"')?;
                    (value, next.trim_start().trim_start_matches(','))
                }
                None => after.split_once(',').unwrap_or((after, "")),
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = value.to_owned(),
                "scope" => scope = value.to_owned(),
                _ => {}
            }
            rest = next;
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_with_commas_in_its_scope() {
        let header = r#"Bearer realm="https://auth.example.com/token",service="example", scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example.com/token".into(),
            service: "example".into(),
            scope: "repository:a/b:pull,push".into(),
        };
        assert_eq!(Challenge::parse(header), Some(expected));
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=x"), None);
    }

    #[test]
    fn credentials_are_for_their_server_alone() {
        let auth = AuthConfig {
            username: "u".into(),
            password: "p".into(),
            ..Default::default()
        };
        let for_server = |server: &str| AuthConfig {
            server_address: server.into(),
            ..auth.clone()
        };
        let basic = Credentials::Basic {
            user: "u".into(),
            password: "p".into(),
        };
        let read = |auth, registry| Credentials::from_cri(Some(auth), registry).unwrap();
        assert_eq!(read(auth.clone(), "example.com"), basic);
        assert_eq!(
            read(for_server("https://index.docker.io/v1/"), "docker.io"),
            basic
        );
        assert_eq!(
            read(for_server("other.com"), "example.com"),
            Credentials::Anonymous
        );
        let encoded = AuthConfig {
            auth: "dTpw".into(),
            ..Default::default()
        };
        assert_eq!(read(encoded, "example.com"), basic);
        let broken = AuthConfig {
            auth: "!".into(),
            ..Default::default()
        };
        assert!(Credentials::from_cri(Some(broken), "x").is_err());
        assert!(!format!("{basic:?}").contains('p'.to_string().repeat(2).as_str()));
    }
}
