//! The programs of `iptables`, which the host brings: they alone know whether its rules are nftables' or the older kind,
//! and what else the host has in their tables.

use super::model::Chains;
use super::names::Table;
use super::text::parse_saved;
use linux::nftables::Family;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// How long the programs wait for each other, in seconds.
const WAIT: &str = "5";
/// Where the programs are, whatever the path.
const FOLDERS: &str = "/usr/sbin:/sbin";
/// From this version on it can wait, and masquerade fully at random.
const MODERN: [u32; 3] = [1, 6, 2];

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be run.
    #[error("run {program}: {source}: install iptables, or use mode nftables")]
    Run {
        /// Which.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It failed.
    #[error("{program}: {message}")]
    Failed {
        /// Which.
        program: String,
        /// Its words.
        message: String,
        /// At which line of its input, from 1, if it says so.
        line: Option<usize>,
    },
}

/// The programs of one family.
#[derive(Debug, Clone)]
pub struct Programs {
    prefix: &'static str,
    kind: &'static str,
    modern: bool,
}

/// `iptables-restore v1.8.9 (nf_tables)` is 1.8.9.
fn parse_version(text: &str) -> Option<[u32; 3]> {
    let version = text.split(' ').find_map(|word| word.strip_prefix('v'))?;
    let mut parts = version.trim().split('.').map(str::parse);
    let mut next = || parts.next().transpose().ok().flatten();
    Some([next()?, next().unwrap_or(0), next().unwrap_or(0)])
}

/// The line in `iptables-restore: line 12 failed`, or in `line 12: RULE_APPEND failed …`.
fn parse_line(message: &str) -> Option<usize> {
    let after = |start: &str| {
        let (_, rest) = message.split_once(start)?;
        let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit());
        digits.into_iter().next()?.parse().ok()
    };
    after("line: ").or_else(|| after("line "))
}

impl Programs {
    /// Those of a family; whether they are there is not asked.
    pub fn new(family: Family) -> Programs {
        Programs {
            prefix: match family {
                Family::Ip6 => "ip6tables",
                _ => "iptables",
            },
            kind: "",
            modern: true,
        }
    }

    /// The same for tables of the older kind alone.
    pub fn legacy(family: Family) -> Programs {
        Programs {
            kind: "-legacy",
            ..Programs::new(family)
        }
    }

    /// Asks for the version. Returns whether it can masquerade fully at random.
    ///
    /// # Errors
    /// [`Error::Run`].
    pub fn observe_version(&mut self) -> Result<bool, Error> {
        let output = self.run("-restore", &["--version"], "")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = parse_version(&text);
        tracing::info!(program = self.name("-restore"), version = text.trim());
        // One that doesn't say it is none of old.
        self.modern = version.is_none_or(|version| version >= MODERN);
        Ok(self.modern)
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}{}{suffix}", self.prefix, self.kind)
    }

    fn run(&self, suffix: &str, arguments: &[&str], input: &str) -> Result<Output, Error> {
        let program = self.name(suffix);
        let path = std::env::var("PATH").unwrap_or_default();
        let run = || {
            let mut child = Command::new(&program)
                .args(arguments)
                .env("PATH", format!("{path}:{FOLDERS}"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that ends early says why itself.
                let _ = stdin.write_all(input.as_bytes());
            }
            child.wait_with_output()
        };
        run().map_err(|source| Error::Run {
            program: program.clone(),
            source,
        })
    }

    fn succeed(&self, suffix: &str, arguments: &[&str], input: &str) -> Result<String, Error> {
        let output = self.run(suffix, arguments, input)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        let message = if message.is_empty() {
            output.status.to_string()
        } else {
            message
        };
        Err(Error::Failed {
            program: self.name(suffix),
            line: parse_line(&message),
            message,
        })
    }

    /// What the kernel holds of our chains, and of those that lead to them.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn save(&self) -> Result<Chains, Error> {
        Ok(parse_saved(&self.succeed("-save", &[], "")?))
    }

    /// Gives a patch's text to the kernel, each table in one step. Other chains stay as they are.
    ///
    /// # Errors
    /// See [`Error`]; tables before the one that failed have been changed.
    pub fn restore(&self, text: &str) -> Result<(), Error> {
        let wait = ["--noflush", "-w", WAIT];
        let arguments = if self.modern { &wait[..] } else { &wait[..1] };
        self.succeed("-restore", arguments, text).map(drop)
    }

    /// Whether a chain is there. What can't be asked now is taken to be.
    pub fn has_chain(&self, table: Table, chain: &str) -> bool {
        const NOT_THERE: i32 = 1;
        let arguments = ["-w", WAIT, "-t", table.name(), "-S", chain];
        match self.run("", &arguments, "") {
            Ok(output) => output.status.code() != Some(NOT_THERE),
            Err(error) => {
                tracing::warn!(%error, "whether the rules are there can't be asked");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_lines_are_read() {
        let version = |text: &str| parse_version(text);
        assert_eq!(
            version("iptables-restore v1.8.9 (nf_tables)\n"),
            Some([1, 8, 9])
        );
        assert_eq!(version("iptables-restore v1.6.2\n"), Some([1, 6, 2]));
        assert_eq!(version("busybox"), None);
        assert_eq!(parse_line("iptables-restore: line 12 failed"), Some(12));
        assert_eq!(
            parse_line(
                "iptables-restore v1.8.9 (nf_tables): line 7: RULE_APPEND failed (No such file)"
            ),
            Some(7)
        );
        assert_eq!(
            parse_line("Couldn't load match `x' Error occurred at line: 5"),
            Some(5)
        );
        assert_eq!(parse_line("out of memory"), None);
    }
}
