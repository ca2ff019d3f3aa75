//! What the CA counts, under the names of Istio's CA with our prefix.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::failure::Failure;

/// Counters of the CA.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    requests: Counter,
    issued: Counter,
    failures: Family<ReasonLabel, Counter>,
    /// Roots in the bundle; more than one during a rotation.
    pub(crate) roots: Gauge,
    /// When the signing root ends, in seconds since 1970.
    pub(crate) root_expiry: Gauge,
    /// Bundles that did not reach their sink.
    pub(crate) bundle_failures: Counter,
    /// Whether the state is no good, and the last good one in use.
    pub(crate) state_broken: Gauge,
    /// The same of a root that somebody else provides.
    pub(crate) plugged_broken: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Counter::default(),
            issued: Counter::default(),
            failures: Family::default(),
            roots: Gauge::default(),
            root_expiry: Gauge::default(),
            bundle_failures: Counter::default(),
            state_broken: Gauge::default(),
            plugged_broken: Gauge::default(),
        };
        let m = metrics.clone();
        registry.register("ca_csr", "Certificate requests received", m.requests);
        registry.register("ca_success_cert_issuance", "Certificates issued", m.issued);
        registry.register(
            "ca_csr_failures",
            "Certificate requests refused, by reason",
            m.failures,
        );
        registry.register("ca_roots", "Roots in the trust bundle", m.roots);
        registry.register(
            "ca_root_cert_expiry_timestamp_seconds",
            "End of the signing root, Unix time",
            m.root_expiry,
        );
        registry.register(
            "ca_bundle_failures",
            "Trust bundles that could not be written",
            m.bundle_failures,
        );
        registry.register(
            "ca_state_broken",
            "Whether the CA's state was spoilt and the last good one is in use",
            m.state_broken,
        );
        registry.register(
            "ca_issuer_broken",
            "Whether the provided root cannot be used and the last good one is in use",
            m.plugged_broken,
        );
        metrics
    }

    pub(crate) fn requested(&self) {
        self.requests.inc();
    }

    pub(crate) fn issued(&self) {
        self.issued.inc();
    }

    pub(crate) fn failed(&self, failure: Failure) {
        let reason = failure.name();
        self.failures.get_or_create(&ReasonLabel { reason }).inc();
    }
}
