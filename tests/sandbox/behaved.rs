//! A client that behaves itself while others do not: it loses nothing.

use anyhow::ensure;
use tulle_tests::{Arena, Load};

/// Over HTTP/1 and HTTP/2, each on the connection that it has.
pub(crate) struct Behaved([Load; 2]);

impl Behaved {
    /// Begins to call `http://web:8080/` from the app `client`, so often a second in each protocol.
    pub(crate) async fn begin(arena: &Arena<'_>, rate: u32) -> anyhow::Result<Self> {
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
        Ok(Self(loads))
    }

    /// It has lost nothing, and was answered so often at least in each protocol.
    pub(crate) async fn end(self, at_least: u64) -> anyhow::Result<()> {
        let [one, two] = self.0;
        // Both end now, whatever one of them has to say.
        let (one, two) = tokio::join!(one.stop(), two.stop());
        for (protocol, summary) in [("HTTP/1", one?), ("HTTP/2", two?)] {
            let lost = summary.failed > 0 || summary.ok != summary.sent;
            ensure!(
                !lost,
                "somebody else lost requests of {protocol}: {}",
                summary.line()
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
