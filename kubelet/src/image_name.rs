//! Whether an image's name is one at all, as the distribution specification's grammar has it. The runtime says no
//! more than that it failed to pull; that a name can never be pulled is the kubelet's to say (`InvalidImageName`).

/// What is wrong with a name, in upstream's words; `None` if nothing is.
pub fn problem(name: &str) -> Option<String> {
    const FORMAT: &str = "invalid reference format";
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    let (rest, tag) = match rest.rsplit_once(':') {
        Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
        _ => (rest, None),
    };
    let (domain, path) = match rest.split_once('/') {
        Some((first, path)) if is_domain(first) => (Some(first), path),
        _ => (None, rest),
    };
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let prefix = match (domain, path.contains('/')) {
            (None, false) => "library/",
            _ => "",
        };
        return Some(format!(
            "{FORMAT}: repository name ({prefix}{path}) must be lowercase"
        ));
    }
    let good = domain.is_none_or(is_host)
        && path.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    (!good).then(|| FORMAT.to_owned())
}

/// The first part names a registry if it can't be a part of a path.
fn is_domain(part: &str) -> bool {
    part.contains(['.', ':'])
        || part == "localhost"
        || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let address = |inner: &str| inner.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    let named = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => !inner.is_empty() && address(inner),
        None => host.split('.').all(label),
    };
    named && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Words of small letters and digits, with `.`, `_`, `__` or any number of `-` between.
fn is_component(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|between| !between.is_empty());
    let ends = part.bytes().next().is_some_and(word) && part.bytes().last().is_some_and(word);
    let separator = |s: &str| matches!(s, "." | "_" | "__") || s.bytes().all(|byte| byte == b'-');
    ends && separators.into_iter().all(separator)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag
            .bytes()
            .all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic())
            && hex.len() >= 32
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_names() {
        let digest = format!("app@sha256:{}", "a".repeat(64));
        for name in [
            "busybox",
            "library/busybox:1.36",
            "registry.example:5000/a/b_c/d--e:v1",
            "[fd00::1]:5000/x",
            "Registry.Example/x",
            &digest,
        ] {
            assert_eq!(problem(name), None, "{name}");
        }
    }

    #[test]
    fn what_can_never_be_pulled_is_told() {
        for name in [
            "",
            "a b",
            "app:::",
            "a//b",
            "-a",
            "app@sha256:1",
            "app:-x",
            "/app",
        ] {
            assert_eq!(
                problem(name).as_deref(),
                Some("invalid reference format"),
                "{name}"
            );
        }
        let upper = problem("Nosuch").expect("refused");
        assert_eq!(
            upper,
            "invalid reference format: repository name (library/Nosuch) must be lowercase"
        );
    }
}
