//! A sidecar under a control plane that is not ours: go-control-plane, a real process with a certificate of the mesh.
//!
//! The sidecar's certificate still comes from Tulle's CA. What the foreign control plane sees, it tells ([`Foreign`]).

mod foreign;
pub(crate) mod hosts;
mod shapes;

use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use tulle_tests::{Arena, Mesh, app, eventually};

use crate::asker::Asker;
use foreign::Foreign;
use shapes::{
    assignment, cluster, dns_cluster, hosted, listener, mirrored, routes, static_cluster,
    tls_cluster, with_fault,
};

tulle_tests::cases! {
    go_control_plane_splits_traffic_and_moves_endpoints ["go-control-plane"];
    row_39_go_control_plane_hears_why_its_bad_resources_are_refused ["go-control-plane"];
    row_39_go_control_plane_hears_of_each_cluster_that_is_not_for_a_sidecar ["go-control-plane"];
    row_43_go_control_plane_may_be_down_and_is_resumed ["go-control-plane"];
}

const DEADLINE: Duration = Duration::from_secs(10);
/// Addresses that nobody has: only the sidecar's config gives them a meaning.
const WEB: &str = "10.99.0.1";
const OTHER: &str = "10.99.0.2";

/// Two backends with sidecars of the mesh, and a client whose sidecar follows the foreign control plane.
async fn arena<'m>(mesh: &'m Mesh, name: &str, foreign: &Foreign) -> anyhow::Result<Arena<'m>> {
    let client = foreign.client("client");
    let backends = app("one").http(8080) + app("two").version("v2").http(8080);
    mesh.apply(name, backends + client).await
}

fn ip(arena: &Arena<'_>, app: &str) -> anyhow::Result<String> {
    Ok(arena.pod(app)?.ips.v4.to_string())
}

/// Listener `web`, its routes by weight, cluster `one` by EDS and cluster `two` with its endpoint inside.
fn web(arena: &Arena<'_>, weights: [u32; 2], one: &str) -> anyhow::Result<Vec<Value>> {
    Ok(vec![
        listener("web", WEB, "web"),
        routes("web", &[("one", weights[0]), ("two", weights[1])]),
        cluster("one"),
        static_cluster("two", &ip(arena, "two")?),
        assignment("one", &ip(arena, one)?),
    ])
}

async fn version(arena: &Arena<'_>, host: &str) -> anyhow::Result<String> {
    let url = format!("http://{host}:8080/");
    let answer = arena.app_call("client", &[&url]).await?;
    let version = answer["body"]["version"].as_str();
    version.map_or_else(
        || anyhow::bail!("{url} answered {answer}"),
        |version| Ok(version.to_owned()),
    )
}

async fn answers(arena: &Arena<'_>, host: &str, expected: &str) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let found = version(arena, host).await?;
        ensure!(found == expected, "{found} answers, not {expected}");
        Ok(())
    })
    .await
}

/// Resolves when the client's sidecar has noticed that its control plane is gone.
async fn lost(arena: &Arena<'_>) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let metrics = arena.metrics("client").await?;
        ensure!(
            metrics.sum("tulle_xds_connected", &[]) == 0.0,
            "{}",
            metrics.text()
        );
        Ok(())
    })
    .await
}

async fn go_control_plane_splits_traffic_and_moves_endpoints(mesh: &Mesh) -> anyhow::Result<()> {
    let foreign = Foreign::start(&[])?;
    let arena = arena(mesh, "foreign-split", &foreign).await?;
    // An empty snapshot is an answer: the pod is ready, and what nobody describes passes through.
    let stream = foreign
        .event("its stream", |event| event["event"] == "stream")
        .await?;
    let id = "spiffe://cluster.local/ns/foreign-split/sa/client";
    ensure!(stream["client"] == id, "{stream}");
    let node = foreign
        .event("its node", |event| event["node"].is_string())
        .await?;
    ensure!(node["cluster"] == "client.foreign-split", "{node}");
    answers(&arena, &ip(&arena, "one")?, "v1").await?;

    foreign.serve(&web(&arena, [1, 0], "one")?)?;
    answers(&arena, WEB, "v1").await?;
    for _ in 0..10 {
        ensure!(
            version(&arena, WEB).await? == "v1",
            "a weight of zero gets nothing"
        );
    }
    foreign.serve(&web(&arena, [1, 1], "one")?)?;
    answers(&arena, WEB, "v2").await?;
    let mut counts = [0, 0];
    for _ in 0..40 {
        counts[usize::from(version(&arena, WEB).await? == "v2")] += 1;
    }
    // Outside of it by chance: less than once in a million.
    ensure!(counts.iter().all(|count| *count >= 5), "{counts:?}");

    // The endpoint of cluster `one` moves; routes and clusters stay.
    foreign.serve(&web(&arena, [1, 0], "one")?)?;
    answers(&arena, WEB, "v1").await?;
    foreign.serve(&web(&arena, [1, 0], "two")?)?;
    answers(&arena, WEB, "v2").await?;
    for _ in 0..5 {
        ensure!(
            version(&arena, WEB).await? == "v2",
            "the old endpoint is gone"
        );
    }

    // What is taken away is nobody's again.
    foreign.serve(&[])?;
    eventually(DEADLINE, async || {
        let dump = arena.admin("client", "/config_dump").await?;
        let outbound = dump["outbound"].to_string();
        ensure!(!outbound.contains("\"web\""), "{outbound}");
        Ok(())
    })
    .await?;
    ensure!(foreign.refusals().is_empty(), "{:?}", foreign.refusals());
    Ok(())
}

async fn row_39_go_control_plane_hears_why_its_bad_resources_are_refused(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let foreign = Foreign::start(&[])?;
    let arena = arena(mesh, "foreign-bad", &foreign).await?;
    let good = web(&arena, [1, 0], "one")?;
    foreign.serve(&good)?;
    answers(&arena, WEB, "v1").await?;

    // Routes that ask for what is not done here, a new listener with a filter that is not known, and beside them a
    // good listener and an endpoint that moves.
    let mut bad = web(&arena, [1, 0], "two")?;
    bad[1] = mirrored(&bad[1]);
    let passed_by = ip(&arena, "two")?;
    bad.push(with_fault(&listener("faulty", &passed_by, "web")));
    bad.push(listener("other", OTHER, "other"));
    bad.push(routes("other", &[("two", 1)]));
    foreign.serve(&bad)?;
    let refused = foreign.refusal("web: ").await?;
    let reason =
        "web: virtual_hosts[0].routes[0].route.request_mirror_policies: not supported; remove them";
    ensure!(refused == reason, "{refused}");
    let refused = foreign.refusal("faulty: ").await?;
    let reason = "faulty: filter_chains[0].filters[0].typed_config.http_filters[0]: \"envoy.filters.http.fault\" is not \
        valid; only the router filter is known; mark others is_optional";
    ensure!(refused == reason, "{refused}");
    // The others count, and the last good routes still lead to cluster `one`.
    answers(&arena, OTHER, "v2").await?;
    answers(&arena, WEB, "v2").await?;
    // What is described badly is not taken for unknown: no plaintext to where it would have led.
    let faulty = format!("http://{passed_by}:8080/");
    let answer = arena.app_call("client", &[&faulty]).await?;
    ensure!(answer.is_string(), "{answer}");
    // Refused once each: nobody sends them again and again.
    ensure!(foreign.refusals().len() == 2, "{:?}", foreign.refusals());

    // Nor while there is no control plane.
    foreign.kill()?;
    lost(&arena).await?;
    for _ in 0..3 {
        let answer = arena.app_call("client", &[&faulty]).await?;
        ensure!(answer.is_string(), "{answer}");
    }
    // A client that comes back hears it again, refuses it again, and keeps on with what it has.
    foreign.restart(&bad)?;
    eventually(DEADLINE, async || {
        let refusals = foreign.refusals();
        ensure!(refusals.len() == 2, "{refusals:?}");
        Ok(())
    })
    .await?;
    answers(&arena, WEB, "v2").await?;

    foreign.serve(&web(&arena, [0, 1], "one")?)?;
    foreign.acknowledged("RouteConfiguration", "web").await?;
    answers(&arena, WEB, "v2").await?;
    foreign.serve(&good)?;
    answers(&arena, WEB, "v1").await?;
    ensure!(foreign.refusals().len() == 2, "{:?}", foreign.refusals());
    Ok(())
}

async fn row_39_go_control_plane_hears_of_each_cluster_that_is_not_for_a_sidecar(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let foreign = Foreign::start(&[])?;
    let arena = arena(mesh, "foreign-clusters", &foreign).await?;
    let (one, two) = (ip(&arena, "one")?, ip(&arena, "two")?);
    let to = |cluster: &str| serde_json::json!({ "route": { "cluster": cluster } });
    let hosts: [(&[&str], Value); 5] = [
        (&["strict"], to("strict")),
        (&["logical"], to("logical")),
        (&["tls"], to("tls")),
        (&["numbers"], to("numbers")),
        (&["*"], to("one")),
    ];
    let mut snapshot = vec![
        listener("web", WEB, "web"),
        hosted("web", &hosts),
        dns_cluster("strict", "STRICT_DNS", "web.example"),
        dns_cluster("logical", "LOGICAL_DNS", "web.example"),
        tls_cluster("tls", &two),
        dns_cluster("numbers", "STRICT_DNS", &two),
        cluster("one"),
        assignment("one", &one),
    ];
    foreign.serve(&snapshot)?;
    // All of them came in one response: each bad one is named with its field and what to do, and the others count.
    let address = "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: \"web.example\" is not valid; \
        names are not resolved here: give an IP address";
    let tls = "transport_socket: not supported; \
        TLS is chosen per endpoint, by typed_filter_metadata[\"tulle.dev\"]";
    let refused = foreign
        .event("a refusal", |event| event["error"].is_string())
        .await?;
    let refused = refused["error"].as_str().unwrap_or_default();
    for (name, reason) in [("strict", address), ("logical", address), ("tls", tls)] {
        ensure!(refused.contains(&format!("{name}: {reason}")), "{refused}");
    }
    for name in ["numbers: ", "one: "] {
        ensure!(!refused.contains(name), "{refused}");
    }
    answers(&arena, WEB, "v1").await?;
    let asker = Asker::connect(&arena, "client", &format!("{WEB}:8080")).await?;
    // What is refused is not called at all, in no way.
    for (host, status) in [
        ("numbers", 200),
        ("strict", 503),
        ("logical", 503),
        ("tls", 503),
    ] {
        let found = asker.ask(host).await?;
        ensure!(found == status, "{host}: {found}");
    }
    ensure!(foreign.refusals().len() == 1, "{:?}", foreign.refusals());

    // Mended one by one: nothing else is needed.
    for (at, name) in [(2, "strict"), (3, "logical"), (4, "tls")] {
        snapshot[at] = static_cluster(name, &two);
        foreign.serve(&snapshot)?;
        eventually(DEADLINE, async || {
            let found = asker.ask(name).await?;
            ensure!(found == 200, "{name}: {found}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn row_43_go_control_plane_may_be_down_and_is_resumed(mesh: &Mesh) -> anyhow::Result<()> {
    let foreign = Foreign::start(&[])?;
    let arena = arena(mesh, "foreign-down", &foreign).await?;
    foreign.serve(&web(&arena, [1, 0], "one")?)?;
    answers(&arena, WEB, "v1").await?;

    foreign.kill()?;
    lost(&arena).await?;
    for _ in 0..10 {
        ensure!(
            version(&arena, WEB).await? == "v1",
            "the last good config stays"
        );
    }

    foreign.restart(&web(&arena, [1, 0], "two")?)?;
    answers(&arena, WEB, "v2").await?;
    // It said what it had: only what is new was sent.
    let greeting = foreign
        .event("a greeting", |event| {
            event["type"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("Cluster"))
                && event["known"]
                    .as_object()
                    .is_some_and(|known| known.len() == 2)
        })
        .await?;
    ensure!(
        greeting["subscribe"] == serde_json::json!(["*"]),
        "{greeting}"
    );
    let resent = foreign.sent();
    ensure!(resent == ["one"], "{resent:?} were sent again");
    Ok(())
}
