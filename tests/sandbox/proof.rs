//! Proof at the receiving end: that a hop was mutual TLS, as its sidecar measured, and what its app wrote.

use std::time::Duration;

use anyhow::ensure;
use tulle_tests::{Arena, eventually};

/// An app has written this. What it writes comes through a pipe and a file, so it may come after the answer.
pub(crate) async fn wrote(arena: &Arena<'_>, app: &str, text: &str) -> anyhow::Result<()> {
    eventually(Duration::from_secs(5), async || {
        let log = arena.logs(app, None)?;
        ensure!(
            log.contains(text),
            "{app} did not write {text:?} but: {log}"
        );
        Ok(())
    })
    .await
}

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
