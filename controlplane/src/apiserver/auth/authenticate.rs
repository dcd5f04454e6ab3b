//! From a client certificate or a bearer token to a user.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::failure::{Failure, Result};
use super::User;
use super::tokens::Tokens;
use crate::apiserver::cache::Cache;

/// The user that a verified client certificate names: `CN` is the user, each `O` a group.
pub fn certificate_user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok());
    Some(User::authenticated(name, groups))
}

/// The user of a request: the connection's if it has one, else the bearer token's, else nobody in particular.
///
/// # Errors
/// 401 for a token that is not, or no longer, good.
pub fn authenticate(
    connection: Option<User>,
    headers: &HeaderMap,
    tokens: &Tokens,
    cache: &Cache,
) -> Result<User> {
    if let Some(user) = connection {
        return Ok(user);
    }
    let Some(header) = headers.get(AUTHORIZATION) else {
        return Ok(User::anonymous());
    };
    let text = header.to_str().map_err(|_| Failure::unauthorized())?;
    let Some((scheme, token)) = text.split_once(' ') else {
        return Err(Failure::unauthorized());
    };
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Failure::unauthorized());
    }
    tokens.verify(token.trim(), &[], cache).map_err(|error| {
        tracing::debug!(%error, "a bearer token was refused");
        Failure::unauthorized()
    })
}
