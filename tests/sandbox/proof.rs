//! Proof that a hop was mutual TLS: what the receiving sidecar measured.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::{Arena, eventually};

/// Requests to an app came over mutual TLS, all of them, and there were at least that many.
pub(crate) async fn encrypted_requests(
    arena: &Arena<'_>,
    app: &str,
    at_least: u32,
) -> anyhow::Result<()> {
    encrypted(arena, app, "istio_requests_total", at_least).await
}

/// Connections to an app came over mutual TLS, all of them, and there were at least that many.
pub(crate) async fn encrypted_connections(
    arena: &Arena<'_>,
    app: &str,
    at_least: u32,
) -> anyhow::Result<()> {
    encrypted(arena, app, "istio_tcp_connections_opened_total", at_least).await
}

async fn encrypted(arena: &Arena<'_>, app: &str, name: &str, at_least: u32) -> anyhow::Result<()> {
    eventually(Duration::from_secs(5), async || {
        let metrics = arena.metrics(app).await?;
        let inbound = ("reporter", "destination");
        let all = metrics.sum(name, &[inbound]);
        let encrypted = metrics.sum(
            name,
            &[inbound, ("connection_security_policy", "mutual_tls")],
        );
        ensure!(
            encrypted >= f64::from(at_least),
            "{encrypted} of {all} {name} of {app} over mutual TLS, expected {at_least}\n{}",
            metrics.text()
        );
        ensure!(
            encrypted == all,
            "only {encrypted} of {all} {name} of {app} over mutual TLS"
        );
        Ok(())
    })
    .await
}
