//! An unmodified Envoy as a sidecar, of our control plane, beside our own.

pub(crate) mod control;
mod pod;
pub(crate) mod traffic;
pub(crate) mod trust;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tulle_tests::manifests::FILES;
use tulle_tests::{App, Arena, Mesh, app, eventually, gate};

use crate::foreign::script;
use crate::proof::{encrypted_connections, encrypted_requests};
use crate::websocket;
use pod::{DELTA, FULL, access_log, all_accepted, with_envoy};

tulle_tests::cases! {
    envoy_and_our_sidecar_call_each_other_with_mtls ["envoy", "curl"];
    every_protocol_passes_both_ways ["envoy", "curl", "python3"];
    pods_of_a_headless_service_are_called_with_mtls ["envoy", "curl"];
    websockets_pass_both_ways ["envoy", "curl", "websockets"];
    both_ways_lead_over_ipv6_too ["envoy", "curl", "ipv6"];
}

const DEADLINE: Duration = Duration::from_secs(10);

async fn envoy_and_our_sidecar_call_each_other_with_mtls(mesh: &Mesh) -> anyhow::Result<()> {
    let manifests = [
        with_envoy(app("theirs").http(8080), FULL)?,
        with_envoy(app("other").http(8080), DELTA)?,
        app("ours").http(8080).yaml(),
    ];
    let arena = mesh.apply("envoy-both", manifests.concat()).await?;
    let pairs = [
        ("theirs", "ours"),
        ("ours", "theirs"),
        ("theirs", "other"),
        ("other", "ours"),
    ];
    for (from, to) in pairs {
        let url = format!("http://{to}:8080/");
        let answer = arena.app_call(from, &[&url]).await?;
        ensure!(
            answer["status"] == 200 && answer["body"]["name"] == to,
            "{from} to {to}: {answer}"
        );
        let client = &answer["body"]["headers"]["x-forwarded-client-cert"];
        let uri = format!("URI=spiffe://cluster.local/ns/envoy-both/sa/{from}");
        ensure!(
            client.to_string().contains(&uri),
            "{from} to {to}: {answer}"
        );
    }
    encrypted_requests(&arena, "ours", 2).await?;
    for pod in ["theirs", "other"] {
        all_accepted(&arena, pod).await?;
    }
    for key in ["upstream_peer", "downstream_peer"] {
        logged(&arena, key, "spiffe://cluster.local/ns/envoy-both/sa/ours").await?;
    }
    Ok(())
}

/// The access log of `theirs` has a line with this.
async fn logged(arena: &Arena<'_>, key: &str, value: &str) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let log = access_log(arena, "theirs")?;
        ensure!(
            log.iter().any(|line| line[key] == value),
            "no {key} {value}: {log:?}"
        );
        Ok(())
    })
    .await
}

fn serving(name: &str) -> App {
    app(name)
        .http(8080)
        .serve("--http", 8081, "http2")
        .grpc(9090)
        .tcp(9000)
        .serve("--http", 8082, "any-http")
        .serve("--tcp-server-first", 2525, "any-banner")
}

async fn every_protocol_passes_both_ways(mesh: &Mesh) -> anyhow::Result<()> {
    let manifests = with_envoy(serving("theirs"), DELTA)? + &serving("ours").yaml();
    let arena = mesh.apply("envoy-protocols", manifests).await?;
    for (from, to) in [("theirs", "ours"), ("ours", "theirs")] {
        for (port, options, version) in [
            (8080, &[][..], "HTTP/1.1"),
            (8080, &["--http2"], "HTTP/2.0"),
            (8081, &[], "HTTP/2.0"),
            (8081, &["--http2"], "HTTP/2.0"),
            (8082, &[], "HTTP/1.1"),
            (8082, &["--http2"], "HTTP/2.0"),
        ] {
            let url = format!("http://{to}:{port}/?trailer=x-end:42");
            let body = ["--data", "hello", "--header", "te:trailers"];
            let arguments = [&[&*url], options, &body].concat();
            let answer = arena.app_call(from, &arguments).await?;
            let seen = &answer["body"];
            ensure!(
                answer["status"] == 200
                    && seen["name"] == to
                    && seen["bodyLength"] == 5
                    && seen["protocol"] == version
                    && answer["trailers"]["x-end"] == "42",
                "{from} to {url} {options:?}: {answer}"
            );
        }
        let url = format!("grpc://{to}:9090");
        let answer = arena.app_call(from, &[&url, "--data", "hi"]).await?;
        ensure!(
            answer["message"] == "hi" && answer["name"] == to,
            "{from} to {url}: {answer}"
        );
        let url = format!("tcp://{to}:9000");
        let answer = arena
            .app_call(from, &[&url, "--data", "to and fro"])
            .await?;
        ensure!(
            answer["received"] == "to and fro",
            "{from} to {url}: {answer}"
        );
        let banner = "import socket, sys\n\
            s = socket.create_connection((sys.argv[1], 2525), 10)\n\
            s.settimeout(10)\n\
            print(s.makefile().readline())\n";
        let out = arena.exec(from, script("python3", banner, &[to])).await?;
        let out = out.ok()?;
        ensure!(out.starts_with(&format!("tulle-app {to}")), "{out}");
    }
    encrypted_requests(&arena, "ours", 7).await?;
    encrypted_connections(&arena, "ours", 2).await?;
    let ours = "spiffe://cluster.local/ns/envoy-protocols/sa/ours";
    eventually(DEADLINE, async || {
        let log = access_log(&arena, "theirs")?;
        for port in [8080, 8081, 8082, 9000, 9090, 2525] {
            let cluster = format!("inbound|{port}||");
            let lines = log
                .iter()
                .filter(|line| line["upstream_cluster"] == cluster.as_str());
            let peers: Vec<_> = lines.map(|line| &line["downstream_peer"]).collect();
            ensure!(
                !peers.is_empty() && peers.iter().all(|peer| **peer == ours),
                "{cluster}: {peers:?}"
            );
        }
        Ok(())
    })
    .await?;
    all_accepted(&arena, "theirs").await
}

async fn pods_of_a_headless_service_are_called_with_mtls(mesh: &Mesh) -> anyhow::Result<()> {
    let manifests = with_envoy(app("theirs"), FULL)? + &app("web").http(8080).headless().yaml();
    let arena = mesh.apply("envoy-headless", manifests).await?;
    let answer = eventually(DEADLINE, async || {
        let answer = arena.app_call("theirs", &["http://web:8080/"]).await?;
        let client = answer["body"]["headers"]["x-forwarded-client-cert"].to_string();
        ensure!(
            answer["status"] == 200 && client.contains("sa/theirs"),
            "{answer}"
        );
        Ok(answer)
    })
    .await?;
    ensure!(answer["body"]["name"] == "web", "{answer}");
    all_accepted(&arena, "theirs").await
}

async fn websockets_pass_both_ways(mesh: &Mesh) -> anyhow::Result<()> {
    let python = gate::python().display().to_string();
    let serving = |name: &str| {
        app(name)
            .command([&*python, "-B", &format!("{FILES}/serve.py")])
            .file("serve.py", websocket::SERVER)
            .port("http", 8001, 8001)
            .port("any", 8002, 8002)
    };
    let manifests = with_envoy(serving("theirs"), DELTA)? + &serving("ours").yaml();
    let arena = mesh.apply("envoy-websockets", manifests).await?;
    for (from, to) in [("theirs", "ours"), ("ours", "theirs")] {
        let client = websocket::CLIENT.replace("ws://chat:", &format!("ws://{to}:"));
        for port in ["8001", "8002"] {
            let out = arena.exec(from, script(&python, &client, &[port])).await?;
            let out = out.ok()?;
            ensure!(out == websocket::EXPECTED, "{from} to {to}:{port}: {out}");
        }
    }
    encrypted_requests(&arena, "ours", 4).await
}

async fn both_ways_lead_over_ipv6_too(mesh: &Mesh) -> anyhow::Result<()> {
    let serving = |name: &str| app(name).http(8080).ipv6_only();
    let manifests = with_envoy(serving("theirs"), DELTA)? + &serving("ours").yaml();
    let arena = mesh.apply("envoy-ipv6", manifests).await?;
    for (from, to) in [("theirs", "ours"), ("ours", "theirs")] {
        let url = format!("http://{to}:8080/");
        let answer = arena.app_call(from, &[&url]).await?;
        let client = answer["body"]["headers"]["x-forwarded-client-cert"].to_string();
        ensure!(
            answer["status"] == 200 && client.contains(&format!("sa/{from}")),
            "{from} to {to}: {answer}"
        );
    }
    let address = arena.pod("theirs")?.ips.v6.context("no IPv6 address")?;
    logged(&arena, "upstream_host", &format!("[{address}]:8080")).await?;
    all_accepted(&arena, "theirs").await
}
