//! The cluster's certificate authority, and the certificates and keys that it issues.
//!
//! Made at the first start, under one folder, every file with mode 0600. A certificate is kept in one file with its
//! key (`NAME.pem`), so that the two can't disagree, and is made anew when less than a third of its life is left,
//! when it should say something else, or when another authority signed it.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const CA_YEARS: i16 = 10;
const LEAF_DAYS: i64 = 365;
const RENEW_BEFORE_DAYS: i64 = 120;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {}: {source}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("read {}: {cause}; remove it to have a new one made", path.display())]
    Damaged { path: PathBuf, cause: String },
    #[error("make certificate {name}: {source}")]
    Issue { name: String, source: rcgen::Error },
}

type Result<T> = std::result::Result<T, Error>;

/// A certificate with its private key, both PEM. `Debug` does not show the key.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// What a certificate is to say.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// User name, `CN`.
    pub common_name: String,
    /// Group, `O`.
    pub organization: Option<String>,
    /// DNS names and IP addresses that it serves; none for a client.
    pub sans: Vec<String>,
}

impl Subject {
    /// A client's certificate: `user` in `group`.
    pub fn client(user: &str, group: Option<&str>) -> Self {
        Self {
            common_name: user.into(),
            organization: group.map(Into::into),
            sans: Vec::new(),
        }
    }

    /// `system:node:NAME`, as a kubelet calls the API server.
    pub fn kubelet_client(node_name: &str) -> Self {
        Self::client(&format!("system:node:{node_name}"), Some("system:nodes"))
    }

    /// A kubelet's own API.
    pub fn kubelet_serving(node_name: &str, addresses: &[IpAddr]) -> Self {
        let mut sans = vec![node_name.to_owned()];
        sans.extend(addresses.iter().map(ToString::to_string));
        Self {
            sans,
            ..Self::kubelet_client(node_name)
        }
    }
}

/// The authority of one cluster.
pub struct Pki {
    folder: PathBuf,
    ca: String,
    issuer: Issuer<'static, KeyPair>,
    service_account_key: KeyPair,
}

impl Pki {
    /// Opens the authority in `folder`, or makes it there.
    ///
    /// # Errors
    /// When a file can't be read or written, or holds something else.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| Error::File {
                operation: "create",
                path: folder.into(),
                source,
            })?;
        let key = ensure_key(&folder.join("ca.key"))?;
        let service_account_key = ensure_key(&folder.join("sa.key"))?;
        let path = folder.join("ca.crt");
        let ca = match read(&path)? {
            Some(ca) => ca,
            None => {
                let ca = authority(&key).map_err(|source| Error::Issue {
                    name: "ca".into(),
                    source,
                })?;
                write_private(&path, &ca)?;
                ca
            }
        };
        let damaged = |cause: String| Error::Damaged {
            path: path.clone(),
            cause,
        };
        let matches = with_certificate(&ca, |c| c.public_key().raw == key.public_key_der_bytes());
        if matches != Some(true) {
            return Err(damaged("it does not belong to ca.key".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(&ca, key).map_err(|e| damaged(e.to_string()))?;
        Ok(Self {
            folder: folder.into(),
            ca,
            issuer,
            service_account_key,
        })
    }

    /// The authority's certificate, PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// The private key that signs service account tokens, PKCS #8 PEM (ECDSA P-256).
    pub fn service_account_key(&self) -> String {
        self.service_account_key.serialize_pem()
    }

    /// The public half of [`Pki::service_account_key`], PEM.
    pub fn service_account_public_key(&self) -> String {
        self.service_account_key.public_key_pem()
    }

    /// The certificate that is kept as `name`, made or renewed when it has to be.
    ///
    /// # Errors
    /// When the file can't be read or written, or a name in `subject` can't stand in a certificate.
    pub fn ensure(&self, name: &str, subject: &Subject) -> Result<Identity> {
        let path = self.folder.join(format!("{name}.pem"));
        if let Some(text) = read(&path)?
            && let Some(identity) = split(&text)
            && self.is_good(&identity, subject)
        {
            return Ok(identity);
        }
        let identity = self.issue(subject).map_err(|source| Error::Issue {
            name: name.into(),
            source,
        })?;
        write_private(&path, &format!("{}{}", identity.certificate, identity.key))?;
        Ok(identity)
    }

    fn issue(&self, subject: &Subject) -> std::result::Result<Identity, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(subject.sans.clone())?;
        if let Some(organization) = &subject.organization {
            params.distinguished_name.push(
                DnType::OrganizationName,
                DnValue::Utf8String(organization.clone()),
            );
        }
        params.distinguished_name.push(
            DnType::CommonName,
            DnValue::Utf8String(subject.common_name.clone()),
        );
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !subject.sans.is_empty() {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_DAYS);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    fn is_good(&self, identity: &Identity, subject: &Subject) -> bool {
        let Ok(key) = KeyPair::from_pem(&identity.key) else {
            return false;
        };
        let soon = Timestamp::now().as_second() + RENEW_BEFORE_DAYS * 86_400;
        with_certificate(&identity.certificate, |certificate| {
            let signed_by_us = with_certificate(&self.ca, |ca| {
                certificate.issuer() == ca.subject()
                    && authority_key(certificate) == subject_key(ca)
            });
            signed_by_us == Some(true)
                && certificate.public_key().raw == key.public_key_der_bytes()
                && certificate.validity().not_after.timestamp() > soon
                && says(certificate, subject)
        })
        .unwrap_or(false)
    }

    /// A kubeconfig for `server` (`https://HOST:PORT`) as `identity`.
    pub fn kubeconfig(&self, server: &str, user: &str, identity: &Identity) -> String {
        let encode = |text: &str| STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: orlop\nclusters:\n- name: orlop\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {ca}\ncontexts:\n- name: orlop\n  context:\n    cluster: orlop\n    user: {user}\nusers:\n\
             - name: {user}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n",
            ca = encode(&self.ca),
            certificate = encode(&identity.certificate),
            key = encode(&identity.key),
        )
    }
}

trait PublicKeyDer {
    /// The key as a certificate's `SubjectPublicKeyInfo`.
    fn public_key_der_bytes(&self) -> Vec<u8>;
}

impl PublicKeyDer for KeyPair {
    fn public_key_der_bytes(&self) -> Vec<u8> {
        rcgen::PublicKeyData::subject_public_key_info(self)
    }
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// When it can't be written; the old file is there still.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| Error::File {
        operation: "write",
        path: path.into(),
        source,
    })
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File {
            operation: "read",
            path: path.into(),
            source,
        }),
    }
}

fn ensure_key(path: &Path) -> Result<KeyPair> {
    if let Some(text) = read(path)? {
        return KeyPair::from_pem(&text).map_err(|e| Error::Damaged {
            path: path.into(),
            cause: e.to_string(),
        });
    }
    let name = path.display().to_string();
    let key = KeyPair::generate().map_err(|source| Error::Issue { name, source })?;
    write_private(path, &key.serialize_pem())?;
    Ok(key)
}

fn authority(key: &KeyPair) -> std::result::Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "orlop-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    set_validity(&mut params, i64::from(CA_YEARS) * LEAF_DAYS);
    Ok(params.self_signed(key)?.pem())
}

/// From yesterday, for clocks that are a little behind, until `days` from now.
fn set_validity(params: &mut CertificateParams, days: i64) {
    let today = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let at = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(
            date.year().into(),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    params.not_before = at(today.saturating_sub(1.day()));
    params.not_after = at(today.saturating_add(days.days()));
}

/// The certificate and the key of a `NAME.pem`.
fn split(text: &str) -> Option<Identity> {
    let key = text.find("-----BEGIN PRIVATE KEY-----")?;
    let (certificate, key) = text.split_at(key);
    Some(Identity {
        certificate: certificate.into(),
        key: key.into(),
    })
}

fn with_certificate<T>(pem: &str, body: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    Some(body(&certificate))
}

fn authority_key<'a>(certificate: &X509Certificate<'a>) -> Option<Vec<u8>> {
    use x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier;
    certificate
        .extensions()
        .iter()
        .find_map(|e| match e.parsed_extension() {
            AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
            _ => None,
        })
}

fn subject_key(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    use x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier;
    certificate
        .extensions()
        .iter()
        .find_map(|e| match e.parsed_extension() {
            SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
}

/// Whether a certificate says what `subject` wants, no more and no less.
fn says(certificate: &X509Certificate<'_>, subject: &Subject) -> bool {
    let name = certificate.subject();
    let common_name = name.iter_common_name().next().and_then(|n| n.as_str().ok());
    let organization = name
        .iter_organization()
        .next()
        .and_then(|n| n.as_str().ok());
    let extension = certificate.subject_alternative_name().ok().flatten();
    let mut found: Vec<String> = extension
        .iter()
        .flat_map(|e| &e.value.general_names)
        .filter_map(alternative_name)
        .collect();
    let mut wanted: Vec<String> = subject.sans.iter().map(|s| normal_san(s)).collect();
    found.sort();
    found.dedup();
    wanted.sort();
    wanted.dedup();
    common_name == Some(&*subject.common_name)
        && organization == subject.organization.as_deref()
        && found == wanted
}

fn normal_san(san: &str) -> String {
    match san.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => san.to_owned(),
    }
}

fn alternative_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => {
            let address = <[u8; 4]>::try_from(*octets)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from));
            address.ok().map(|a| a.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn serving(sans: &[&str]) -> Subject {
        Subject {
            common_name: "kube-apiserver".into(),
            organization: None,
            sans: sans.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    #[test]
    fn a_certificate_is_kept_until_it_should_say_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::open(folder.path()).unwrap();
        let first = pki
            .ensure("apiserver", &serving(&["localhost", "::1", "10.96.0.1"]))
            .unwrap();
        let again = Pki::open(folder.path()).unwrap();
        let kept = again
            .ensure("apiserver", &serving(&["10.96.0.1", "localhost", "0:0::1"]))
            .unwrap();
        assert_eq!(first.certificate, kept.certificate);
        assert_eq!(first.key, kept.key);
        let changed = again.ensure("apiserver", &serving(&["localhost"])).unwrap();
        assert_ne!(first.certificate, changed.certificate);
    }

    #[test]
    fn another_authority_makes_its_certificates_anew() {
        let folder = tempfile::tempdir().unwrap();
        let subject = Subject::kubelet_client("n1");
        let first = Pki::open(folder.path())
            .unwrap()
            .ensure("kubelet", &subject)
            .unwrap();
        fs::remove_file(folder.path().join("ca.crt")).unwrap();
        fs::remove_file(folder.path().join("ca.key")).unwrap();
        let second = Pki::open(folder.path())
            .unwrap()
            .ensure("kubelet", &subject)
            .unwrap();
        assert_ne!(first.certificate, second.certificate);
    }

    #[test]
    fn a_certificate_that_belongs_to_another_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Pki::open(folder.path()).unwrap();
        fs::remove_file(folder.path().join("ca.key")).unwrap();
        assert!(matches!(
            Pki::open(folder.path()),
            Err(Error::Damaged { .. })
        ));
    }

    #[test]
    fn only_the_owner_may_read_the_files_and_debug_shows_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::open(folder.path()).unwrap();
        let identity = pki
            .ensure("admin", &Subject::client("admin", Some("system:masters")))
            .unwrap();
        for entry in fs::read_dir(folder.path()).unwrap() {
            assert_eq!(
                entry.unwrap().metadata().unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }
}
