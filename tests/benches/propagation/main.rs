//! How long an endpoint change takes from the file until a hundred sidecars act on it.
//!
//! `cargo bench -p tulle-tests --bench propagation`: one control plane over a directory of manifests, the config clients
//! of a hundred sidecars, each with a certificate of its own from the real CA, and an EndpointSlice that is rewritten again
//! and again. Measured from before the file is written until the new endpoint, and no longer the old one, is in the
//! snapshot that a sidecar's next request goes by. The control plane and the sidecars share this process, each with a
//! runtime of its own.

mod world;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tulle_control::{Args, Control, LimitArgs};
use tulle_identity::{CaClientConfig, ca_client, control_channel};
use tulle_proxy::config::{Config, Resolution, Snapshot};
use tulle_proxy::xds::{XdsClient, XdsConfig, XdsMetrics, node_id};
use tulle_runtime::names::CONTROL_DNS_NAME;
use tulle_runtime::tasks::Tasks;

use world::{CLUSTER, ISSUER, NAMESPACE, Tokens, VIP};

const PROXIES: u8 = 100;
const ROUNDS: u32 = 200;
/// What the 99th of a hundred may take.
const BAR: Duration = Duration::from_millis(100);
/// How long to wait for a change that does not come.
const LOST: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let (control, proxies) = (runtime("control")?, runtime("proxies")?);
    let directory = tempfile::tempdir()?;
    let place = directory.path();
    let tokens = Tokens::new(&place.join("jwks.json"))?;
    world::write(&place.join("source"), PROXIES)?;
    let running = control.block_on(Control::start(arguments(place)))?;
    let address = running.xds_address();
    let latencies = proxies.block_on(measure(address, place, &tokens))?;
    control.block_on(running.shutdown(Duration::from_secs(5)));
    report(latencies)
}

fn runtime(name: &str) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.thread_name(name).enable_all().build()
}

fn arguments(place: &Path) -> Args {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Args {
        source: vec![place.join("source")],
        kubernetes: false,
        state_dir: Some(place.join("state")),
        bundle_dir: Some(place.join("bundle")),
        jwks: Some(place.join("jwks.json")),
        ca_issuer_secret: None,
        token_issuer: ISSUER.to_owned(),
        trust_domain: world::domain(),
        cluster_domain: "cluster.local".to_owned(),
        xds_address: any,
        admin_address: any,
        leaf_ttl: Duration::from_secs(24 * 3600),
        root_propagation: Duration::from_secs(60),
        log: "warn".to_owned(),
        limits: LimitArgs::default(),
    }
}

async fn measure(
    address: SocketAddr,
    place: &Path,
    tokens: &Tokens,
) -> anyhow::Result<Vec<Duration>> {
    let tasks = Tasks::new();
    let (seen, mut arrivals) = mpsc::channel(usize::from(PROXIES));
    for i in 0..PROXIES {
        let token = place.join(format!("token-{i}"));
        std::fs::write(&token, tokens.token(i)?)?;
        let config = proxy(address, i, &token, &place.join("bundle/root.pem"), &tasks).await?;
        tasks.spawn("watch", watch(config, seen.clone()));
    }
    drop(seen);
    let mut latencies = Vec::new();
    // The first round is what they learn when they begin to ask.
    for round in 0..=ROUNDS {
        let began = Instant::now();
        if round > 0 {
            world::change(&place.join("source"), round)?;
        }
        let mut waiting = u32::from(PROXIES);
        while waiting > 0 {
            let arrived = timeout(LOST, arrivals.recv()).await;
            let arrived = arrived.with_context(|| format!("change {round} was lost"))?;
            let (endpoint, at): (Ipv4Addr, Instant) = arrived.context("no sidecar is left")?;
            if endpoint != world::endpoint(round) {
                bail!("{endpoint} came in round {round}");
            }
            waiting -= 1;
            if round > 0 {
                latencies.push(at.duration_since(began));
            }
        }
    }
    tasks.shutdown(Duration::from_secs(5)).await;
    Ok(latencies)
}

/// A sidecar's config client, connected, with the Service in use.
async fn proxy(
    address: SocketAddr,
    i: u8,
    token: &Path,
    bundle: &Path,
    tasks: &Tasks,
) -> anyhow::Result<Config> {
    let mut ca = CaClientConfig::new(address.to_string(), world::identity(i)?);
    ca.token_file = token.to_owned();
    ca.bundle_file = bundle.to_owned();
    ca.state_dir = None;
    let identity = ca_client::start(ca, ca_client::Metrics::default(), tasks).await?;
    let channel = control_channel(&address.to_string(), CONTROL_DNS_NAME, identity, None)?;
    let (config, writer) = Config::new(Snapshot::default());
    let node = XdsConfig {
        node_id: node_id(
            world::pod_ip(i).into(),
            &world::pod(i),
            NAMESPACE,
            "cluster.local",
        ),
        node_cluster: format!("web.{NAMESPACE}"),
        wildcard: false,
        max_subscriptions: 4096,
        state_dir: None,
    };
    let client = XdsClient::new(node, channel, writer, XdsMetrics::default());
    tasks.spawn("xds", client.run(tasks.cancelled()));
    let resolved = config.resolve(VIP).await;
    ensure!(
        matches!(resolved, Resolution::Known(_)),
        "sidecar {i} does not know the Service: {resolved:?}"
    );
    Ok(config)
}

/// Tells whenever the endpoint that changes is another one.
async fn watch(config: Config, seen: mpsc::Sender<(Ipv4Addr, Instant)>) {
    let _in_use = config.hold(VIP);
    let mut changed = config.changed();
    let mut last = None;
    loop {
        let snapshot = config.load().clone();
        let current = changing(&snapshot).filter(|current| Some(*current) != last);
        if let Some(current) = current {
            last = Some(current);
            if seen.send((current, Instant::now())).await.is_err() {
                return;
            }
        }
        drop(snapshot);
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// The endpoint that is not there in every round, if the Service has as many as it should.
fn changing(snapshot: &Arc<Snapshot>) -> Option<Ipv4Addr> {
    let endpoints = &snapshot.cluster(CLUSTER)?.endpoints;
    let mut moving = endpoints.iter().filter_map(|endpoint| {
        let SocketAddr::V4(address) = endpoint.address else {
            return None;
        };
        world::changes(*address.ip()).then_some(*address.ip())
    });
    let found = moving.next()?;
    (moving.next().is_none() && endpoints.len() == world::ENDPOINTS).then_some(found)
}

fn report(mut latencies: Vec<Duration>) -> anyhow::Result<()> {
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let show = |share: f64| at(share).as_secs_f64() * 1000.0;
    println!(
        "{PROXIES} sidecars, {ROUNDS} changes of one endpoint of {}; milliseconds from the file to the snapshot in use:",
        world::ENDPOINTS
    );
    println!(
        "p50 {:.2}  p90 {:.2}  p99 {:.2}  max {:.2}",
        show(0.5),
        show(0.9),
        show(0.99),
        show(1.0)
    );
    ensure!(at(0.99) <= BAR, "p99 is over the bar of {BAR:?}");
    println!("p99 is within the bar of {BAR:?}");
    Ok(())
}
