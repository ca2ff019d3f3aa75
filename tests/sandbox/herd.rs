//! A thousand sidecars that lose their control plane at the same moment and find it again: a real control plane of their
//! own, and their config clients in this process, each with a connection of its own over mutual TLS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tulle_identity::{Identity, control_channel};
use tulle_proxy::config::{Config, Resolution, Snapshot};
use tulle_proxy::xds::{XdsClient, XdsConfig, XdsMetrics, node_id};
use tulle_runtime::names::CONTROL_DNS_NAME;
use tulle_runtime::tasks::Tasks;
use tulle_sandbox::HostProcess;
use tulle_tests::{Mesh, eventually};

use crate::certificate::svid_of;

tulle_tests::cases! {
    row_45_a_thousand_sidecars_that_come_back_together_are_served_within_half_a_minute ["alone"];
}

const SIDECARS: u32 = 1000;
const NAMESPACE: &str = "herd";
const CLUSTER: &str = "outbound|80||api.herd.svc.cluster.local";
const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 97, 0, 1)), 80);
const CONVERGED: Duration = Duration::from_secs(30);

fn pod(i: u32) -> String {
    format!("web-{i}")
}

fn pod_ip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 1).to_bits() + i)
}

fn put(directory: &Path, name: &str, content: &Value) -> anyhow::Result<()> {
    let temporary = directory.join(format!(".{name}"));
    std::fs::write(&temporary, content.to_string())?;
    Ok(std::fs::rename(temporary, directory.join(name))?)
}

/// A Service, and the pods of the sidecars.
fn world(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(directory)?;
    let meta = |name: &str| json!({ "name": name, "namespace": NAMESPACE });
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    put(directory, "namespace.json", &namespace)?;
    let pods = (0..SIDECARS).map(|i| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta(&pod(i)),
            "spec": { "serviceAccountName": "web", "containers": [{ "name": "app", "image": "app" }] },
            "status": { "podIP": pod_ip(i), "podIPs": [{ "ip": pod_ip(i) }] },
        })
    });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": pods.collect::<Vec<_>>() });
    put(directory, "pods.json", &list)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta("api"),
        "spec": { "clusterIP": VIP.ip(), "clusterIPs": [VIP.ip()], "ports": [{ "name": "http", "port": VIP.port() }] },
    });
    put(directory, "service.json", &service)?;
    endpoint(directory, 1)
}

/// The Service's one endpoint.
fn endpoint(directory: &Path, last: u8) -> anyhow::Result<()> {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "api-1", "namespace": NAMESPACE, "labels": { "kubernetes.io/service-name": "api" } },
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [Ipv4Addr::new(10, 97, 1, last)], "conditions": { "ready": true } }],
    });
    put(directory, "slice.json", &slice)
}

/// Whether a sidecar's next request would go to that endpoint.
fn knows(config: &Config, last: u8) -> bool {
    let address = SocketAddr::from((Ipv4Addr::new(10, 97, 1, last), 8080));
    let snapshot = config.load();
    let endpoints = snapshot.cluster(CLUSTER).map(|cluster| &cluster.endpoints);
    endpoints.is_some_and(|endpoints| endpoints.len() == 1 && endpoints[0].address == address)
}

/// A port that was free a moment ago; nobody else lives in this node.
fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn control(mesh: &Mesh, place: &Path, address: SocketAddr) -> anyhow::Result<HostProcess> {
    let file = |name: &str| place.join(name).display().to_string();
    let argv = [
        "tulle".to_owned(),
        "control".to_owned(),
        format!("--source={}", file("source")),
        format!("--state-dir={}", file("state")),
        format!("--bundle-dir={}", file("bundle")),
        format!("--jwks={}", mesh.sandbox.jwks().display()),
        format!("--xds-address={address}"),
        format!("--admin-address={}", free()?),
        "--log=warn".to_owned(),
    ];
    Ok(mesh.sandbox.spawn_host("herd-control", argv, [])?)
}

/// Memory of a process in KiB, now and at most.
fn memory(pid: u32) -> anyhow::Result<[u64; 2]> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number
            .context("no such field")?
            .parse::<u64>()
            .context("no number")
    };
    Ok([field("VmRSS:")?, field("VmHWM:")?])
}

async fn row_45_a_thousand_sidecars_that_come_back_together_are_served_within_half_a_minute(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    tulle_proxy::net::raise_file_limit();
    let directory = tempfile::tempdir()?;
    let place = directory.path();
    world(&place.join("source"))?;
    let address = free()?;
    let control = control(mesh, place, address)?;
    let outcome = herd(place, address, &control).await;
    control.terminate().await;
    outcome.with_context(|| String::from_utf8_lossy(&control.logs()).into_owned())
}

async fn herd(place: &Path, address: SocketAddr, control: &HostProcess) -> anyhow::Result<()> {
    let id = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/web");
    let issued = async || svid_of(&place.join("state/ca.json"), &id);
    let (svid, bundle) = eventually(CONVERGED, issued).await?;
    let identity = Identity::new(svid, bundle);
    let tasks = Tasks::new();
    let mut configs = Vec::new();
    for i in 0..SIDECARS {
        let channel = control_channel(
            &address.to_string(),
            CONTROL_DNS_NAME,
            identity.clone(),
            None,
        )?;
        let (config, writer) = Config::new(Snapshot::default());
        let node = XdsConfig {
            node_id: node_id(pod_ip(i).into(), &pod(i), NAMESPACE, "cluster.local"),
            node_cluster: format!("web.{NAMESPACE}"),
            wildcard: false,
            max_subscriptions: 4096,
            state_dir: None,
        };
        let client = XdsClient::new(node, channel, writer, XdsMetrics::default());
        tasks.spawn("xds", client.run(tasks.cancelled()));
        configs.push(config);
    }
    for config in &configs {
        eventually(2 * CONVERGED, async || {
            let resolved = config.resolve(VIP).await;
            ensure!(matches!(resolved, Resolution::Known(_)), "{resolved:?}");
            Ok(())
        })
        .await?;
    }
    let _in_use: Vec<_> = configs.iter().map(|config| config.hold(VIP)).collect();
    let [before, _] = memory(control.pid().context("it runs")?)?;

    control.kill().await;
    endpoint(&place.join("source"), 2)?;
    ensure!(
        configs.iter().all(|config| knows(config, 1)),
        "the last good config stays"
    );
    control.resume().await;
    let began = Instant::now();
    eventually(CONVERGED, async || {
        let behind = configs.iter().filter(|config| !knows(config, 2)).count();
        ensure!(
            behind == 0,
            "{behind} of {SIDECARS} do not know the new endpoint"
        );
        Ok(())
    })
    .await?;
    let took = began.elapsed();
    let [_, most] = memory(control.pid().context("it runs")?)?;
    eprintln!(
        "{SIDECARS} sidecars came back within {took:?}; control plane: {before} KiB before, at most {most} KiB"
    );
    ensure!(
        most < 2 * before,
        "{before} KiB before, {most} KiB at most after"
    );
    tasks.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
