//! `events`: a container's statistics as JSON, once or every few seconds, as runc prints them.

use super::{Context, Failure, Outcome};
use crate::state::{Container, Status};
use linux::cgroup::{Stats, StatsReader};
use serde_json::{Value, json};
use std::time::Duration;

pub(super) fn events(context: &Context, id: &str, once: bool, interval: &str) -> Outcome {
    let interval = parse_interval(interval)?;
    let container = Container::open(&context.root, id)?;
    let process = match container.status() {
        Status::Stopped | Status::Creating => None,
        _ => container.process(),
    };
    let process =
        process.ok_or_else(|| Failure::other(format!("container with id {id} is not running")))?;
    let cgroup = container
        .cgroup()?
        .ok_or_else(|| Failure::other("container has no cgroup"))?;
    let reader = StatsReader::open(&cgroup);
    let mut kills = 0;
    loop {
        let stats = reader.read()?;
        if stats.oom_kills > Some(kills) {
            kills = stats.oom_kills.unwrap_or(0);
            println!("{}", json!({"type": "oom", "id": id}));
        }
        println!(
            "{}",
            json!({"type": "stats", "id": id, "data": describe(&stats)})
        );
        if once || linux::pidfd::wait_exit(&process, Some(interval))? {
            return Ok(0);
        }
    }
}

/// A Go duration of whole units, as in `5s` or `500ms`.
fn parse_interval(text: &str) -> Result<Duration, Failure> {
    let parsed = match (
        text.strip_suffix("ms"),
        text.strip_suffix('s'),
        text.strip_suffix('m'),
    ) {
        (Some(number), _, _) => number.parse().ok().map(Duration::from_millis),
        (_, Some(number), _) => number.parse().ok().map(Duration::from_secs),
        (_, _, Some(number)) => number
            .parse()
            .ok()
            .map(|minutes: u32| Duration::from_secs(60) * minutes),
        _ => None,
    };
    parsed
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| Failure::other(format!("--interval {text:?} is not a duration above 0")))
}

fn describe(stats: &Stats) -> Value {
    let entry = |usage: Option<u64>, limit: Option<u64>| json!({"usage": usage.unwrap_or(0), "limit": limit.unwrap_or(0)});
    json!({
        "cpu": {"usage": {"total": stats.cpu_usage_ns.unwrap_or(0)}},
        "memory": {
            "usage": entry(stats.memory_usage_bytes, stats.memory_limit_bytes),
            "raw": {
                "anon": stats.memory_rss_bytes,
                "pgfault": stats.page_faults,
                "pgmajfault": stats.major_page_faults,
            },
        },
        "pids": {"current": stats.pids.unwrap_or(0)},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_durations_above_zero() {
        assert_eq!(parse_interval("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(parse_interval("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_interval("2m").unwrap(), Duration::from_secs(120));
        for text in ["", "0s", "5", "s", "-1s"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
