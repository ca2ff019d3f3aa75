//! Several virtual hosts in one table, which is what control planes usually send: who asks for what gets which of them, the
//! same from our sidecar and from an Envoy with the same table.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_runtime::names::labels::INJECT;
use tulle_tests::{App, Arena, Mesh, app, eventually};

use super::foreign::Foreign;
use super::shapes::{hosted, inline_listener, listener, static_cluster};
use super::{DEADLINE, OTHER, WEB, answers, ip};
use crate::asker::Asker;
use crate::foreign::envoy_of;
use crate::place::Place;

tulle_tests::cases! {
    go_control_plane_virtual_hosts_are_found_as_envoy_finds_them ["go-control-plane", "envoy"];
    row_39_go_control_plane_hears_which_virtual_hosts_have_one_domain ["go-control-plane"];
}

/// Domains of virtual hosts, and the status that each answers with.
const HOSTS: [(&[&str], u16); 9] = [
    (&["web.example", "web.example:8080", "10.99.0.1"], 201),
    (&["*.example"], 202),
    (&["*.deep.example", "*-dash.example"], 203),
    (&["web.*"], 204),
    (&["web.other.*", "[fd00::1]:*"], 205),
    (&["MIXED.Test"], 206),
    (&["[fd00::1]", "[fd00::2]:8080"], 207),
    (&["*:9090"], 208),
    (&["*"], 226),
];
/// Hosts that a client names: what they get where ports count, and where they are ignored.
const CLIENTS: [(&str, u16, u16); 25] = [
    ("web.example", 201, 201),
    ("WEB.Example", 201, 201),
    ("web.example:8080", 201, 201),
    ("web.example:80", 204, 201),
    ("10.99.0.1", 201, 201),
    ("10.99.0.1:8080", 226, 201),
    ("api.example", 202, 202),
    ("api.example:8080", 226, 202),
    ("a.b.example", 202, 202),
    ("example", 226, 226),
    (".example", 226, 226),
    ("x.deep.example", 203, 203),
    ("deep.example", 202, 202),
    ("a-dash.example", 203, 203),
    ("A-DASH.EXAMPLE", 203, 203),
    ("web.x", 204, 204),
    ("web.", 226, 226),
    ("web.other.x", 205, 205),
    ("mixed.test", 206, 206),
    ("[fd00::1]", 207, 207),
    ("[fd00::1]:80", 205, 207),
    ("[fd00::2]:8080", 207, 226),
    ("nobody:9090", 208, 226),
    ("elsewhere", 226, 226),
    ("web.example.", 204, 204),
];

/// The table, with each kind of treatment of ports; the second has no host for everybody.
fn tables() -> [Value; 2] {
    let answer = |status: u16| json!({ "directResponse": { "status": status } });
    let hosts = HOSTS.map(|(domains, status)| (domains, answer(status)));
    let mut ignoring = hosted("ignoring", &hosts[..HOSTS.len() - 1]);
    ignoring["ignorePortInHostMatching"] = true.into();
    [hosted("counting", &hosts), ignoring]
}

/// An Envoy with both tables, on ports 8080 and 8081.
fn oracle() -> App {
    let listeners = [8080, 8081].into_iter().zip(tables());
    let listeners: Vec<_> = listeners
        .map(|(port, table)| inline_listener(port, &table))
        .collect();
    let config = json!({ "static_resources": { "listeners": listeners } });
    envoy_of(config.to_string())
        .port("http", 8080, 8080)
        .annotate(INJECT, "disabled")
}

async fn go_control_plane_virtual_hosts_are_found_as_envoy_finds_them(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let foreign = Foreign::start(&[])?;
    let client = foreign.client("client");
    let pods = app("one").http(8080) + app("bare").annotate(INJECT, "disabled") + client + oracle();
    let arena = mesh.apply("foreign-hosts", pods).await?;
    let [counting, ignoring] = tables();
    foreign.serve(&[
        listener("counting", WEB, "counting"),
        counting,
        listener("ignoring", OTHER, "ignoring"),
        ignoring,
    ])?;
    foreign.acknowledged("Listener", "ignoring").await?;
    let envoy = ip(&arena, "envoy")?;
    let ours = [format!("{WEB}:8080"), format!("{OTHER}:8080")];
    let theirs = [format!("{envoy}:8080"), format!("{envoy}:8081")];
    for (name, from, to) in [("Envoy", "bare", theirs), ("ours", "client", ours)] {
        for (table, address) in to.iter().enumerate() {
            let asker = Asker::connect(&arena, from, address).await?;
            for (host, counted, ignored) in CLIENTS {
                // Nobody takes the rest where ports are ignored.
                let ignored = if ignored == 226 { 404 } else { ignored };
                let expected = [counted, ignored][table];
                let found = asker
                    .ask(host)
                    .await
                    .with_context(|| format!("{name}: {host}"))?;
                ensure!(
                    found == expected,
                    "{name}, table {table}, {host}: {found}, not {expected}"
                );
            }
        }
    }
    strangers_are_counted(&arena).await?;
    over_http2(&arena).await?;
    ensure!(foreign.refusals().is_empty(), "{:?}", foreign.refusals());

    // A host that forwards, and moves on to another while a connection lives.
    let asker = Asker::connect(&arena, "client", &format!("{WEB}:8080")).await?;
    let to_one = json!({ "route": { "cluster": "one" } });
    foreign.serve(&[
        listener("counting", WEB, "counting"),
        hosted("counting", &[(&["moved.example"], to_one)]),
        static_cluster("one", &ip(&arena, "one")?),
    ])?;
    for (name, status) in [("moved.example", 200), ("web.example", 404)] {
        eventually(DEADLINE, async || {
            let found = asker.ask(name).await?;
            ensure!(found == status, "{name}: {found}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// What nobody takes is answered by the sidecar and says so.
async fn strangers_are_counted(arena: &Arena<'_>) -> anyhow::Result<()> {
    let metrics = arena.metrics("client").await?;
    let not_found = [("response_code", "404"), ("response_flags", "NR")];
    let count = metrics.sum("istio_requests_total", &not_found);
    let expected = CLIENTS.iter().filter(|(_, _, ignored)| *ignored == 226);
    let expected = expected.count();
    ensure!(
        count == expected as f64,
        "{count}, not {expected}: {}",
        metrics.text()
    );
    Ok(())
}

/// `:authority` is what `Host` is.
async fn over_http2(arena: &Arena<'_>) -> anyhow::Result<()> {
    let tcp = Place::of(arena, "client")?
        .connect(format!("{WEB}:8080").parse()?)
        .await?;
    let (mut client, connection) = h2::client::handshake(tcp).await?;
    let asking = async {
        for (host, status) in [("WEB.example", 201), ("a-dash.example", 203), ("x:80", 226)] {
            let request = http::Request::builder()
                .uri(format!("http://{host}/"))
                .body(())?;
            client = client.ready().await?;
            let answer = client.send_request(request, true)?.0.await?;
            ensure!(answer.status() == status, "{host}: {answer:?}");
        }
        Ok(())
    };
    tokio::select! {
        asked = asking => asked,
        ended = connection => anyhow::bail!("the connection ended: {ended:?}"),
    }
}

async fn row_39_go_control_plane_hears_which_virtual_hosts_have_one_domain(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let foreign = Foreign::start(&[])?;
    let pods =
        app("one").http(8080) + app("two").version("v2").http(8080) + foreign.client("client");
    let arena = mesh.apply("foreign-twice", pods).await?;
    let to = |cluster: &str| json!({ "route": { "cluster": cluster } });
    let rest = |to_all: &str| -> anyhow::Result<Vec<Value>> {
        Ok(vec![
            listener("web", WEB, "web"),
            listener("other", OTHER, "other"),
            hosted(
                "other",
                &[(&["unused.example"], to("one")), (&["*"], to(to_all))],
            ),
            static_cluster("one", &ip(&arena, "one")?),
            static_cluster("two", &ip(&arena, "two")?),
        ])
    };
    let good = hosted("web", &[(&["a.example"], to("two")), (&["*"], to("one"))]);
    let mut resources = rest("one")?;
    resources.push(good.clone());
    foreign.serve(&resources)?;
    answers(&arena, WEB, "v1").await?;
    answers(&arena, OTHER, "v1").await?;

    // Envoy would refuse it too. The table beside it counts, and the last good one stays.
    let bad = hosted(
        "web",
        &[
            (&["a.example", "*"], to("two")),
            (&["b.example", "A.example"], to("two")),
        ],
    );
    let mut resources = rest("two")?;
    resources.push(bad);
    foreign.serve(&resources)?;
    let refused = foreign.refusal("web: ").await?;
    let reason = "web: virtual_hosts[1].domains[1]: \"A.example\" is not valid; virtual_hosts[0] (\"web-0\") has it, \
        not only \"web-1\": send each domain once";
    ensure!(refused == reason, "{refused}");
    answers(&arena, OTHER, "v2").await?;
    answers(&arena, WEB, "v1").await?;

    let mut resources = rest("two")?;
    resources.push(hosted(
        "web",
        &[(&["a.example"], to("one")), (&["*"], to("two"))],
    ));
    foreign.serve(&resources)?;
    answers(&arena, WEB, "v2").await?;
    ensure!(foreign.refusals().len() == 1, "{:?}", foreign.refusals());
    Ok(())
}
