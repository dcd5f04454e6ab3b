//! Scenarios with the real program on this host, each followed by the leak check.

mod demo;
mod features;
mod kubectl;
mod refusals;
mod restart;
mod runtimes;
mod systemd;
mod vm;

use std::path::Path;

use crate::tally::Outcome;

/// One scenario: it is given the program, and cleans up after itself.
pub struct Scenario {
    /// What `cargo xtask test NAME` asks for.
    pub name: &'static str,
    /// It uses the cluster that several share, and leaves it running for the next.
    pub shares_cluster: bool,
    /// Runs it.
    pub run: fn(&Path) -> anyhow::Result<Outcome>,
}

/// All of them, in the order in which they run.
pub fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario {
            name: "e2e-demo",
            shares_cluster: false,
            run: demo::demo,
        },
        Scenario {
            name: "e2e-demo-again",
            shares_cluster: false,
            run: demo::demo,
        },
        Scenario {
            name: "e2e-refusals",
            shares_cluster: false,
            run: refusals::refusals,
        },
        Scenario {
            name: "e2e-restart",
            shares_cluster: false,
            run: restart::restart,
        },
        Scenario {
            name: "e2e-runtimes",
            shares_cluster: false,
            run: runtimes::runtimes,
        },
    ];
    all.extend(kubectl::scenarios());
    all.extend(features::scenarios());
    all.push(Scenario {
        name: "vm-demo",
        shares_cluster: false,
        run: vm::demo,
    });
    all.push(Scenario {
        name: "vm-limits",
        shares_cluster: false,
        run: vm::limits,
    });
    all.push(Scenario {
        name: "vm-systemd",
        shares_cluster: false,
        run: systemd::systemd,
    });
    all
}

pub use kubectl::{cluster_runs as shared_cluster_runs, end as end_shared_cluster};
