//! What the proxy counts and times, under upstream's names where upstream has it.

use crate::config::Mode;
use crate::iptables::names::Table;
use linux::nftables::Family as AddressFamily;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The `ip_family` label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfFamily {
    ip_family: FamilyValue,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
enum FamilyValue {
    IPv4,
    IPv6,
}

/// The `code` label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfCode {
    code: u16,
}

impl From<AddressFamily> for OfFamily {
    fn from(family: AddressFamily) -> OfFamily {
        let ip_family = if family == AddressFamily::Ip6 {
            FamilyValue::IPv6
        } else {
            FamilyValue::IPv4
        };
        OfFamily { ip_family }
    }
}

/// The `traffic_policy` label, and the family's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    traffic_policy: &'static str,
    ip_family: FamilyValue,
}

/// The `table` label, and the family's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTable {
    table: &'static str,
    ip_family: FamilyValue,
}

/// 1 ms to 16 s, as upstream has it, and finer below: a change takes well under a millisecond here.
fn sync_duration() -> Histogram {
    Histogram::new(exponential_buckets(0.000_03, 2.0, 20))
}

/// Upstream's: a quarter of a second to five minutes.
fn programming_duration() -> Histogram {
    let steps = |from: u32, step: usize, to: u32| (from..=to).step_by(step).map(f64::from);
    let seconds = steps(1, 1, 59).chain(steps(60, 5, 115));
    let seconds = seconds.chain(steps(120, 30, 300));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds))
}

type Durations = Family<OfFamily, Histogram, fn() -> Histogram>;
type Time = Gauge<f64, AtomicU64>;

/// The proxy's metrics; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    mode: Mode,
    sync: Durations,
    full_sync: Durations,
    partial_sync: Durations,
    programming: Durations,
    failures: Family<OfFamily, Counter>,
    cleanup_failures: Family<OfFamily, Counter>,
    last_sync: Family<OfFamily, Time>,
    last_queued: Family<OfFamily, Time>,
    service_changes: Counter,
    services_pending: Gauge,
    endpoint_changes: Counter,
    endpoints_pending: Gauge,
    no_local_endpoints: Family<OfPolicy, Gauge>,
    element_changes: Counter,
    refused_services: Gauge,
    restore_failures: Family<OfFamily, Counter>,
    partial_restore_failures: Family<OfFamily, Counter>,
    iptables_rules: Family<OfTable, Gauge>,
    last_iptables_rules: Family<OfTable, Gauge>,
    conntrack_sync: Durations,
    conntrack_deleted: Family<OfFamily, Counter>,
    /// Answers of `/healthz`.
    pub healthz: Family<OfCode, Counter>,
    /// Answers of `/livez`.
    pub livez: Family<OfCode, Counter>,
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

impl Metrics {
    /// Those of a mode.
    pub fn new(mode: Mode) -> Metrics {
        let durations = || Family::new_with_constructor(sync_duration as fn() -> Histogram);
        let programming = programming_duration as fn() -> Histogram;
        Metrics {
            mode,
            sync: durations(),
            full_sync: durations(),
            partial_sync: durations(),
            programming: Family::new_with_constructor(programming),
            failures: Family::default(),
            cleanup_failures: Family::default(),
            last_sync: Family::default(),
            last_queued: Family::default(),
            service_changes: Counter::default(),
            services_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            endpoints_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            element_changes: Counter::default(),
            refused_services: Gauge::default(),
            restore_failures: Family::default(),
            partial_restore_failures: Family::default(),
            iptables_rules: Family::default(),
            last_iptables_rules: Family::default(),
            conntrack_sync: durations(),
            conntrack_deleted: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }

    /// What makes the rules.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// `iptables-restore` failed.
    pub fn restore_failed(&self, family: AddressFamily) {
        self.restore_failures.get_or_create(&family.into()).inc();
    }

    /// The change that it failed at was one of some Services.
    pub fn partial_restore_failed(&self, family: AddressFamily) {
        let failures = self.partial_restore_failures.get_or_create(&family.into());
        failures.inc();
    }

    /// How many rules a table of iptables has of the proxy's.
    pub fn set_iptables_rules(&self, family: AddressFamily, table: Table, rules: usize) {
        let gauge = self.iptables_rules.get_or_create(&of_table(family, table));
        gauge.set(rules as i64);
    }

    /// How many of them were given to the kernel the last time.
    pub fn set_last_iptables_rules(&self, family: AddressFamily, table: Table, rules: usize) {
        let gauge = self
            .last_iptables_rules
            .get_or_create(&of_table(family, table));
        gauge.set(rules as i64);
    }

    /// A Service changed, or its endpoints did.
    pub fn queued(&self, is_service: bool) {
        for family in [AddressFamily::Ip, AddressFamily::Ip6] {
            self.last_queued.get_or_create(&family.into()).set(now());
        }
        let (changes, pending) = if is_service {
            (&self.service_changes, &self.services_pending)
        } else {
            (&self.endpoint_changes, &self.endpoints_pending)
        };
        changes.inc();
        pending.inc();
    }

    /// All changes so far have been given to the kernel.
    pub fn nothing_pending(&self) {
        self.services_pending.set(0);
        self.endpoints_pending.set(0);
    }

    /// What changed `ago` is in the rules, by the word of who wrote the EndpointSlice.
    pub fn programmed(&self, family: AddressFamily, ago: Duration) {
        let programming = self.programming.get_or_create(&family.into());
        programming.observe(ago.as_secs_f64());
    }

    /// How many Service ports have a Local policy, no endpoint on this node, and one elsewhere: by
    /// internalTrafficPolicy, and by externalTrafficPolicy.
    pub fn set_no_local_endpoints(&self, family: AddressFamily, [internal, external]: [u32; 2]) {
        for (traffic_policy, count) in [("internal", internal), ("external", external)] {
            let ip_family = OfFamily::from(family).ip_family;
            let labels = OfPolicy {
                traffic_policy,
                ip_family,
            };
            let gauge = self.no_local_endpoints.get_or_create(&labels);
            gauge.set(i64::from(count));
        }
    }

    /// A family's rules were changed; `full` if all were looked at.
    pub fn synced(&self, family: AddressFamily, full: bool, took: Duration, elements: usize) {
        let of_kind = if full {
            &self.full_sync
        } else {
            &self.partial_sync
        };
        for durations in [&self.sync, of_kind] {
            let durations = durations.get_or_create(&family.into());
            durations.observe(took.as_secs_f64());
        }
        self.last_sync.get_or_create(&family.into()).set(now());
        // They are told from the start, as 0.
        for failures in [
            &self.failures,
            &self.cleanup_failures,
            &self.restore_failures,
            &self.partial_restore_failures,
        ] {
            drop(failures.get_or_create(&family.into()));
        }
        self.element_changes.inc_by(elements as u64);
    }

    /// The kernel refused a Service's rules.
    pub fn refused(&self, family: AddressFamily) {
        self.failures.get_or_create(&family.into()).inc();
    }

    /// How many Services are refused now.
    pub fn set_refused(&self, count: usize) {
        self.refused_services.set(count as i64);
    }

    /// Conntrack was looked through, and entries were deleted.
    pub fn conntrack_synced(&self, family: AddressFamily, took: Duration, deleted: usize) {
        let durations = self.conntrack_sync.get_or_create(&family.into());
        durations.observe(took.as_secs_f64());
        let count = self.conntrack_deleted.get_or_create(&family.into());
        count.inc_by(deleted as u64);
    }

    /// What only one mode has.
    fn register_of_mode(&self, rules: &mut Registry) {
        if self.mode == Mode::Nftables {
            rules.register(
                "nftables_cleanup_failures",
                "None: what is stale goes with the transaction that makes it so",
                self.cleanup_failures.clone(),
            );
            rules.register(
                "nftables_sync_failures",
                "Services that the kernel refused",
                self.failures.clone(),
            );
            return;
        }
        rules.register(
            "iptables_restore_failures",
            "Failures of iptables-restore",
            self.restore_failures.clone(),
        );
        rules.register(
            "iptables_partial_restore_failures",
            "Failures of iptables-restore with changed Services alone",
            self.partial_restore_failures.clone(),
        );
        rules.register(
            "iptables_total",
            "Rules of the proxy's",
            self.iptables_rules.clone(),
        );
        rules.register(
            "iptables_last",
            "Rules that were given to the kernel the last time",
            self.last_iptables_rules.clone(),
        );
    }

    /// The Prometheus text.
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("kubeproxy");
        let rules = registry.sub_registry_with_prefix("sync_proxy_rules");
        let help = "From a change of the API to the kernel's answer";
        rules.register_with_unit("duration", help, Unit::Seconds, self.sync.clone());
        let kinds = [
            ("full", "At a start", &self.full_sync),
            ("partial", "Of a change", &self.partial_sync),
        ];
        rules.register(
            "no_local_endpoints_total",
            "Service ports with a Local policy and endpoints on other nodes only",
            self.no_local_endpoints.clone(),
        );
        rules.register(
            "service_changes_pending",
            "Changes of Services that aren't in the rules yet",
            self.services_pending.clone(),
        );
        rules.register(
            "endpoint_changes_pending",
            "Changes of EndpointSlices that aren't in the rules yet",
            self.endpoints_pending.clone(),
        );
        self.register_of_mode(rules);
        rules.register(
            "last_timestamp_seconds",
            "Last change of the rules",
            self.last_sync.clone(),
        );
        rules.register(
            "last_queued_timestamp_seconds",
            "Last change of the API",
            self.last_queued.clone(),
        );
        rules.register(
            "service_changes",
            "Changes of Services",
            self.service_changes.clone(),
        );
        rules.register(
            "endpoint_changes",
            "Changes of EndpointSlices",
            self.endpoint_changes.clone(),
        );
        rules.register(
            "element_changes",
            "Elements that changed in the rules",
            self.element_changes.clone(),
        );
        rules.register(
            "refused_services",
            "Services that the kernel refuses now",
            self.refused_services.clone(),
        );
        for (kind, help, durations) in kinds {
            let name = format!("sync_{kind}_proxy_rules_duration");
            registry.register_with_unit(name, help, Unit::Seconds, durations.clone());
        }
        let help = "From an endpoint's change to the rules, by the EndpointSlice's word";
        let programming = self.programming.clone();
        registry.register_with_unit(
            "network_programming_duration",
            help,
            Unit::Seconds,
            programming,
        );
        let help = "The search for stale connections";
        let sync = self.conntrack_sync.clone();
        registry.register_with_unit(
            "conntrack_reconciler_sync_duration",
            help,
            Unit::Seconds,
            sync,
        );
        let help = "Stale connections that were deleted";
        registry.register(
            "conntrack_reconciler_deleted_entries",
            help,
            self.conntrack_deleted.clone(),
        );
        registry.register(
            "proxy_healthz",
            "Answers of /healthz by status",
            self.healthz.clone(),
        );
        registry.register(
            "proxy_livez",
            "Answers of /livez by status",
            self.livez.clone(),
        );
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

fn of_table(family: AddressFamily, table: Table) -> OfTable {
    OfTable {
        table: table.name(),
        ip_family: OfFamily::from(family).ip_family,
    }
}

/// The label set of a status.
pub fn of_code(code: u16) -> OfCode {
    OfCode { code }
}
