//! Whether the proxy keeps up, and which Services have endpoints on this node: what load balancers ask for.

use crate::service::ServiceName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// A change that waits longer than this makes the proxy unhealthy.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A Service's health check on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceHealth {
    /// Whose.
    pub service: ServiceName,
    /// How many endpoints run here.
    pub local_endpoints: usize,
}

/// The health checks by their ports.
pub type HealthChecks = BTreeMap<u16, ServiceHealth>;

#[derive(Debug)]
struct State {
    oldest_pending: Option<Instant>,
    last_sync: Option<SystemTime>,
    node_eligible: bool,
}

/// What the worker says about itself, for those who ask; clones share it.
#[derive(Debug, Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
    checks: watch::Sender<HealthChecks>,
}

impl Default for Health {
    fn default() -> Health {
        let state = State {
            oldest_pending: None,
            last_sync: None,
            node_eligible: true,
        };
        Health {
            state: Arc::new(Mutex::new(state)),
            checks: watch::Sender::default(),
        }
    }
}

impl Health {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a change that isn't in the rules yet.
    pub fn pending(&self) {
        self.state().oldest_pending.get_or_insert_with(Instant::now);
    }

    /// All changes so far are in the rules.
    pub fn synced(&self) {
        let mut state = self.state();
        state.oldest_pending = None;
        state.last_sync = Some(SystemTime::now());
    }

    /// Whether load balancers may send traffic to this node: not while it is being deleted.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state().node_eligible = eligible;
    }

    /// Whether changes get into the rules.
    pub fn is_healthy(&self) -> bool {
        self.state()
            .oldest_pending
            .is_none_or(|since| since.elapsed() < LONGEST_WAIT)
    }

    /// As [`Health::set_node_eligible`] said.
    pub fn is_node_eligible(&self) -> bool {
        self.state().node_eligible
    }

    /// When the rules were last what the API said.
    pub fn last_sync(&self) -> Option<SystemTime> {
        self.state().last_sync
    }

    /// Changes the health checks of Services.
    pub fn change_checks(&self, change: impl FnOnce(&mut HealthChecks)) {
        self.checks.send_if_modified(|checks| {
            let before = checks.clone();
            change(checks);
            *checks != before
        });
    }

    /// Follows the health checks of Services.
    pub fn checks(&self) -> watch::Receiver<HealthChecks> {
        self.checks.subscribe()
    }
}
