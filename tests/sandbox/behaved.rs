//! A client that behaves itself while others do not: it loses nothing.

use std::time::Duration;

use anyhow::ensure;
use tulle_runtime::names::containers;
use tulle_tests::{Arena, Load, eventually};

const DEADLINE: Duration = Duration::from_secs(20);
/// What is called.
const URL: &str = "http://web:8080/";
/// How long a request may take, counted from when it is due: also on a machine that has much else to do, where requests are
/// late and not lost.
const PATIENCE: &str = "30s";
/// The same of one that comes with a connection of its own.
const NEWCOMERS_PATIENCE: &str = "5s";

/// Over HTTP/1 and HTTP/2, each on the connection that it has.
pub(crate) struct Behaved<'a> {
    arena: &'a Arena<'a>,
    loads: [Load; 2],
}

impl<'a> Behaved<'a> {
    /// Begins to call `http://web:8080/` from the app `client`, so often a second in each protocol.
    pub(crate) async fn begin(arena: &'a Arena<'a>, rate: u32) -> anyhow::Result<Self> {
        // They do not pile up in the sidecars.
        let one = ["--timeout", PATIENCE, "--concurrency", "1"];
        let http2 = ["--timeout", PATIENCE, "--concurrency", "8", "--http2"];
        // What is measured begins on connections that are there.
        for options in [&one[..], &http2] {
            let warm = arena.load("client", URL, 20, 0.5, options).await?;
            ensure!(warm.failed == 0, "before the attack: {}", warm.line());
        }
        let loads = [
            arena.start_load("client", URL, rate, 3_600.0, &one)?,
            arena.start_load("client", URL, rate, 3_600.0, &http2)?,
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

    /// Others come to the same sidecar while the attack goes on, each request with a connection of its own: none is lost, and
    /// none waits for long. What they share with those that were there before is the connection between the sidecars.
    pub(crate) async fn newcomers(&self) -> anyhow::Result<()> {
        let options = ["--timeout", NEWCOMERS_PATIENCE, "--http2", "--no-reuse"];
        let came = self.arena.load("client", URL, 10, 3.0, &options).await?;
        let lost = came.failed > 0 || came.ok != came.sent;
        ensure!(
            !lost && came.ok > 0,
            "newcomers lost requests: {}\n{}{}",
            came.line(),
            failures(self.arena, "client"),
            failures(self.arena, "web")
        );
        Ok(())
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
