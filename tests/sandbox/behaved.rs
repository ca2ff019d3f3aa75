//! A client that behaves itself while others do not: it loses nothing.

use std::time::Duration;

use anyhow::ensure;
use tulle_runtime::names::containers;
use tulle_tests::{Arena, Load, eventually};

const DEADLINE: Duration = Duration::from_secs(20);

/// Over HTTP/1 and HTTP/2, each on the connection that it has.
pub(crate) struct Behaved<'a> {
    arena: &'a Arena<'a>,
    loads: [Load; 2],
}

impl<'a> Behaved<'a> {
    /// Begins to call `http://web:8080/` from the app `client`, so often a second in each protocol.
    pub(crate) async fn begin(arena: &'a Arena<'a>, rate: u32) -> anyhow::Result<Self> {
        let url = "http://web:8080/";
        // On a machine that has much else to do requests are late, not lost, and do not pile up in the sidecars.
        let one = ["--timeout", "10m", "--concurrency", "1"];
        let http2 = ["--timeout", "10m", "--concurrency", "8", "--http2"];
        // What is measured begins on connections that are there.
        for options in [&one[..], &http2] {
            let warm = arena.load("client", url, 20, 0.5, options).await?;
            ensure!(warm.failed == 0, "before the attack: {}", warm.line());
        }
        let loads = [
            arena.start_load("client", url, rate, 3_600.0, &one)?,
            arena.start_load("client", url, rate, 3_600.0, &http2)?,
        ];
        Ok(Self { arena, loads })
    }

    /// Resolves when both of its connections are there and in use: nothing new may come in once the attack has begun.
    pub(crate) async fn begun(self) -> anyhow::Result<Self> {
        eventually(DEADLINE, async || {
            let metrics = self.arena.metrics("web").await?;
            let seen = metrics.sum("istio_requests_total", &[("reporter", "destination")]);
            let open = metrics.sum(
                "tulle_downstream_connections_open",
                &[("direction", "inbound")],
            );
            ensure!(
                seen >= 30.0 && open >= 2.0,
                "the client has only begun: {seen} requests, {open} connections"
            );
            Ok(())
        })
        .await?;
        Ok(self)
    }

    /// It has lost nothing, and was answered so often at least in each protocol.
    pub(crate) async fn end(self, at_least: u64) -> anyhow::Result<()> {
        let [one, two] = self.loads;
        // Both end now, whatever one of them has to say.
        let (one, two) = tokio::join!(one.stop(), two.stop());
        for (protocol, summary) in [("HTTP/1", one?), ("HTTP/2", two?)] {
            let lost = summary.failed > 0 || summary.ok != summary.sent;
            ensure!(
                !lost,
                "somebody else lost requests of {protocol}: {}\n{}{}",
                summary.line(),
                failures(self.arena, "client"),
                failures(self.arena, "web")
            );
            ensure!(
                summary.ok >= at_least,
                "too few requests of {protocol}: {}",
                summary.line()
            );
        }
        Ok(())
    }
}

/// What the sidecar of a pod says of requests like those of [`Behaved`] that failed, the first of them.
pub(crate) fn failures(arena: &Arena<'_>, pod: &str) -> String {
    const FIRST: usize = 5;
    let log = arena.logs(pod, Some(containers::PROXY)).unwrap_or_default();
    let failed = log
        .lines()
        .filter(|line| line.contains(r#""path":"/","#) && !line.contains(r#""response_code":200"#));
    let lines = failed.take(FIRST).map(|line| format!("{pod}: {line}\n"));
    lines.collect()
}
