//! The daemon as a program, with upstream's flags.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::daemon::{Config, Daemon};

const HELP: &str = "\
Gets addresses by DHCP for the `dhcp` CNI plugin, and renews them for as long as their containers live.

Usage: orlop cni dhcp-daemon [FLAGS], or a link to orlop called dhcp: dhcp daemon [FLAGS]

  -socketpath PATH         where it listens (/run/cni/dhcp.sock); its leases are in a folder beside it
  -pidfile PATH            write its process id there
  -hostprefix PATH         put before the paths of namespaces and of the socket
  -broadcast               ask servers to answer to all stations of the link
  -timeout DURATION        wait for the answer to one message (10s)
  -resendmax DURATION      between two attempts at most (1m2s)
  -resendtimeout DURATION  until an ADD gives up (3m28s)
";

/// What the words of the command line ask for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    config: Config,
    pid_file: Option<PathBuf>,
}

/// Serves until SIGTERM or SIGINT; its exit status. Called before the process has other threads.
pub fn main(words: &[String]) -> i32 {
    if words
        .iter()
        .any(|word| matches!(word.trim_start_matches('-'), "h" | "help"))
    {
        print!("{HELP}");
        return 0;
    }
    let wanted = match parse(words) {
        Ok(wanted) => wanted,
        Err(reason) => {
            eprintln!("orlop: dhcp daemon: {reason}\n\n{HELP}");
            return 2;
        }
    };
    match run(&wanted) {
        Ok(()) => 0,
        Err(reason) => {
            eprintln!("orlop: dhcp daemon: {reason}");
            1
        }
    }
}

fn run(wanted: &Wanted) -> Result<(), String> {
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    // Before the first thread, so that all of them leave these signals to this one.
    ends.thread_block()
        .map_err(|cause| format!("block signals: {cause}"))?;
    let daemon = Daemon::start(wanted.config.clone()).map_err(|error| error.to_string())?;
    if let Some(path) = &wanted.pid_file {
        let id = std::process::id().to_string();
        fs::write(path, id).map_err(|cause| format!("write {}: {cause}", path.display()))?;
    }
    let waited = ends.wait();
    drop(daemon);
    if let Some(path) = &wanted.pid_file {
        let _ = fs::remove_file(path);
    }
    waited
        .map(drop)
        .map_err(|cause| format!("wait for a signal: {cause}"))
}

/// Flags as Go's programs take them: one dash or two, the value after `=` or as the next word.
fn parse(words: &[String]) -> Result<Wanted, String> {
    let mut config = Config::default();
    let mut pid_file = None;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let flag = flag.ok_or_else(|| format!("unexpected argument {word:?}"))?;
        let (name, stated) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if name == "broadcast" {
            config.broadcast = match stated.as_deref() {
                None | Some("true") => true,
                Some("false") => false,
                Some(other) => return Err(format!("-broadcast: {other:?} is not true or false")),
            };
            continue;
        }
        let mut value = || {
            let value = stated.clone().or_else(|| words.next().cloned());
            value.ok_or_else(|| format!("-{name} needs a value"))
        };
        let as_duration = |text: String| duration(&text).map_err(|e| format!("-{name}: {e}"));
        match name {
            "socketpath" => config.socket = value()?.into(),
            "pidfile" => pid_file = Some(PathBuf::from(value()?)),
            "hostprefix" => config.host_prefix = value()?,
            "timeout" => config.timeout = as_duration(value()?)?,
            "resendmax" => config.resend_max = as_duration(value()?)?,
            "resendtimeout" => config.resend_timeout = as_duration(value()?)?,
            _ => return Err(format!("unknown flag {word:?}")),
        }
    }
    for (flag, path) in [
        ("socketpath", Some(&config.socket)),
        ("pidfile", pid_file.as_ref()),
    ] {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            return Err(format!(
                "-{flag}: {} is not an absolute path",
                path.display()
            ));
        }
    }
    if !config.host_prefix.is_empty() {
        let below = config.socket.strip_prefix("/").unwrap_or(Path::new(""));
        config.socket = Path::new(&config.host_prefix).join(below);
    }
    Ok(Wanted { config, pid_file })
}

/// `1m30s`, `500ms`
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration such as 10s or 1m30s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let unit = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(bad()),
        };
        let part = number.checked_mul(milliseconds).ok_or_else(bad)?;
        total = total.saturating_add(Duration::from_millis(part));
        rest = after;
    }
    Some(total).filter(|total| !total.is_zero()).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<Wanted, String> {
        parse(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_taken_in_the_forms_that_go_takes() {
        let words = "-socketpath /a/s --timeout=1m2s -broadcast -resendmax 500ms -hostprefix /host";
        let wanted = parsed(words).expect("parse");
        let config = Config {
            socket: "/host/a/s".into(),
            host_prefix: "/host".into(),
            broadcast: true,
            timeout: Duration::from_secs(62),
            resend_max: Duration::from_millis(500),
            ..Config::default()
        };
        assert_eq!(
            wanted,
            Wanted {
                config,
                pid_file: None
            }
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (words, named) in [
            ("-nonsense", "unknown flag \"-nonsense\""),
            ("x", "unexpected argument \"x\""),
            ("-timeout", "-timeout needs a value"),
            ("-timeout 10", "-timeout: \"10\" is not a duration"),
            ("-timeout 0s", "-timeout: \"0s\" is not a duration"),
            ("-pidfile x", "-pidfile: x is not an absolute path"),
            ("-broadcast=1", "-broadcast: \"1\" is not true or false"),
        ] {
            let error = parsed(words).expect_err(words);
            assert!(error.starts_with(named), "{error}");
        }
    }
}
