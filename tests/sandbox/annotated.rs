//! What a pod sets for its own sidecar, by annotation: limits hold, and one that makes no sense keeps the pod out; Prometheus
//! finds the app's metrics behind the sidecar's.

use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use tulle_tests::manifests::FILES;
use tulle_tests::{Arena, Mesh, app, eventually};

tulle_tests::cases! {
    a_pod_limits_its_own_sidecar_and_no_other;
    prometheus_finds_both_parts_at_the_sidecar_under_strict ["python3"];
    a_pod_with_a_limit_that_its_sidecar_could_not_read_is_kept_out_and_told_why;
}

/// How often the sidecar of an app has refused a head that came in.
async fn refused(arena: &Arena<'_>, app: &str) -> anyhow::Result<f64> {
    let labels = [("limit", "head"), ("listener", "inbound")];
    let metrics = arena.metrics(app).await?;
    Ok(metrics.sum("tulle_limits_reached_total", &labels))
}

async fn a_pod_limits_its_own_sidecar_and_no_other(mesh: &Mesh) -> anyhow::Result<()> {
    let limited = app("limited")
        .http(8080)
        .annotate("limits.tulle.dev/max-head", "9Ki");
    let fields = app("fields")
        .http(8080)
        .annotate("limits.tulle.dev/max-fields", "20");
    let client = app("client").annotate("tulle.dev/inject", "disabled");
    let arena = mesh
        .apply(
            "annotated",
            limited + fields + app("web").http(8080) + client,
        )
        .await?;
    let large = [format!("x-large: {}", "v".repeat(10_000))];
    let many: Vec<_> = (0..30).map(|n| format!("x-{n}: v")).collect();
    for (name, headers, status) in [
        ("limited", &large[..], 431),
        ("web", &large, 200),
        ("limited", &many, 200),
        ("fields", &many, 431),
        ("fields", &many[..10], 200),
    ] {
        let before = refused(&arena, name).await?;
        let url = format!("http://{name}:8080/");
        let mut arguments = vec![url.as_str()];
        for header in headers {
            arguments.extend(["-H", header]);
        }
        let answer = arena.app_call("client", &arguments).await?;
        ensure!(answer["status"] == status, "{name}: {answer}");
        let count = refused(&arena, name).await? - before;
        let expected = f64::from(u8::from(status == 431));
        ensure!(count == expected, "{name}: {count} were counted");
    }
    Ok(())
}

const STRICT: &str = "{apiVersion: tulle.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: strict}, spec: {mtls: {mode: STRICT}}}";

async fn prometheus_finds_both_parts_at_the_sidecar_under_strict(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let scraped = |name: &str, port: &str| {
        app(name)
            .command(["python3", "-m", "http.server", "9090", "--directory", FILES])
            .file(
                "metrics.txt",
                "# TYPE shop_orders_total counter\nshop_orders_total 7\n",
            )
            .port("http", 9090, 9090)
            .annotate("prometheus.io/scrape", "true")
            .annotate("prometheus.io/port", port)
            .annotate("prometheus.io/path", "/metrics.txt")
    };
    let prometheus = app("prometheus").label("tulle.dev/inject", "disabled");
    let apps = scraped("shop", "9090") + scraped("down", "9091") + prometheus;
    let arena = mesh.apply("annotated-metrics", apps + STRICT).await?;
    let ask = async |pod: &str, port: &str, path: &str| {
        let address = arena.pod(pod)?.ips.v4;
        let url = format!("http://{address}:{port}{path}");
        arena.app_call("prometheus", &[&url]).await
    };
    // The app's own port is closed to it.
    eventually(Duration::from_secs(10), async || {
        let past = ask("shop", "9090", "/metrics.txt").await;
        let open = past.as_ref().is_ok_and(|answer| answer["status"] == 200);
        ensure!(!open, "{past:?}");
        Ok(())
    })
    .await?;
    let text = |answer: &Value| answer["body"].as_str().unwrap_or_default().to_owned();
    let answer = ask("shop", "15020", "/stats/prometheus").await?;
    let both = text(&answer);
    ensure!(both.contains("\nshop_orders_total 7\n"), "{answer}");
    ensure!(
        both.contains("# TYPE tulle_xds_streams_total counter\n"),
        "{answer}"
    );
    let own = text(&ask("shop", "15020", "/metrics").await?);
    ensure!(
        own.contains("# TYPE tulle_xds_streams counter\n") && !own.contains("shop_orders"),
        "{own}"
    );
    let answer = ask("down", "15020", "/stats/prometheus").await?;
    let alone = text(&answer);
    let counted = "tulle_app_metrics_failures_total{reason=\"connect\"} 1\n";
    ensure!(
        alone.contains(counted) && !alone.contains("shop_orders"),
        "{answer}"
    );
    Ok(())
}

async fn a_pod_with_a_limit_that_its_sidecar_could_not_read_is_kept_out_and_told_why(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let arena = mesh
        .apply("annotated-wrongly", app("web").http(8080).yaml())
        .await?;
    let wrong = app("wrong").annotate("limits.tulle.dev/max-head", "plenty");
    arena.add(wrong.yaml())?;
    eventually(Duration::from_secs(10), async || {
        let problems = mesh.sandbox.problems().join("\n");
        let said =
            "annotation limits.tulle.dev/max-head has the value \"plenty\": use a number of bytes";
        ensure!(problems.contains(said), "it was not told: {problems}");
        Ok(())
    })
    .await?;
    ensure!(arena.pods_of("wrong").is_empty(), "it runs all the same");
    Ok(())
}
