//! What `orlop up` prints: stages as they happen, with the time since the start, and the proof's claims.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Where stages are printed. Standard output; colour only on a terminal, and not where NO_COLOR is set.
pub struct Console {
    start: Instant,
    last: Instant,
    colour: bool,
}

impl Console {
    /// Counts time from now.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// A stage is complete.
    pub fn stage(&mut self, name: &str, detail: &str) {
        self.stage_at(Instant::now(), name, detail);
    }

    /// A stage was complete at that time.
    pub fn stage_at(&mut self, at: Instant, name: &str, detail: &str) {
        self.last = at;
        let seconds = at.saturating_duration_since(self.start).as_secs_f64();
        self.line(format!("{seconds:8.3} s  {name:<18} {detail}"));
    }

    /// A title above what follows.
    pub fn heading(&self, text: &str) {
        self.line("");
        self.line(text);
    }

    /// One claim of the proof, and whether it held; an error is handed on.
    pub fn claim(&mut self, claim: &str, outcome: anyhow::Result<String>) -> anyhow::Result<()> {
        let took = self.last.elapsed();
        self.last = Instant::now();
        let (mark, detail) = match &outcome {
            Ok(detail) => (self.paint("ok  ", "32"), detail.clone()),
            Err(_) => (self.paint("FAIL", "31"), String::new()),
        };
        self.line(format!(
            "  {mark} {claim:<52} {:6.0} ms  {detail}",
            took.as_secs_f64() * 1000.0
        ));
        outcome
            .map(drop)
            .map_err(|error| error.context(format!("not true: {claim}")))
    }

    /// A line as it is.
    pub fn line(&self, text: impl Display) {
        // A reader that went away must not end the cluster.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    fn paint(&self, text: &str, code: &str) -> String {
        if self.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}
