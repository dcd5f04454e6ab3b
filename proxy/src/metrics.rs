//! What the proxy counts and times, under upstream's names where upstream has it.

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

/// 1 ms to 16 s, as upstream has it, and finer below: a change takes well under a millisecond here.
fn sync_duration() -> Histogram {
    Histogram::new(exponential_buckets(0.000_03, 2.0, 20))
}

type Time = Gauge<f64, AtomicU64>;

/// The proxy's metrics; clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    sync: Family<OfFamily, Histogram, fn() -> Histogram>,
    failures: Family<OfFamily, Counter>,
    last_sync: Time,
    last_queued: Time,
    service_changes: Counter,
    endpoint_changes: Counter,
    element_changes: Counter,
    refused_services: Gauge,
    conntrack_deleted: Counter,
    /// Answers of `/healthz`.
    pub healthz: Family<OfCode, Counter>,
    /// Answers of `/livez`.
    pub livez: Family<OfCode, Counter>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            sync: Family::new_with_constructor(sync_duration as fn() -> Histogram),
            failures: Family::default(),
            last_sync: Time::default(),
            last_queued: Time::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            element_changes: Counter::default(),
            refused_services: Gauge::default(),
            conntrack_deleted: Counter::default(),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

impl Metrics {
    /// A Service changed, or its endpoints did.
    pub fn queued(&self, is_service: bool) {
        self.last_queued.set(now());
        if is_service {
            self.service_changes.inc()
        } else {
            self.endpoint_changes.inc()
        };
    }

    /// A family's rules were changed.
    pub fn synced(&self, family: AddressFamily, took: Duration, elements: usize) {
        self.sync
            .get_or_create(&family.into())
            .observe(took.as_secs_f64());
        self.last_sync.set(now());
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

    /// Conntrack entries were deleted.
    pub fn conntrack_deleted(&self, count: usize) {
        self.conntrack_deleted.inc_by(count as u64);
    }

    /// The Prometheus text.
    pub fn text(&self) -> String {
        let mut registry = Registry::with_prefix("kubeproxy");
        let rules = registry.sub_registry_with_prefix("sync_proxy_rules");
        let help = "From a change of the API to the kernel's answer";
        rules.register_with_unit("duration", help, Unit::Seconds, self.sync.clone());
        rules.register(
            "nftables_sync_failures",
            "Services that the kernel refused",
            self.failures.clone(),
        );
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

/// The label set of a status.
pub fn of_code(code: u16) -> OfCode {
    OfCode { code }
}
