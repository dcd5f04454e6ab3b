//! Proxies on the way to registries, as the environment names them for every Go program: `HTTP_PROXY`,
//! `HTTPS_PROXY` and `NO_PROXY`, or the same in lower case.

use std::io;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest answer to CONNECT that is read.
const ANSWER_LIMIT_BYTES: usize = 16 << 10;

/// Which proxy to ask for what.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    direct: Vec<Direct>,
}

/// One proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    pub secure: bool,
    pub host: String,
    pub port: u16,
    /// The header that tells it who we are, if its URL names a user.
    pub authorization: Option<String>,
}

/// A word of `NO_PROXY`: what is asked without one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    Everything,
    Net(IpNet),
    Address(IpAddr, Option<u16>),
    /// A name; with subdomains, and with itself unless it was written with a dot in front.
    Domain {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
}

/// A proxy that the environment names wrongly.
#[derive(Debug, thiserror::Error)]
#[error("environment variable {variable}: {why}")]
pub struct InvalidProxy {
    variable: &'static str,
    why: &'static str,
}

impl Proxies {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`InvalidProxy`] for a value that isn't the URL of an HTTP proxy.
    pub fn from_environment() -> Result<Self, InvalidProxy> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Reads variables; those in upper case win.
    ///
    /// # Errors
    /// As [`Proxies::from_environment`].
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidProxy> {
        let read = |name: &'static str| {
            variable(name)
                .or_else(|| variable(&name.to_lowercase()))
                .filter(|value| !value.trim().is_empty())
        };
        let proxy = |name: &'static str| {
            read(name)
                .map(|value| {
                    Proxy::parse(value.trim()).map_err(|why| InvalidProxy {
                        variable: name,
                        why,
                    })
                })
                .transpose()
        };
        let direct = read("NO_PROXY").unwrap_or_default();
        Ok(Self {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            direct: direct.split(',').filter_map(Direct::parse).collect(),
        })
    }

    /// The proxy for a URL. What is on this machine is never asked of one.
    pub fn of(&self, uri: &Uri) -> Option<&Proxy> {
        let secure = uri.scheme_str() == Some("https");
        let proxy = if secure { &self.https } else { &self.http }.as_ref()?;
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let address = host.parse::<IpAddr>().ok();
        let here = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let direct = |one: &Direct| one.covers(&host, address, port);
        (!here && !self.direct.iter().any(direct)).then_some(proxy)
    }
}

impl Proxy {
    fn parse(value: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
        let secure = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err("only http:// and https:// proxies are known"),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let place: http::uri::Authority = place.parse().map_err(|_| "its host is malformed")?;
        let authorization = user
            .map(|user| {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                let mut plain = unescape(user)?;
                plain.push(b':');
                plain.extend(unescape(password)?);
                Some(format!("Basic {}", STANDARD.encode(plain)))
            })
            .map(|header| header.ok_or("its user has a malformed % sequence"))
            .transpose()?;
        let host = place.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err("it names no host");
        }
        Ok(Self {
            secure,
            host: host.to_owned(),
            port: place.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            authorization,
        })
    }

    /// Asks for a way through to `host`.
    ///
    /// # Errors
    /// With the proxy's answer, when it is another one than yes.
    pub async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        host: &str,
        port: u16,
    ) -> io::Result<()> {
        let target = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = &self.authorization {
            request += &format!("Proxy-Authorization: {authorization}\r\n");
        }
        request += "\r\n";
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        // By the byte: what follows the head is the registry's.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= ANSWER_LIMIT_BYTES {
                return Err(self.says("an answer without end"));
            }
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head);
        let status = head.lines().next().unwrap_or_default();
        match status.split(' ').nth(1) {
            Some(code) if code.starts_with('2') => Ok(()),
            _ => Err(self.says(status)),
        }
    }

    fn says(&self, what: &str) -> io::Error {
        io::Error::other(format!("proxy {}:{}: {what}", self.host, self.port))
    }
}

impl Direct {
    fn parse(word: &str) -> Option<Self> {
        let word = word.trim().to_ascii_lowercase();
        if word.is_empty() {
            return None;
        }
        if word == "*" {
            return Some(Self::Everything);
        }
        if let Ok(net) = word.parse() {
            return Some(Self::Net(net));
        }
        let bare = word.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return Some(Self::Address(address, None));
        }
        let (name, port) = match word.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (word.as_str(), None),
        };
        if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse() {
            return Some(Self::Address(address, port));
        }
        let name = name.strip_prefix('*').unwrap_or(name);
        let itself = !name.starts_with('.');
        Some(Self::Domain {
            name: name.trim_start_matches('.').to_owned(),
            itself,
            port,
        })
    }

    fn covers(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::Everything => true,
            Self::Net(net) => address.is_some_and(|address| net.contains(&address)),
            Self::Address(own, only) => {
                address == Some(*own) && only.is_none_or(|only| only == port)
            }
            Self::Domain {
                name,
                itself,
                port: only,
            } => {
                let below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.ends_with('.'));
                (below || (*itself && host == name)) && only.is_none_or(|only| only == port)
            }
        }
    }
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            *hex::decode(digits).ok()?.first()?
        } else {
            byte
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, InvalidProxy> {
        Proxies::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_scheme_has_its_proxy_and_exceptions() {
        let found = proxies(&[
            ("HTTP_PROXY", "plain.example"),
            ("https_proxy", "https://me:p%40ss@[2001:db8::1]:8443/"),
            (
                "NO_PROXY",
                "example.org, .below.example,10.0.0.0/8,192.0.2.7,only.example:5000,*.star.example",
            ),
        ])
        .unwrap();
        let of = |url: &str| {
            found
                .of(&url.parse().unwrap())
                .map(|proxy| (proxy.host.as_str(), proxy.port))
        };
        let (plain, secure) = (Some(("plain.example", 80)), Some(("2001:db8::1", 8443)));
        assert_eq!(of("http://registry.example/v2"), plain);
        assert_eq!(of("https://registry.example/v2"), secure);
        assert_eq!(of("https://notexample.org/"), secure);
        assert_eq!(of("https://below.example/"), secure);
        assert_eq!(of("https://only.example/"), secure);
        for direct in [
            "https://example.org/",
            "https://a.example.org/",
            "https://a.below.example/",
            "https://10.1.2.3/",
            "https://192.0.2.7/",
            "https://only.example:5000/",
            "https://a.star.example/",
            "https://127.0.0.1:5000/",
            "http://localhost:5000/",
            "http://[::1]:5000/",
        ] {
            assert_eq!(of(direct), None, "{direct}");
        }
        let secret = found.https.as_ref().unwrap().authorization.as_deref();
        assert_eq!(secret, Some("Basic bWU6cEBzcw=="));
        let all = proxies(&[("HTTP_PROXY", "p:1"), ("NO_PROXY", "*")]).unwrap();
        assert!(all.of(&"http://a/".parse().unwrap()).is_none());
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_named_without_its_password() {
        for value in [
            "socks5://me:secret@p:1",
            "http://me:secret@",
            "http://me:%zz@p",
        ] {
            let error = proxies(&[("HTTPS_PROXY", value)]).unwrap_err().to_string();
            assert!(
                error.contains("HTTPS_PROXY") && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_tunnel_takes_nothing_of_what_follows() {
        let found = proxies(&[("HTTPS_PROXY", "http://me:you@p:1")]).unwrap();
        let proxy = found.https.unwrap();
        let (mut ours, mut theirs) = tokio::io::duplex(4096);
        theirs
            .write_all(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nnext")
            .await
            .unwrap();
        proxy.tunnel(&mut ours, "2001:db8::2", 443).await.unwrap();
        let mut next = [0; 4];
        ours.read_exact(&mut next).await.unwrap();
        assert_eq!(&next, b"next");
        let mut asked = vec![0; 4096];
        let n = theirs.read(&mut asked).await.unwrap();
        let asked = String::from_utf8_lossy(&asked[..n]).into_owned();
        assert!(
            asked.starts_with("CONNECT [2001:db8::2]:443 HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(
            asked.contains("Proxy-Authorization: Basic bWU6eW91\r\n"),
            "{asked}"
        );
        theirs
            .write_all(b"HTTP/1.1 403 Not you\r\n\r\n")
            .await
            .unwrap();
        let error = proxy.tunnel(&mut ours, "a", 443).await.unwrap_err();
        assert!(error.to_string().contains("403 Not you"), "{error}");
    }
}
