//! Which sysctls a host's administrator allows.

use std::fs;
use std::io;
use std::path::Path;

use regex_lite::Regex;

use crate::protocol::Error;

/// Checks names against the expressions in the file, one a line; any may be set if there is no file.
///
/// # Errors
/// Code 7 naming the sysctl that none matches, or the line that is no expression; code 5 if the file can't be read.
pub fn check<'a>(path: &Path, names: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(Error::io(format!("read {}: {cause}", path.display()))),
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let expression = |line: &str| {
        Regex::new(line)
            .map_err(|cause| Error::config(format!("{}: {line:?}: {cause}", path.display())))
    };
    let allowed: Vec<Regex> = lines.map(expression).collect::<Result<_, _>>()?;
    for name in names {
        if !allowed.iter().any(|expression| expression.is_match(name)) {
            return Err(Error::config(format!(
                "sysctl: {name} is not allowed by {}",
                path.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_line_matches_is_refused_and_without_a_file_nothing_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("allowlist.conf");
        let check = |name: &str| check(&file, [name.to_owned()].iter());
        check("net.core.somaxconn").expect("no file");
        fs::write(&file, "\n ^net\\.ipv4\\.conf\\.[a-z]*\\.arp_filter$ \n").expect("write");
        check("net.ipv4.conf.all.arp_filter").expect("allowed");
        let error = check("net.core.somaxconn").expect_err("not allowed");
        assert!(
            error
                .to_string()
                .starts_with("sysctl: net.core.somaxconn is not allowed by "),
            "{error}"
        );
        fs::write(&file, "[").expect("write");
        check("net.core.somaxconn").expect_err("no expression");
    }
}
