//! What discovery counts, under the names of Istio's pilot with our prefix.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tulle_xds_proto::ResourceType;

use super::refused::Refused;

/// Counters of discovery.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    connected: Gauge,
    pushes: Family<TypeLabel, Counter>,
    pushed_bytes: Family<TypeLabel, Counter>,
    rejects: Family<TypeLabel, Counter>,
    expired_nonces: Family<TypeLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    refused_requests: Family<ReasonLabel, Counter>,
    encoded: Family<TypeLabel, Counter>,
    convergence: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Counts one open stream for as long as it lives.
#[derive(Debug)]
pub(crate) struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            connected: Gauge::default(),
            pushes: Family::default(),
            pushed_bytes: Family::default(),
            rejects: Family::default(),
            expired_nonces: Family::default(),
            refused: Family::default(),
            refused_requests: Family::default(),
            encoded: Family::default(),
            convergence: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
        };
        let m = metrics.clone();
        registry.register("xds", "Proxies with an open discovery stream", m.connected);
        registry.register("xds_pushes", "Responses sent to proxies, by type", m.pushes);
        registry.register(
            "xds_config_size_bytes",
            "Bytes of resources sent to proxies, by type",
            m.pushed_bytes,
        );
        registry.register(
            "total_xds_rejects",
            "Responses that proxies refused, by type",
            m.rejects,
        );
        registry.register(
            "xds_expired_nonce",
            "Replies to no response that waits for one, by type",
            m.expired_nonces,
        );
        registry.register(
            "xds_refused_streams",
            "Discovery streams that were refused, or ended for what they asked, by reason",
            m.refused,
        );
        registry.register(
            "xds_refused_requests",
            "Discovery requests that get no answer while their stream goes on, by reason",
            m.refused_requests,
        );
        registry.register(
            "xds_encoded",
            "Resources translated and encoded, by type",
            m.encoded,
        );
        registry.register(
            "proxy_convergence_time_seconds",
            "Time from a change to its acknowledgement by a proxy that it concerns",
            m.convergence,
        );
        metrics
    }

    pub(crate) fn connected(&self) -> Connected {
        self.connected.inc();
        Connected(self.connected.clone())
    }

    pub(crate) fn pushed(&self, kind: ResourceType, bytes: usize) {
        self.pushes.get_or_create(&label(kind)).inc();
        self.pushed_bytes
            .get_or_create(&label(kind))
            .inc_by(bytes as u64);
    }

    pub(crate) fn rejected(&self, kind: ResourceType) {
        self.rejects.get_or_create(&label(kind)).inc();
    }

    pub(crate) fn expired_nonce(&self, kind: ResourceType) {
        self.expired_nonces.get_or_create(&label(kind)).inc();
    }

    pub(crate) fn refused(&self, refused: Refused) {
        let reason = refused.name();
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn refused_request(&self, reason: &'static str) {
        let label = ReasonLabel { reason };
        self.refused_requests.get_or_create(&label).inc();
    }

    pub(crate) fn encoded(&self, kind: ResourceType) {
        self.encoded.get_or_create(&label(kind)).inc();
    }

    pub(crate) fn converged(&self, after: Duration) {
        self.convergence.observe(after.as_secs_f64());
    }
}

fn label(kind: ResourceType) -> TypeLabel {
    TypeLabel {
        r#type: kind.short_name(),
    }
}
