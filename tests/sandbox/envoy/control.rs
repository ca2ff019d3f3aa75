//! Envoy and the control plane: an outage, and a resource that Envoy does not like.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_tests::{Arena, Mesh, app, eventually};

use super::DEADLINE;
use super::pod::{DELTA, FULL, all_accepted, with_envoy, with_runtime_layer};

tulle_tests::cases! {
    an_outage_of_the_control_plane_costs_no_request ["alone", "envoy", "curl"];
    a_route_that_envoy_refuses_is_shown_and_mended ["alone", "envoy", "curl"];
    a_type_that_is_not_served_costs_an_envoy_no_other ["alone", "envoy", "curl"];
}

/// Until everybody has heard of what is new. Each time that an Envoy fails to connect it waits longer for the next, up to
/// 30 s: on a busy machine a control plane takes several of its attempts to start.
const RECONNECTED: Duration = Duration::from_secs(45);
/// A machine that has much else to do makes requests late, not lost.
const PATIENCE: [&str; 2] = ["--timeout", "30s"];

async fn an_outage_of_the_control_plane_costs_no_request(mesh: &Mesh) -> anyhow::Result<()> {
    let manifests = with_envoy(app("full"), FULL)?
        + &with_envoy(app("delta"), DELTA)?
        + &app("web").http(8080).yaml();
    let arena = mesh.apply("envoy-outage", manifests).await?;
    let url = "http://web:8080/";
    let clients = ["full", "delta"];
    for client in clients {
        let answer = arena.app_call(client, &[url]).await?;
        ensure!(answer["status"] == 200, "{client}: {answer}");
    }
    let loads = clients.map(|client| arena.start_load(client, url, 20, 6.0, &PATIENCE));
    mesh.control.kill().await;
    mesh.control.resume().await;
    for load in loads {
        let summary = load?.summary().await?;
        ensure!(summary.failed == 0, "{summary:?}");
    }
    let web = r#""name":"web"},"spec":{"replicas":"#;
    arena.edit(|text| text.replace(&format!("{web}1"), &format!("{web}2")))?;
    arena.wait_ready().await?;
    for client in clients {
        eventually(RECONNECTED, async || {
            let summary = arena.load(client, url, 100, 0.2, &PATIENCE).await?;
            ensure!(
                summary.failed == 0 && summary.pods.len() == 2,
                "{client}: {summary:?}"
            );
            Ok(())
        })
        .await?;
        all_accepted(&arena, client).await?;
    }
    Ok(())
}

const ROUTE: &str = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: shop }
spec:
  parentRefs: [{ group: "", kind: Service, name: shop, port: 8080 }]
  rules:
  - matches: [{ path: { type: RegularExpression, value: "/old.*" } }]
    backendRefs: [{ name: shop, port: 8080 }]
"#;

async fn a_route_that_envoy_refuses_is_shown_and_mended(mesh: &Mesh) -> anyhow::Result<()> {
    let pods = app("shop").http(8080) + app("mine");
    let theirs = with_envoy(app("theirs"), FULL)?;
    let manifests = pods.as_ref().to_owned() + &theirs + ROUTE;
    let arena = mesh.apply("envoy-refuses", manifests).await?;
    let answers = async |client: &str, path: &str, wanted: u64| {
        eventually(DEADLINE, async || {
            let url = format!("http://shop:8080{path}");
            let answer = arena.app_call(client, &[&url]).await?;
            ensure!(answer["status"] == wanted, "{client} {path}: {answer}");
            Ok(())
        })
        .await
    };
    for client in ["mine", "theirs"] {
        answers(client, "/old/a", 200).await?;
        answers(client, "/new/a", 404).await?;
    }
    // A flag that our regular expressions know and Envoy's do not.
    arena.edit(|text| text.replace("/old.*", "(?x)/new.*"))?;
    answers("mine", "/new/a", 200).await?;
    let routes = eventually(DEADLINE, async || {
        let routes = routes_of(&arena).await?;
        ensure!(routes["last_error"].is_string(), "{routes}");
        Ok(routes)
    })
    .await?;
    let error = routes["last_error"].as_str().unwrap_or_default();
    ensure!(error.contains("regex") || error.contains("(?x"), "{routes}");
    ensure!(
        routes["rejected"]
            .to_string()
            .contains("outbound|8080||shop."),
        "{routes}"
    );
    answers("theirs", "/old/a", 200).await?;
    answers("theirs", "/new/a", 404).await?;
    arena.edit(|text| text.replace("(?x)/new.*", "/new.*"))?;
    answers("theirs", "/new/a", 200).await?;
    answers("theirs", "/old/a", 404).await?;
    let routes = routes_of(&arena).await?;
    ensure!(
        routes["last_error"].is_null() && routes["rejected"].as_array().is_some_and(Vec::is_empty),
        "{routes}"
    );
    Ok(())
}

async fn a_type_that_is_not_served_costs_an_envoy_no_other(mesh: &Mesh) -> anyhow::Result<()> {
    let clients = [("full", FULL), ("delta", DELTA)];
    let [full, delta] = clients.map(|(name, variant)| with_envoy(app(name), variant));
    // The first thing that such an Envoy asks for is what there is not.
    let manifests = with_runtime_layer(&(full? + &delta?)) + &app("web").http(8080).yaml();
    let arena = mesh.apply("envoy-runtime", manifests).await?;
    for (client, _) in clients {
        let answer = arena.app_call(client, &["http://web:8080/"]).await?;
        ensure!(answer["status"] == 200, "{client}: {answer}");
        all_accepted(&arena, client).await?;
    }
    let metrics = mesh.control_admin("/metrics").await?;
    let metrics = metrics.as_str().context("a text")?;
    let left = "tulle_xds_refused_requests_total{reason=\"unserved_type\"} ";
    let left = metrics.lines().find_map(|line| line.strip_prefix(left));
    let left: u32 = left.context("nothing was left")?.parse()?;
    ensure!((2..10).contains(&left), "{left} requests");
    ensure!(!metrics.contains("reason=\"bad_request\""), "{metrics}");
    Ok(())
}

/// What the control plane says of the routes of `theirs`.
async fn routes_of(arena: &Arena<'_>) -> anyhow::Result<Value> {
    let proxies = arena.mesh().control_admin("/debug/proxies").await?;
    let name = format!("{}/{}", arena.namespace(), arena.pod("theirs")?.key.name);
    let own = proxies
        .as_array()
        .into_iter()
        .flatten()
        .find(|proxy| proxy["pod"] == name.as_str());
    let own = own.with_context(|| format!("{name} is not connected"))?;
    Ok(own["types"]["RDS"].clone())
}
