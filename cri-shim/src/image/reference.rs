//! Image names, normalised as containerd and Docker do: `busybox` is `docker.io/library/busybox:latest`.

use std::fmt;

use super::digest::Digest;

/// A normalised image name: a repository with a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The registry's host, with its port if it has one: `docker.io`, `localhost:5000`.
    pub domain: String,
    /// The repository within the registry: `library/busybox`.
    pub path: String,
    /// What is wanted of the repository.
    pub version: Version,
}

/// A tag moves, a digest doesn't.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    Tag(String),
    Digest(Digest),
}

/// Text that isn't an image name, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("image name {name:?}: {why}")]
pub struct InvalidReference {
    name: String,
    why: &'static str,
}

impl Reference {
    /// Reads a name as users write it. A name with both a tag and a digest loses the tag, as in containerd.
    ///
    /// # Errors
    /// [`InvalidReference`] says which rule of the distribution grammar the name breaks.
    pub fn parse(name: &str) -> Result<Self, InvalidReference> {
        let invalid = |why| InvalidReference {
            name: name.chars().take(300).collect(),
            why,
        };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse::<Digest>()
                        .map_err(|_| invalid("the digest is not sha256 and 64 hex digits"))?,
                ),
            ),
            None => (name, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the registry's port.
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (rest, None),
        };
        let (domain, path) = match repository.split_once('/') {
            Some((first, path)) if is_domain(first) => (first, path),
            _ => ("docker.io", repository),
        };
        let domain = if domain == "index.docker.io" {
            "docker.io"
        } else {
            domain
        };
        if path.is_empty() || !path.split('/').all(is_path_component) {
            return Err(invalid(
                "the repository must be lower-case words of letters, digits, '.', '_' and '-'",
            ));
        }
        if !domain.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            || !domain
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
        {
            return Err(invalid("the registry is not a host name"));
        }
        let path = match domain {
            "docker.io" if !path.contains('/') => format!("library/{path}"),
            _ => path.to_owned(),
        };
        // With what is put before it: the name is written so, and read again.
        if path.len() > 255 {
            return Err(invalid("the repository is longer than 255 bytes"));
        }
        let tag = tag.unwrap_or("latest");
        if !is_tag(tag) {
            return Err(invalid(
                "the tag must be 1 to 128 letters, digits, '_', '.' or '-'",
            ));
        }
        let version = digest.map_or_else(|| Version::Tag(tag.to_owned()), Version::Digest);
        Ok(Self {
            domain: domain.to_owned(),
            path,
            version,
        })
    }

    /// Registry and repository: what stands before the tag or digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same repository's image of that digest.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repository())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

/// Whether the first part of a name is a registry and not a repository: it has a dot or a port, is localhost, or
/// has a capital letter, which no repository may.
fn is_domain(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_path_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    bytes.first().copied().is_some_and(word)
        && bytes.last().copied().is_some_and(word)
        && bytes
            .iter()
            .all(|&byte| word(byte) || matches!(byte, b'.' | b'_' | b'-'))
        && !component.contains("..")
        && !component.contains("___")
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag
            .bytes()
            .all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_containerd_does() {
        let digest = Digest::of(b"");
        for (given, normal) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".into()),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest".into(),
            ),
            ("team/app", "docker.io/team/app:latest".into()),
            ("localhost/app", "localhost/app:latest".into()),
            ("localhost:5000/app:v1", "localhost:5000/app:v1".into()),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest".into()),
            ("[::1]:5000/a:b", "[::1]:5000/a:b".into()),
            (
                "registry.k8s.io/pause:3.10",
                "registry.k8s.io/pause:3.10".into(),
            ),
            (
                &format!("busybox:1@{digest}"),
                format!("docker.io/library/busybox@{digest}"),
            ),
        ] {
            assert_eq!(
                Reference::parse(given).unwrap().to_string(),
                normal,
                "{given}"
            );
        }
    }

    #[test]
    fn what_breaks_the_grammar_is_refused() {
        for bad in [
            "",
            ":",
            "a:",
            "Busy/Box/X:y z",
            "a//b",
            "../a",
            "a/../b",
            "a@sha256:1",
            "a:b c",
            "-a",
            "ex ample.com/a",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_name_is_read_as_it_is_written() {
        let long = Reference::parse(&"x".repeat(247)).unwrap();
        assert_eq!(Reference::parse(&long.to_string()).unwrap(), long);
        assert!(Reference::parse(&"x".repeat(248)).is_err());
        assert!(Reference::parse(&format!("a.b/{}", "x".repeat(255))).is_ok());
    }
}
