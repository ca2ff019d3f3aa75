//! The text form of a metrics registry.
//!
//! Each room registers its own metrics (`Metrics::register(&mut Registry)`); whoever owns the registry serves
//! [`encode`] under [`CONTENT_TYPE`].

use prometheus_client::registry::Registry;

/// Content type of what [`encode`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of a registry as OpenMetrics text, which Prometheus reads.
#[must_use]
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)
        .expect("writing to a String cannot fail");
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn encode_gives_name_help_type_and_value() {
        let mut registry = Registry::with_prefix("tulle");
        let requests = Counter::<u64>::default();
        registry.register("requests", "Requests seen", requests.clone());
        requests.inc_by(3);
        assert_eq!(
            encode(&registry),
            "# HELP tulle_requests Requests seen.\n# TYPE tulle_requests counter\ntulle_requests_total 3\n# EOF\n"
        );
    }
}
