//! Times as the API writes them: UTC, RFC 3339; and ages as `kubectl` prints them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Reads an RFC 3339 time with any offset.
///
/// # Errors
/// If the text isn't one.
pub fn parse(text: &str) -> Result<Timestamp, jiff::Error> {
    text.parse()
}

/// `2026-11-22T01:02:03Z` (`metav1.Time`)
pub fn seconds(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// `2026-11-22T01:02:03.000456Z` (`metav1.MicroTime`)
pub fn micros(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

/// A duration in the two most telling units, as `kubectl get` shows an age: `45s`, `3m20s`, `5h`, `3d4h`, `2y10d`.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{small_unit}")
        }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(days, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{days}d"),
        () if hours < 24 * 365 * 8 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

/// The age at `now` of something that happened at the RFC 3339 time `since`; `<unknown>` if there is no such time.
pub fn age(since: Option<&str>, now: Timestamp) -> String {
    match since.and_then(|text| parse(text).ok()) {
        Some(at) => human_duration(now.duration_since(at).as_secs()),
        None => "<unknown>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        let day = 86_400;
        for (seconds, text) in [
            (0, "0s"),
            (-5, "<invalid>"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (601, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600 + 60, "9h"),
            (2 * day + 3600, "2d1h"),
            (9 * day, "9d"),
            (2 * 365 * day + day, "2y1d"),
            (9 * 365 * day, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }

    #[test]
    fn times_are_utc_with_whole_or_micro_seconds() {
        let at = parse("2026-11-22T03:02:03.0004567+02:00").expect("a time");
        assert_eq!(seconds(at), "2026-11-22T01:02:03Z");
        assert_eq!(micros(at), "2026-11-22T01:02:03.000456Z");
    }
}
