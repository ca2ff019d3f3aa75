//! Metrics of the config client.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tulle_xds_proto::ResourceType;

/// Counters of the config client.
#[derive(Clone, Debug, Default)]
pub struct XdsMetrics {
    pub(super) connected: Gauge,
    pub(super) streams: Counter,
    pub(super) updates: Family<TypeLabel, Counter>,
    pub(super) rejects: Family<TypeLabel, Counter>,
    pub(super) subscriptions: Family<TypeLabel, Gauge>,
    pub(super) expired: Family<TypeLabel, Counter>,
    asked: Family<AskLabel, Gauge>,
    pub(super) refused_asks: Counter,
    pub(super) cache_failures: Counter,
    pub(super) throttled: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TypeLabel {
    resource: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AskLabel {
    about: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind(ResourceType);

impl XdsMetrics {
    /// Registers them under `xds_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("xds");
        let Self {
            connected,
            streams,
            updates,
            rejects,
            subscriptions,
            expired,
            asked,
            refused_asks,
            cache_failures,
            throttled,
        } = metrics.clone();
        registry.register(
            "connected",
            "Whether the control plane is connected",
            connected,
        );
        registry.register("streams", "Streams opened to the control plane", streams);
        registry.register("updates", "Resources accepted, removals included", updates);
        registry.register("rejects", "Resources refused (NACK)", rejects);
        registry.register("subscriptions", "Resources subscribed to", subscriptions);
        let help = "Resources that were not renewed within the lifetime that they came with";
        registry.register("expired", help, expired);
        let help = "Destinations, and addresses of clients, that the control plane is asked about";
        registry.register("asked", help, asked);
        let help = "Destinations not asked for because too many are subscribed";
        registry.register("refused_asks", help, refused_asks);
        let help = "Failures to save the last good config, or to read it back";
        registry.register("cache_failures", help, cache_failures);
        let help = "Times the control plane talked so fast that it was not listened to for a while";
        registry.register("throttled", help, throttled);
        // A series that begins at zero shows its first increase.
        for kind in [
            ResourceType::Cluster,
            ResourceType::Endpoints,
            ResourceType::Listener,
            ResourceType::Route,
            ResourceType::Address,
        ] {
            let label = TypeLabel::of(kind);
            let _ = metrics.updates.get_or_create(&label);
            let _ = metrics.rejects.get_or_create(&label);
            let _ = metrics.subscriptions.get_or_create(&label);
            let _ = metrics.expired.get_or_create(&label);
        }
        metrics.asked(0, 0);
        metrics
    }

    /// How many destinations, and how many addresses of clients, are asked about now.
    pub(super) fn asked(&self, destinations: usize, clients: usize) {
        for (about, number) in [("destinations", destinations), ("clients", clients)] {
            let gauge = self.asked.get_or_create(&AskLabel { about });
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }
}

impl TypeLabel {
    pub(super) fn of(kind: ResourceType) -> Self {
        Self {
            resource: Kind(kind),
        }
    }
}

impl EncodeLabelValue for Kind {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder,
    ) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.short_name(), encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_name_help_and_type() {
        let mut registry = Registry::with_prefix("tulle");
        let metrics = XdsMetrics::register(&mut registry);
        metrics
            .rejects
            .get_or_create(&TypeLabel::of(ResourceType::Listener))
            .inc();
        let text = tulle_runtime::metrics::encode(&registry);
        for (name, kind) in [
            ("connected", "gauge"),
            ("streams", "counter"),
            ("updates", "counter"),
            ("rejects", "counter"),
            ("subscriptions", "gauge"),
            ("expired", "counter"),
            ("asked", "gauge"),
            ("refused_asks", "counter"),
            ("cache_failures", "counter"),
            ("throttled", "counter"),
        ] {
            assert!(
                text.contains(&format!("# HELP tulle_xds_{name} ")),
                "{text}"
            );
            assert!(
                text.contains(&format!("# TYPE tulle_xds_{name} {kind}\n")),
                "{text}"
            );
        }
        assert!(
            text.contains("tulle_xds_rejects_total{resource=\"LDS\"} 1\n"),
            "{text}"
        );
    }
}
