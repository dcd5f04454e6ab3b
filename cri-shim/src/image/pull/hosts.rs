//! Where a registry's content is really fetched from: hosts files in the form of containerd's `certs.d`.
//!
//! `FOLDER/<registry>/hosts.toml`, or `FOLDER/_default/hosts.toml` for every other one (without such a file the
//! folder's certificates count, as with Docker):
//!
//! ```toml
//! server = "https://registry.example.com"        # asked last; the registry itself if absent
//! [host."http://127.0.0.1:5000"]                 # asked first, in order
//!   capabilities = ["pull", "resolve"]
//!   skip_verify = false
//!   ca = "/etc/ssl/private-ca.pem"               # or a list
//!   client = [["client.pem", "client.key"]]      # or one file that holds both, or a list of such
//!   header = { x-custom = "value" }              # or a list of values
//!   override_path = false
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Value;

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host and path up to and without the repository: `https://registry-1.docker.io/v2`.
    pub base: String,
    /// It isn't the registry itself, and is told which one is meant.
    pub mirror: bool,
    /// Whether it may say which digest a tag stands for.
    pub resolves: bool,
    /// Certificates of authorities to trust besides the system's.
    pub authorities: Vec<PathBuf>,
    /// Whether its certificate doesn't matter.
    pub skip_verify: bool,
    /// What to identify with: a certificate's file and its key's. Of several the first is used.
    pub clients: Vec<(PathBuf, PathBuf)>,
    /// Sent with each request.
    pub headers: HeaderMap,
}

#[derive(Debug, Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    of_server: Host,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMore<PathBuf>>,
    client: Option<Clients>,
    header: BTreeMap<String, OneOrMore<String>>,
    skip_verify: bool,
    override_path: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn all(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::More(all) => all,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Clients {
    One(PathBuf),
    More(Vec<Client>),
}

/// A certificate and its key, in one file or two.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    Both(PathBuf),
    Pair([PathBuf; 2]),
}

/// A hosts file that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("hosts file {path}: {why}")]
pub struct Error {
    pub path: PathBuf,
    pub why: String,
}

/// The places to ask for a registry's content, in order.
///
/// # Errors
/// When a hosts file for it is there and can't be read.
pub fn endpoints(registry: &str, folders: &[PathBuf]) -> Result<Vec<Endpoint>, Error> {
    // Where a colon can't be in a folder's name.
    let escaped = registry
        .split_once(':')
        .map(|(host, port)| format!("{host}_{port}_"));
    let names = [escaped.as_deref(), Some(registry), Some("_default")];
    for folder in folders {
        for name in names.into_iter().flatten() {
            let folder = folder.join(name);
            let path = folder.join("hosts.toml");
            match std::fs::read_to_string(&path) {
                Ok(text) => return parse(registry, &text, &path),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(Error {
                        path,
                        why: error.to_string(),
                    });
                }
            }
            if folder.is_dir() {
                return with_certificates(registry, &folder).map(|host| vec![host]);
            }
        }
    }
    Ok(vec![itself(registry)])
}

/// The registry itself with a folder's certificates, as Docker has them: `*.crt` are authorities, `*.cert` and the
/// `*.key` of the same name a client's.
fn with_certificates(registry: &str, folder: &Path) -> Result<Endpoint, Error> {
    let unread = |error: std::io::Error| Error {
        path: folder.into(),
        why: error.to_string(),
    };
    let entries = std::fs::read_dir(folder).map_err(unread)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(unread)?;
    paths.sort();
    let mut host = itself(registry);
    for path in paths {
        match path.extension().and_then(|kind| kind.to_str()) {
            Some("crt") => host.authorities.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.exists() {
                    let why = format!("{} is missing for this certificate", key.display());
                    return Err(Error { path, why });
                }
                host.clients.push((path, key));
            }
            _ => {}
        }
    }
    Ok(host)
}

fn parse(registry: &str, text: &str, path: &Path) -> Result<Vec<Endpoint>, Error> {
    let invalid = |why: String| Error {
        path: path.into(),
        why,
    };
    let file: HostsFile = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut endpoints = Vec::new();
    for (url, value) in file.host {
        let host: Host =
            Value::try_into(value).map_err(|error: toml::de::Error| invalid(error.to_string()))?;
        let can = |what: &str| {
            host.capabilities
                .as_ref()
                .is_none_or(|all| all.iter().any(|one| one == what))
        };
        if !can("pull") {
            continue;
        }
        let resolves = can("resolve");
        endpoints.push(endpoint(&url, host, folder, true, resolves).map_err(invalid)?);
    }
    endpoints.push(match file.server {
        Some(server) => endpoint(&server, file.of_server, folder, false, true).map_err(invalid)?,
        None => itself(registry),
    });
    Ok(endpoints)
}

fn endpoint(
    url: &str,
    host: Host,
    folder: &Path,
    mirror: bool,
    resolves: bool,
) -> Result<Endpoint, String> {
    let url = url.trim_end_matches('/');
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("{}{url}", scheme(url))
    };
    let path_given = url
        .split("://")
        .nth(1)
        .is_some_and(|rest| rest.contains('/'));
    let base = if host.override_path || (path_given && url.ends_with("/v2")) {
        url
    } else {
        format!("{url}/v2")
    };
    let authorities = host.ca.map(OneOrMore::all).unwrap_or_default();
    let clients = match host.client {
        Some(Clients::One(path)) => vec![Client::Both(path)],
        Some(Clients::More(all)) => all,
        None => Vec::new(),
    };
    let clients = clients.into_iter().map(|client| match client {
        Client::Both(path) => (folder.join(&path), folder.join(path)),
        // A key's name that is empty means the certificate's file.
        Client::Pair([certificate, key]) if key.as_os_str().is_empty() => {
            (folder.join(&certificate), folder.join(certificate))
        }
        Client::Pair([certificate, key]) => (folder.join(certificate), folder.join(key)),
    });
    let mut headers = HeaderMap::new();
    for (name, values) in host.header {
        for value in values.all() {
            let header = HeaderName::try_from(&name).map_err(|error| error.to_string());
            let value = HeaderValue::try_from(value).map_err(|error| error.to_string());
            let (Ok(header), Ok(mut value)) = (header, value) else {
                return Err(format!(
                    "header {name:?}: it is not one that HTTP can carry"
                ));
            };
            value.set_sensitive(true);
            headers.append(header, value);
        }
    }
    Ok(Endpoint {
        base,
        mirror,
        resolves,
        authorities: authorities.iter().map(|path| folder.join(path)).collect(),
        skip_verify: host.skip_verify,
        clients: clients.collect(),
        headers,
    })
}

/// The registry that the name says. Docker's has another address than name.
fn itself(registry: &str) -> Endpoint {
    let host = if registry == "docker.io" {
        "registry-1.docker.io"
    } else {
        registry
    };
    let base = format!("{}{host}/v2", scheme(host));
    Endpoint {
        base,
        mirror: false,
        resolves: true,
        authorities: Vec::new(),
        skip_verify: false,
        clients: Vec::new(),
        headers: HeaderMap::new(),
    }
}

/// Plain HTTP on loopback, where nobody listens in; TLS everywhere else.
fn scheme(host: &str) -> &'static str {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split([':', '/']).next().unwrap_or_default(),
    };
    let loopback = name == "localhost"
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if loopback { "http://" } else { "https://" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_without_a_hosts_file_is_asked_itself() {
        let base = |registry: &str| endpoints(registry, &[]).unwrap()[0].base.clone();
        assert_eq!(base("docker.io"), "https://registry-1.docker.io/v2");
        assert_eq!(base("example.com:5000"), "https://example.com:5000/v2");
        assert_eq!(base("localhost:5000"), "http://localhost:5000/v2");
        assert_eq!(base("127.0.0.1:5000"), "http://127.0.0.1:5000/v2");
        assert_eq!(base("[::1]:5000"), "http://[::1]:5000/v2");
    }

    #[test]
    fn a_folder_without_a_hosts_file_has_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("example.com_5000_");
        std::fs::create_dir(&folder).unwrap();
        for name in ["ca.crt", "client.cert", "client.key", "notes"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let find = || endpoints("example.com:5000", &[dir.path().into()]);
        let found = find().unwrap();
        assert_eq!(found[0].base, "https://example.com:5000/v2");
        assert_eq!(found[0].authorities, [folder.join("ca.crt")]);
        let pair = (folder.join("client.cert"), folder.join("client.key"));
        assert_eq!(found[0].clients, [pair]);
        std::fs::remove_file(folder.join("client.key")).unwrap();
        let error = find().unwrap_err().to_string();
        assert!(error.contains("client.key is missing"), "{error}");
    }

    #[test]
    fn mirrors_are_asked_in_order_and_the_server_last() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("hosts.toml"), text).unwrap();
        };
        write(
            "docker.io",
            "server = \"https://upstream.example\"\nca = \"ca.pem\"\n\
             [host.\"http://127.0.0.1:5001\"]\n[host.\"https://push.example\"]\ncapabilities = [\"push\"]\n\
             [host.\"https://b.example/prefix\"]\noverride_path = true\nskip_verify = true\ncapabilities = [\"pull\"]\n",
        );
        write(
            "clients",
            "[host.\"https://a\"]\nclient = \"both.pem\"\nheader = { x-a = \"1\", x-b = [\"2\", \"3\"] }\n\
             [host.\"https://b\"]\nclient = [[\"c.pem\", \"c.key\"], [\"d.pem\", \"\"]]\n\
             [host.\"https://c\"]\nclient = [\"e.pem\", \"f.pem\"]\n",
        );
        write("header", "[host.a]\nheader = { \"a b\" = \"1\" }\n");
        write("_default", "[host.\"http://127.0.0.1:5002\"]\n");
        write("broken", "host = 1");
        let find = |registry: &str| endpoints(registry, &[folder.path().into()]);
        let found = find("docker.io").unwrap();
        let bases: Vec<&str> = found
            .iter()
            .map(|endpoint| endpoint.base.as_str())
            .collect();
        assert_eq!(
            bases,
            [
                "http://127.0.0.1:5001/v2",
                "https://b.example/prefix",
                "https://upstream.example/v2"
            ]
        );
        assert!(found[1].skip_verify && !found[1].resolves && found[0].mirror && !found[2].mirror);
        assert_eq!(
            found[2].authorities,
            [folder.path().join("docker.io/ca.pem")]
        );
        let found = find("clients").unwrap();
        let at = |name: &str| folder.path().join("clients").join(name);
        assert_eq!(found[0].clients, [(at("both.pem"), at("both.pem"))]);
        assert_eq!(found[0].headers.len(), 3);
        assert_eq!(
            found[1].clients,
            [(at("c.pem"), at("c.key")), (at("d.pem"), at("d.pem"))]
        );
        assert_eq!(found[2].clients.len(), 2);
        let error = find("header").unwrap_err().to_string();
        assert!(error.contains("\"a b\""), "{error}");
        let found = find("quay.io").unwrap();
        assert_eq!(found[1].base, "https://quay.io/v2");
        assert!(
            find("broken")
                .unwrap_err()
                .to_string()
                .contains("broken/hosts.toml")
        );
    }
}
