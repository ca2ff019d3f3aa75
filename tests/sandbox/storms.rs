//! Retries where nothing gets better by them. Row 48.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_tests::{Mesh, app, eventually};

tulle_tests::cases! {
    row_48_where_every_answer_is_503_retries_add_a_fifth_at_most;
}

/// Three retries of each failure.
const ROUTE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
  - retry: { codes: [503], attempts: 3, backoff: 10ms }
    backendRefs: [{ name: web, port: 8080 }]
"#;
const DEADLINE: Duration = Duration::from_secs(15);
/// Retries that the budget allows in its ten seconds, however few requests there are.
const FLOOR: u64 = 100;
/// Seconds after which no window has both of two retries: it counts by whole seconds, ten of them.
const WINDOW: u64 = 9;

async fn row_48_where_every_answer_is_503_retries_add_a_fifth_at_most(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let web = app("web").http(8080).replicas(2);
    let arena = mesh
        .apply("retry-storm", web + app("client") + ROUTE)
        .await?;
    let begun = Instant::now();
    let probes = Cell::new(0);
    eventually(DEADLINE, async || {
        probes.set(probes.get() + 1);
        let call = ["http://web:8080/?status=503&probability=1&id=probe"];
        arena.app_call("client", &call).await?;
        let log = arena.access_log("client")?;
        // The route is in effect: four attempts were made of one request.
        let flags = log.last().map(|line| line["response_flags"].clone());
        ensure!(flags == Some("URX".into()), "{flags:?}");
        Ok(())
    })
    .await?;
    let url = "http://web:8080/?status=503&probability=1";
    let options = ["--id-prefix", "storm", "--timeout", "30s"];
    let summary = arena.load("client", url, 200, 5.0, &options).await?;
    let windows = 1 + begun.elapsed().as_secs() / WINDOW;
    ensure!(summary.ok == 0, "{}", summary.line());
    let sent = summary.sent + probes.get();
    let (mut received, mut most) = (0, 0);
    for pod in arena.pods_of("web") {
        let counts = ["http://127.0.0.1:8080/counts?prefix="];
        let counts = arena.app_call(&pod.key.name, &counts).await?;
        let counts = counts["body"]["counts"].as_object().context("no counts")?;
        for (_, count) in counts.iter().filter(|(id, _)| *id != "probe") {
            most = most.max(count.as_u64().unwrap_or_default());
        }
        received += counts.values().filter_map(Value::as_u64).sum::<u64>();
    }
    // Some are made, or the limit would not be seen to work.
    ensure!(most > 1, "no retry came");
    // A machine that is too slow to ask all this in one window has more than one, each with its floor.
    let more = received.saturating_sub(sent);
    let allowed = (sent / 5).max(FLOOR) + FLOOR * (windows - 1);
    ensure!(
        more <= allowed,
        "{received} requests came of {sent}, and {windows} windows allow {allowed} more"
    );
    Ok(())
}
