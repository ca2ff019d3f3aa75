//! What is counted about the watches of an API server.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

/// Of which watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Of {
    /// A kind, or the CustomResourceDefinition of one.
    kind: Arc<str>,
}

/// Of which watch, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Why {
    kind: Arc<str>,
    reason: &'static str,
}

/// The metrics; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    restarts: Family<Of, Counter>,
    failures: Family<Why, Counter>,
    skipped: Family<Of, Counter>,
    unread: Family<Of, Gauge>,
    contacts: Contacts,
}

/// When the API server last said something, by kind.
#[derive(Clone, Debug, Default)]
struct Contacts(Arc<Mutex<BTreeMap<Arc<str>, Instant>>>);

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "source_watch_restarts",
            "Watches of the API server that were begun, for whatever reason",
            self.restarts.clone(),
        );
        registry.register(
            "source_watch_failures",
            "Lists and watches of the API server that failed, by the reason",
            self.failures.clone(),
        );
        registry.register(
            "source_objects_skipped",
            "Objects of the API server that could not be used when they came",
            self.skipped.clone(),
        );
        registry.register(
            "source_unread",
            "1 for a kind that cannot be listed and never could, so that nothing of it is in force",
            self.unread.clone(),
        );
        registry.register_collector(Box::new(self.contacts.clone()));
    }

    /// A watch begins.
    pub(super) fn restarted(&self, kind: &Arc<str>) {
        self.restarts
            .get_or_create(&Of { kind: kind.clone() })
            .inc();
    }

    /// A list or watch failed.
    pub(super) fn failed(&self, kind: &Arc<str>, reason: &'static str) {
        let kind = kind.clone();
        self.failures.get_or_create(&Why { kind, reason }).inc();
    }

    /// An object was not used.
    pub(super) fn skipped(&self, kind: Arc<str>) {
        self.skipped.get_or_create(&Of { kind }).inc();
    }

    /// A list fails, and none was ever complete.
    pub(super) fn unread(&self, kind: &Arc<str>) {
        self.unread.get_or_create(&Of { kind: kind.clone() }).set(1);
    }

    /// A list is complete.
    pub(super) fn listed(&self, kind: &Arc<str>) {
        self.unread.remove(&Of { kind: kind.clone() });
    }

    /// The API server said something.
    pub(super) fn contact(&self, kind: &Arc<str>) {
        self.contacts.0.lock().insert(kind.clone(), Instant::now());
    }

    /// Nothing is asked about it any more.
    pub(super) fn forget(&self, kind: &Arc<str>) {
        self.contacts.0.lock().remove(kind);
        self.listed(kind);
    }
}

impl Collector for Contacts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let contacts = self.0.lock().clone();
        if contacts.is_empty() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(
            "source_contact_age",
            "Time since the API server last said something",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (kind, at) in contacts {
            let age = ConstGauge::new(at.elapsed().as_secs_f64());
            age.encode(family.encode_family(&Of { kind })?)?;
        }
        Ok(())
    }
}
