//! What a change costs the control plane when its clients want everything: CPU time by kind of change and by variant.
//!
//! `cargo bench -p tulle-control --bench wildcard [-- [--hostile] SERVICES CLIENTS]`: one control plane over a directory of manifests, a thousand Services of two pods each,
//! and a hundred clients that ask as Envoys do (`*` of clusters and listeners, endpoints and routes by name), each over
//! mutual TLS with a certificate of its own. Measured is the CPU time of the control plane's threads from before a file is
//! written until every client has what follows from it; the clients have threads of their own and read no more of a
//! response than they need. At the end one client asks for everything over and over again, and another says how long its
//! own questions take beside that; with `--hostile` nothing else is measured.

mod client;
mod hostile;
mod world;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};
use tulle_control::{Args, Control, LimitArgs};
use tulle_runtime::tasks::Tasks;

use client::{Client, Variant};

const ROUNDS: usize = 10;
/// Name of the control plane's threads.
const THREADS: &str = "bench-control";

fn main() -> anyhow::Result<()> {
    let mut sizes = std::env::args().filter_map(|argument| argument.parse().ok());
    let services = sizes.next().unwrap_or(1_000);
    let streams = sizes.next().unwrap_or(100);
    let (control, clients) = (runtime(THREADS)?, runtime("bench-client")?);
    let directory = tempfile::tempdir()?;
    let place = directory.path();
    world::write(&place.join("source"), services, streams)?;
    let running = control.block_on(Control::start(arguments(place)?))?;
    let address = running.xds_address();
    println!(
        "{services} Services, {streams} clients that want all; CPU time of the control plane, milliseconds"
    );
    let only_hostile = std::env::args().any(|argument| argument == "--hostile");
    for variant in [Variant::Delta, Variant::Full] {
        if only_hostile {
            break;
        }
        clients.block_on(measure(variant, address, place, services, streams))?;
    }
    clients.block_on(hostile::measure(address, place, cpu))?;
    control.block_on(running.shutdown(Duration::from_secs(5)));
    Ok(())
}

fn runtime(name: &str) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .build()
}

fn arguments(place: &Path) -> anyhow::Result<Args> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Args {
        kubernetes: false,
        source: vec![place.join("source")],
        state_dir: Some(place.join("state")),
        bundle_dir: Some(place.join("bundle")),
        jwks: Some(place.join("jwks.json")),
        ca_issuer_secret: None,
        token_issuer: "nobody".to_owned(),
        trust_domain: "cluster.local".parse()?,
        cluster_domain: "cluster.local".to_owned(),
        xds_address: any,
        admin_address: any,
        leaf_ttl: Duration::from_secs(24 * 3600),
        root_propagation: Duration::from_secs(60),
        log: "error".to_owned(),
        limits: LimitArgs::default(),
    })
}

async fn measure(
    variant: Variant,
    address: SocketAddr,
    place: &Path,
    services: usize,
    streams: usize,
) -> anyhow::Result<()> {
    let credentials = client::Credentials::load(place)?;
    let tasks = Tasks::new();
    let before = cpu()?;
    let mut clients = Vec::new();
    for i in 0..streams {
        let client = Client::start(variant, address, &credentials, (i, services), &tasks)?;
        clients.push(client);
    }
    for client in &mut clients {
        // Those that the variant before left opaque have no routes.
        client.settled(services.saturating_sub(ROUNDS)).await?;
    }
    let connected = (cpu()? - before) / streams as f64;
    println!("{variant:?}: {connected:.2} for each client until it has everything");
    for (name, change, expected) in world::CHANGES {
        let before = cpu()?;
        for round in 0..ROUNDS {
            clients.iter_mut().for_each(Client::begin);
            change(
                &place.join("source"),
                round * 7 % services,
                variant == Variant::Full,
            )?;
            for client in &mut clients {
                client.hears(expected).await.context(name)?;
            }
        }
        // What else follows from the last of them.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let each = (cpu()? - before) / ROUNDS as f64;
        println!("{variant:?}: {each:.2} for {name}");
    }
    tasks.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

/// Milliseconds that the threads of the control plane have run.
fn cpu() -> anyhow::Result<f64> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let Ok(name) = std::fs::read_to_string(task.join("comm")) else {
            continue;
        };
        if name.trim_end() == THREADS {
            let ran = std::fs::read_to_string(task.join("schedstat"))?;
            let ran = ran.split(' ').next().context("it has numbers")?;
            total += ran.parse::<u64>()?;
        }
    }
    Ok(total as f64 / 1e6)
}
