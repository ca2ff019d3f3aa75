//! Whom Envoy trusts and who trusts it: policies, identities, and certificates that change.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tulle_runtime::names::labels;
use tulle_tests::manifests::FILES;
use tulle_tests::{Arena, Mesh, app, eventually};

use super::DEADLINE;
use super::pod::{DELTA, FULL, access_log, all_accepted, with_envoy};
use crate::agent;

tulle_tests::cases! {
    strict_refuses_strangers_and_permissive_takes_them ["envoy", "curl", "openssl"];
    a_peer_with_another_identity_is_not_called ["envoy", "curl", "python3"];
    certificates_that_change_cost_no_request ["alone", "envoy", "curl", "openssl"];
}

const STRICT: &str = r#"
---
apiVersion: tulle.dev/v1alpha1
kind: PeerAuthentication
metadata: { name: default }
spec: { mtls: { mode: STRICT } }
"#;

async fn strict_refuses_strangers_and_permissive_takes_them(mesh: &Mesh) -> anyhow::Result<()> {
    let theirs = with_envoy(app("theirs").http(8080).tcp(9000), DELTA)?;
    let outsider = app("outsider").label(labels::INJECT, "disabled");
    let manifests = theirs + (app("mine") + outsider).as_ref() + STRICT;
    let arena = mesh.apply("envoy-strict", manifests).await?;
    let refused = async || {
        for url in ["http://theirs:8080/", "tls://theirs:8080"] {
            let answer = arena.app_call("outsider", &[url]).await?;
            let refused = answer.is_string() || answer["refused"] == true;
            ensure!(refused, "{url} is taken: {answer}");
        }
        let opaque = arena
            .load("outsider", "tcp://theirs:9000", 20, 0.2, &[])
            .await?;
        ensure!(opaque.ok == 0 && opaque.failed == 4, "{opaque:?}");
        Ok(())
    };
    eventually(DEADLINE, refused).await?;
    // A certificate that somebody made for himself, with a name of the mesh.
    let forged = "cd /run/secrets && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x \
        -addext subjectAltName=URI:spiffe://cluster.local/ns/envoy-strict/sa/mine -keyout k.pem -out c.pem 2>/dev/null \
        && curl -sk --cert c.pem --key k.pem https://theirs:8080/";
    let forged = arena.exec("outsider", ["sh", "-c", forged]).await?;
    ensure!(forged.status != 0 && forged.stdout.is_empty(), "{forged}");
    let spoofed = [
        "http://theirs:8080/",
        "--header",
        "x-forwarded-client-cert:By=me;URI=spiffe://cluster.local/ns/a/sa/admin",
        "--header",
        "x-forwarded-for:192.0.2.1",
        "--header",
        "x-request-id:mine",
    ];
    let answer = arena.app_call("mine", &spoofed).await?;
    let seen = &answer["body"]["headers"];
    ensure!(
        said(seen, "x-forwarded-client-cert")
            .contains("URI=spiffe://cluster.local/ns/envoy-strict/sa/mine")
            && !said(seen, "x-forwarded-client-cert").contains("admin"),
        "{answer}"
    );
    arena.edit(|text| text.replace("STRICT", "PERMISSIVE"))?;
    let answer = eventually(DEADLINE, async || {
        let answer = arena.app_call("outsider", &spoofed).await?;
        ensure!(answer["status"] == 200, "{answer}");
        Ok(answer)
    })
    .await?;
    let seen = &answer["body"]["headers"];
    let address = arena.pod("outsider")?.ips.v4.to_string();
    ensure!(
        seen["x-forwarded-client-cert"].is_null()
            && said(seen, "x-forwarded-for") == address
            && said(seen, "x-request-id") != "mine",
        "a stranger is believed: {answer}"
    );
    // Envoy cuts off who closes his side before it has looked at the first bytes, so this client does not.
    let opaque = arena
        .load("outsider", "tcp://theirs:9000", 20, 0.5, &[])
        .await?;
    ensure!(opaque.failed == 0 && opaque.ok == 10, "{opaque:?}");
    arena.edit(|text| text.replace("PERMISSIVE", "STRICT"))?;
    eventually(DEADLINE, refused).await?;
    all_accepted(&arena, "theirs").await
}

fn said<'a>(headers: &'a Value, name: &str) -> &'a str {
    headers[name].as_str().unwrap_or_default()
}

/// Hands every connection on to another pod, byte for byte.
const RELAY: &str = r"
import asyncio
async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
async def relay(reader, writer):
    there = await asyncio.open_connection('honest', 8080)
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)
async def main():
    await (await asyncio.start_server(relay, '0.0.0.0', 8080)).serve_forever()
asyncio.run(main())
";

async fn a_peer_with_another_identity_is_not_called(mesh: &Mesh) -> anyhow::Result<()> {
    // It counts as meshed, and shows a certificate of the mesh, but one of another service account.
    let impostor = app("impostor")
        .command(["python3", "-B", &format!("{FILES}/relay.py")])
        .file("relay.py", RELAY)
        .port("http", 8080, 8080)
        .label(labels::INJECT, "disabled")
        .label(labels::PROXIED, "true");
    let outsider = app("outsider").label(labels::INJECT, "disabled");
    let manifests = app("honest").http(8080) + impostor + outsider + app("mine");
    let theirs = with_envoy(app("theirs"), FULL)?;
    let arena = mesh
        .apply("envoy-impostor", manifests.as_ref().to_owned() + &theirs)
        .await?;
    let call = async |from: &str, to: &str| {
        let url = format!("http://{to}:8080/?id={from}-{to}");
        arena.app_call(from, &[&url]).await
    };
    // Who does not ask for an identity gets through, so the way is there.
    let answer = call("outsider", "impostor").await?;
    ensure!(answer["body"]["name"] == "honest", "{answer}");
    for client in ["mine", "theirs"] {
        let answer = call(client, "honest").await?;
        ensure!(answer["status"] == 200, "{client}: {answer}");
        let answer = call(client, "impostor").await?;
        ensure!(answer["status"] == 503, "{client}: {answer}");
        let count = format!("http://127.0.0.1:8080/counts?prefix={client}-");
        let counts = arena.app_call("honest", &[&count]).await?;
        let ids = counts["body"]["counts"].as_object().context("no counts")?;
        ensure!(
            ids.len() == 1 && ids.contains_key(&format!("{client}-honest")),
            "{counts}"
        );
    }
    eventually(DEADLINE, async || {
        let log = access_log(&arena, "theirs")?;
        let told = log.iter().any(|line| {
            let reason = line["upstream_transport_failure_reason"].as_str();
            reason.is_some_and(|reason| reason.contains("CERTIFICATE_VERIFY_FAILED"))
        });
        ensure!(told, "no reason in {log:?}");
        Ok(())
    })
    .await
}

async fn certificates_that_change_cost_no_request(mesh: &Mesh) -> anyhow::Result<()> {
    let serving = |name: &str| app(name).http(8080).tcp(9000);
    let files = app("client").agent(&[]);
    let manifests = (serving("ours") + files).as_ref().to_owned();
    let manifests = manifests + &with_envoy(serving("theirs"), FULL)?;
    // An agent that begins anew makes its pod unready, which is not what is looked at here.
    let service = r#""selector":{"app":"theirs"}"#;
    let manifests = manifests.replace(
        service,
        &format!("{service},\"publishNotReadyAddresses\":true"),
    );
    let arena = mesh.apply("envoy-rotation", manifests).await?;
    let before = certificates(&arena).await?;
    ensure!(agent::trust(&arena).await? == (1, true));
    let mut loads = Vec::new();
    for (from, to) in [("ours", "theirs"), ("theirs", "ours")] {
        for (scheme, port) in [("http", 8080), ("tcp", 9000)] {
            // Each opaque connection is a handshake of its own.
            let url = format!("{scheme}://{to}:{port}");
            loads.push((
                format!("{from} to {url}"),
                arena.start_load(from, &url, 8, 12.0, &[])?,
            ));
        }
    }
    mesh.control_post("/ca/rotate-root").await?;
    eventually(DEADLINE, async || {
        let now = certificates(&arena).await?;
        ensure!(
            now.roots.len() == 2 && now.roots.is_superset(&before.roots),
            "{now:?}"
        );
        let files = agent::trust(&arena).await?;
        ensure!(files == (2, true), "{files:?}");
        Ok(())
    })
    .await?;
    renew(&arena, "theirs").await?;
    eventually(DEADLINE, async || {
        let now = certificates(&arena).await?;
        ensure!(
            now.leaf != before.leaf,
            "the certificate is the old one: {now:?}"
        );
        Ok(())
    })
    .await?;
    for (what, load) in loads {
        let summary = load.summary().await?;
        ensure!(
            summary.failed == 0 && summary.ok >= 90,
            "{what}: {summary:?}"
        );
    }
    all_accepted(&arena, "theirs").await
}

/// Has the agent of a pod begin anew, as if its certificate were due.
async fn renew(arena: &Arena<'_>, pod: &str) -> anyhow::Result<()> {
    let state = format!("{}/svid.pem", tulle_runtime::names::agent::DIR);
    arena.exec(pod, ["rm", &state]).await?.ok()?;
    let agent = arena
        .pod(pod)?
        .container("tulle-agent")
        .and_then(|it| it.pid);
    let agent = agent.context("no agent runs")?.to_string();
    let killed = tokio::process::Command::new("kill")
        .arg(agent)
        .status()
        .await?;
    ensure!(killed.success(), "the agent lives on");
    Ok(())
}

/// What Envoy shows and trusts: serial numbers.
#[derive(Debug, PartialEq, Eq)]
struct Certificates {
    leaf: String,
    roots: std::collections::BTreeSet<String>,
}

async fn certificates(arena: &Arena<'_>) -> anyhow::Result<Certificates> {
    let shown = arena.admin("theirs", "/certs").await?;
    let all = shown["certificates"]
        .as_array()
        .context("no certificates")?;
    let serials = |key: &str| {
        let list = all.iter().filter_map(|it| it[key].as_array()).flatten();
        list.filter_map(|it| it["serial_number"].as_str().map(str::to_owned))
            .collect::<std::collections::BTreeSet<_>>()
    };
    let leaves = serials("cert_chain");
    ensure!(leaves.len() == 1, "{shown:#}");
    Ok(Certificates {
        leaf: leaves.into_iter().collect(),
        roots: serials("ca_cert"),
    })
}
