//! Which names, keys and values are allowed, with upstream's words for those that aren't
//! (`k8s.io/apimachinery/pkg/util/validation`). Each check returns what is wrong, nothing if the value is good.

/// What is wrong with a value.
pub type Problems = Vec<String>;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn regex_error(message: &str, examples: &[&str], pattern: &str) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!(
        "{message} (e.g. {}regex used for validation is '{pattern}')",
        examples.join(" or ")
    )
}

fn is_lower_alphanumeric(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// Not empty, `inner` throughout, `edge` at both ends.
fn has_shape(value: &str, edge: impl Fn(char) -> bool, inner: impl Fn(char) -> bool) -> bool {
    value.starts_with(&edge) && value.ends_with(&edge) && value.chars().all(inner)
}

fn is_label_shaped(value: &str) -> bool {
    has_shape(value, is_lower_alphanumeric, |c| {
        is_lower_alphanumeric(c) || c == '-'
    })
}

fn is_subdomain_shaped(value: &str) -> bool {
    value.split('.').all(is_label_shaped)
}

/// RFC 1123 label: names of namespaces, containers, volumes.
pub fn dns1123_label(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value.len() > 63 {
        problems.push(too_long(63));
    }
    if !is_label_shaped(value) {
        problems.push(if is_subdomain_shaped(value) {
            "must not contain dots".into()
        } else {
            regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                &["my-name", "123-abc"],
                LABEL,
            )
        });
    }
    problems
}

/// RFC 1123 subdomain: names of most objects.
pub fn dns1123_subdomain(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value.len() > 253 {
        problems.push(too_long(253));
    }
    if !is_subdomain_shaped(value) {
        problems.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &["example.com"],
            &format!("{LABEL}(\\.{LABEL})*"),
        ));
    }
    problems
}

/// RFC 1035 label: names of Services.
pub fn dns1035_label(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value.len() > 63 {
        problems.push(too_long(63));
    }
    if !(is_label_shaped(value) && value.starts_with(|c: char| c.is_ascii_lowercase())) {
        problems.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            &["my-name", "abc-123"],
            "[a-z]([-a-z0-9]*[a-z0-9])?",
        ));
    }
    problems
}

/// A name that can be one segment of a URL path: names of Roles.
pub fn path_segment(value: &str) -> Problems {
    match value {
        "." | ".." => vec![format!("may not be '{value}'")],
        _ => ['/', '%']
            .iter()
            .filter(|c| value.contains(**c))
            .map(|c| format!("may not contain '{c}'"))
            .collect(),
    }
}

fn is_qualified_shaped(value: &str) -> bool {
    has_shape(
        value,
        |c| c.is_ascii_alphanumeric(),
        |c| c.is_ascii_alphanumeric() || "-_.".contains(c),
    )
}

/// `[domain/]name`: keys of labels and annotations, finalizers, resource names.
pub fn qualified_name(value: &str) -> Problems {
    const PATTERN: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
    const MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let mut problems = Vec::new();
    let mut parts = value.split('/');
    let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let name = match (second, third) {
        (None, _) => first,
        (Some(name), None) => {
            if first.is_empty() {
                problems.push("prefix part must be non-empty".into());
            } else {
                problems.extend(
                    dns1123_subdomain(first)
                        .into_iter()
                        .map(|p| format!("prefix part {p}")),
                );
            }
            name
        }
        (Some(_), Some(_)) => {
            let text = regex_error(MESSAGE, &["MyName", "my.name", "123-abc"], PATTERN);
            return vec![format!(
                "a valid label key {text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        problems.push(format!("name part {}", too_long(63)));
    }
    if !is_qualified_shaped(name) {
        problems.push(format!(
            "name part {}",
            regex_error(MESSAGE, &["MyName", "my.name", "123-abc"], PATTERN)
        ));
    }
    problems
}

/// The value of a label; may be empty.
pub fn label_value(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value.len() > 63 {
        problems.push(too_long(63));
    }
    if !value.is_empty() && !is_qualified_shaped(value) {
        problems.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &["MyValue", "my_value", "12345"],
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
        ));
    }
    problems
}

/// The name of a port, an IANA service name.
pub fn port_name(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value.len() > 15 {
        problems.push(too_long(15));
    }
    if value.is_empty() || !value.chars().all(|c| is_lower_alphanumeric(c) || c == '-') {
        problems
            .push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !value.contains(|c: char| c.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".into());
    }
    if value.contains("--") {
        problems.push("must not contain consecutive hyphens".into());
    }
    if value.starts_with('-') || value.ends_with('-') {
        problems.push("must not begin or end with a hyphen".into());
    }
    problems
}

/// A port number.
pub fn port_number(value: i64) -> Problems {
    in_range(value, 1, 65_535)
}

/// A user or group id.
pub fn id(value: i64) -> Problems {
    in_range(value, 0, i64::from(i32::MAX))
}

pub fn in_range(value: i64, low: i64, high: i64) -> Problems {
    if (low..=high).contains(&value) {
        Vec::new()
    } else {
        vec![format!("must be between {low} and {high}, inclusive")]
    }
}

/// The name of an environment variable: printable ASCII without `=`, not empty.
pub fn env_var_name(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value.is_empty() {
        problems.push("environment variable name must be non-empty".into());
    }
    if !value
        .chars()
        .all(|c| (c == ' ' || c.is_ascii_graphic()) && c != '=')
    {
        problems.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='".into(),
        );
    }
    problems
}

/// A key of a ConfigMap or Secret, which becomes a file name.
pub fn config_map_key(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value.len() > 253 {
        problems.push(too_long(253));
    }
    if value.is_empty()
        || !value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    {
        problems.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            &["key.name", "KEY_NAME", "key-name"],
            "[-._a-zA-Z0-9]+",
        ));
    }
    match value {
        "." => problems.push("must not be '.'".into()),
        ".." => problems.push("must not be '..'".into()),
        _ if value.starts_with("..") => problems.push("must not start with '..'".into()),
        _ => {}
    }
    problems
}

/// The name of an HTTP header.
pub fn http_header_name(value: &str) -> Problems {
    if !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Vec::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(message, &["X-Header-Name"], "[-A-Za-z0-9]+")]
}

/// `25%`
pub fn percent(value: &str) -> Problems {
    match value.strip_suffix('%') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Vec::new()
        }
        _ => vec![regex_error(
            "a valid percent string must be a numeric string followed by an ending '%'",
            &["1%", "93%"],
            "[0-9]+%",
        )],
    }
}

/// The same check for `generateName`: a hyphen or dot at its end is masked, since a suffix follows.
pub fn as_prefix(value: &str) -> String {
    match value.strip_suffix('-') {
        Some(rest) => format!("{rest}a"),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_have_no_problems() {
        for name in ["a", "a-b", "0", "a.b-c.d"] {
            assert!(dns1123_subdomain(name).is_empty(), "{name}");
        }
        for key in ["app", "app.kubernetes.io/name", "A_b.c", "x/y"] {
            assert!(qualified_name(key).is_empty(), "{key}");
        }
        for value in ["", "v1.0", "A_b"] {
            assert!(label_value(value).is_empty(), "{value}");
        }
        assert!(port_name("http-2").is_empty());
        assert!(env_var_name("my.VAR_1").is_empty());
        assert!(percent("25%").is_empty());
        assert!(config_map_key("..data").len() == 1);
    }

    #[test]
    fn bad_names_are_explained_in_upstreams_words() {
        assert_eq!(
            dns1123_subdomain("My_Pod"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1035_label("1a"),
            [
                "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert!(qualified_name("a/b/c")[0].ends_with("(e.g. 'example.com/MyName')"));
    }
}
