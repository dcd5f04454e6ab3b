//! How long a container that keeps ending waits before it is started again.

use std::collections::HashMap;

const SECOND: i64 = 1_000_000_000;
/// The first wait.
pub const INITIAL: i64 = 10 * SECOND;
/// The longest wait.
pub const MAX: i64 = 300 * SECOND;

/// The waits of one pod's containers, by name (upstream's `flowcontrol.Backoff`). All times are nanoseconds since
/// the epoch.
#[derive(Clone, Debug, Default)]
pub struct Backoffs {
    entries: HashMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    wait: i64,
    updated: i64,
}

impl Backoffs {
    /// When the thing that failed at `failed_at` may be tried again; none: at once. After twice the longest wait
    /// without a failure it starts afresh.
    pub fn until(&self, key: &str, failed_at: i64) -> Option<i64> {
        let entry = self.entries.get(key)?;
        (failed_at - entry.updated <= 2 * MAX).then_some(failed_at + entry.wait)
    }

    /// Notes that the thing that failed at `failed_at` is being tried again: the next wait is longer.
    pub fn next(&mut self, key: &str, failed_at: i64, now: i64) {
        let wait = match self.entries.get(key) {
            Some(entry) if failed_at - entry.updated <= 2 * MAX => (entry.wait * 2).min(MAX),
            _ => INITIAL,
        };
        self.entries
            .insert(key.to_owned(), Entry { wait, updated: now });
    }

    /// The present wait, nanoseconds.
    pub fn wait(&self, key: &str) -> i64 {
        self.entries.get(key).map_or(0, |entry| entry.wait)
    }

    /// Forgets a failure: the thing succeeded.
    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

/// A wait as upstream prints it: `10s`, `2m40s`, `5m0s`.
pub fn printed(wait: i64) -> String {
    let seconds = wait / SECOND;
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{}s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_five_minutes_and_start_afresh_after_ten() {
        let mut backoffs = Backoffs::default();
        let mut now = 1_000 * SECOND;
        assert_eq!(backoffs.until("c", now), None);
        let mut waits = Vec::new();
        for _ in 0..7 {
            backoffs.next("c", now, now);
            waits.push(backoffs.wait("c") / SECOND);
            now = backoffs.until("c", now).expect("a wait");
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoffs.until("c", now + 2 * MAX + SECOND), None);
    }

    #[test]
    fn waits_print_as_upstreams() {
        assert_eq!(printed(160 * SECOND), "2m40s");
        assert_eq!(printed(INITIAL), "10s");
        assert_eq!(printed(MAX), "5m0s");
    }
}
