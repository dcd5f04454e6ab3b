//! Counts what passed, failed and was skipped, and prints a line for each.

use std::time::Instant;

/// How a test that didn't fail ended.
pub enum Outcome {
    /// It held.
    Passed,
    /// So many tests of another runner held, and so many were skipped there.
    Counted { passed: usize, skipped: usize },
    /// It can't run here, and why.
    Skipped(String),
}

/// The counts, and which names were asked for.
pub struct Tally {
    wanted: Vec<String>,
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

impl Tally {
    /// Runs only tests whose name contains one of `wanted`; all if it is empty.
    pub fn new(wanted: &[&str]) -> Self {
        Self {
            wanted: wanted.iter().map(|&word| word.to_owned()).collect(),
            passed: 0,
            failed: Vec::new(),
            skipped: 0,
        }
    }

    /// Whether a test of this name was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|word| name.contains(word))
    }

    /// Runs one test and prints how it ended.
    pub fn run(&mut self, name: &str, test: impl FnOnce() -> anyhow::Result<Outcome>) {
        if self.wants(name) {
            self.always(name, test);
        }
    }

    /// Runs one test whatever was asked for.
    pub fn always(&mut self, name: &str, test: impl FnOnce() -> anyhow::Result<Outcome>) {
        println!("---- {name}");
        let start = Instant::now();
        let outcome = test();
        let took = start.elapsed().as_secs_f64();
        match outcome {
            Ok(Outcome::Passed) => {
                self.passed += 1;
                println!("ok   {name} ({took:.1} s)");
            }
            Ok(Outcome::Counted { passed, skipped }) => {
                self.passed += passed;
                self.skipped += skipped;
                println!("ok   {name}: {passed} passed, {skipped} skipped ({took:.1} s)");
            }
            Ok(Outcome::Skipped(why)) => {
                self.skipped += 1;
                println!("skip {name}: {why}");
            }
            Err(error) => {
                println!("FAIL {name} ({took:.1} s): {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Prints the closing line; whether nothing failed and something ran.
    pub fn close(self) -> bool {
        self.failed
            .iter()
            .for_each(|name| println!("failed: {name}"));
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped
        );
        self.failed.is_empty() && self.passed > 0
    }
}
