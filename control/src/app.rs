//! The composition root: builds every part in order, binds before it serves, and ends without cutting anybody off.

mod args;
pub(crate) mod listener;
mod trust;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tulle_runtime::admin::{AdminServer, Refusals};
use tulle_runtime::allocator;
use tulle_runtime::drain::{self, Drain, DrainWatch};
use tulle_runtime::listen;
use tulle_runtime::names::agent;
use tulle_runtime::tasks::Tasks;
use tulle_runtime::{signals, trace};

use crate::admin;
use crate::ca::{Authority, CertificateServer, CertificateService, Metrics};
use crate::discovery::{Discovery, Limits};
use crate::limit::Reached;
use crate::platform;
use crate::snapshot::Snapshots;
use crate::source::{self, FileSource, KubernetesSource, SourceReport};
use crate::status::Claims;
use crate::store::{MeshSettings, Store, StoreWriter};
use listener::Incoming;
use trust::Trust;

pub use args::{Args, LimitArgs};

/// How long open streams may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long what has begun may take to end.
const RELEASE: Duration = Duration::from_secs(1);
/// How often a silent connection is asked whether anybody is there, and how long that may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Streams on one connection: all that one pod may have for discovery, as an agent's relay brings them, a few for certificates.
const STREAMS: u32 = agent::STREAMS + 28;
/// What a client may send ahead on a stream and on a connection: all that one whose requests wait can pile up.
const AHEAD: (u32, u32) = (64 << 10, 256 << 10);
/// Streams on a connection whose client has shown no certificate, which is good for asking for one.
const STRANGERS_STREAMS: u32 = 4;
/// What such a client may send ahead: the largest request for a certificate, four times.
const STRANGERS_AHEAD: (u32, u32) = (16 << 10, 64 << 10);

/// A control plane that serves.
#[derive(Debug)]
pub struct Control {
    xds_address: SocketAddr,
    admin_address: SocketAddr,
    tasks: Tasks,
    drain: Drain,
}

/// Where objects come from.
enum Source {
    Files(FileSource),
    Kubernetes(KubernetesSource),
}

impl Source {
    async fn open(args: &Args) -> anyhow::Result<Self> {
        Ok(match args.kubernetes {
            true => Self::Kubernetes(KubernetesSource::new(source::connect().await?)),
            false => Self::Files(FileSource::open(args.source.clone())?),
        })
    }

    fn report(&self) -> SourceReport {
        match self {
            Self::Files(source) => source.report(),
            Self::Kubernetes(source) => source.report(),
        }
    }

    /// What the objects of a cluster claim, and what is stored of them.
    fn notes(&self) -> Option<(Claims, Snapshots)> {
        match self {
            Self::Files(_) => None,
            Self::Kubernetes(source) => Some((source.claims(), source.snapshots())),
        }
    }

    fn spawn(self, tasks: &Tasks, writer: StoreWriter) {
        match self {
            Self::Files(source) => tasks.spawn_until_cancelled("source", source.run(writer)),
            Self::Kubernetes(source) => source.spawn(tasks, writer),
        }
    }
}

/// What the parts that ask the API server need.
pub(crate) struct Cluster {
    client: Client,
    claims: Claims,
    snapshots: Snapshots,
}

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: a port is taken, a directory cannot be read, the CA's state is broken.
pub fn run(args: Args) -> anyhow::Result<()> {
    allocator::keep_little();
    let (_trace, _written) = trace::serve(&args.log, trace::Format::Text)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("control")
        .build()?;
    runtime.block_on(async {
        // Asked for first, so that a signal during the start is not lost.
        let mut signal = std::pin::pin!(signals::shutdown());
        let control = tokio::select! {
            // A signal wins over a start that is still going on.
            biased;
            _ = &mut signal => return Ok(()),
            control = Control::start(args) => control?,
        };
        let signal = signal.await;
        tracing::info!(signal, "draining");
        control.shutdown(DRAIN).await;
        Ok(())
    })
}

impl Control {
    /// Starts a control plane in this process; it serves when this returns.
    ///
    /// # Errors
    /// If a port is taken, a directory cannot be read, or the CA's state is broken.
    pub async fn start(args: Args) -> anyhow::Result<Self> {
        let client = match args.kubernetes {
            true => Some(platform::connect().await?),
            false => None,
        };
        let source = Source::open(&args).await?;
        let cluster = client.zip(source.notes());
        let (store, writer) = Store::new(MeshSettings {
            trust_domain: args.trust_domain.as_str().into(),
            cluster_domain: args.cluster_domain.as_str().into(),
            ..MeshSettings::default()
        });
        let control = serve(
            &args,
            &store,
            source.report(),
            args.limits.limits(),
            Tasks::new(),
            cluster.map(|(client, (claims, snapshots))| Cluster {
                client,
                claims,
                snapshots,
            }),
        )
        .await?;
        source.spawn(&control.tasks, writer);
        Ok(control)
    }

    /// Where proxies connect to.
    #[must_use]
    pub fn xds_address(&self) -> SocketAddr {
        self.xds_address
    }

    /// Where operators connect to.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Ends it: streams are told to reconnect elsewhere, and get until `deadline` to end.
    pub async fn shutdown(self, deadline: Duration) {
        if !self.drain.drain(deadline).await {
            tracing::warn!("connections are still open at the deadline; they are cut off");
        }
        self.tasks.shutdown(RELEASE).await;
    }
}

/// Builds all but the sources, around a store.
pub(crate) async fn serve(
    args: &Args,
    store: &Store,
    report: SourceReport,
    limits: Limits,
    tasks: Tasks,
    cluster: Option<Cluster>,
) -> anyhow::Result<Control> {
    let (listener, mut admin) = bind(args).await?;
    let (drain, watch) = drain::channel();
    let ending = CancellationToken::new();
    let mut registry = Registry::with_prefix("tulle");
    trace::register(&mut registry);
    report.register(&mut registry);
    let ca_metrics = Metrics::register(&mut registry);
    let reached = Reached::register(&mut registry);
    let handshakes = listener::Metrics::register(&mut registry, reached.clone());
    let gauges = admin::Gauges::register(&mut registry);
    let refusals = Refusals::register(&mut registry);
    let (discovery, follow) = Discovery::new(
        store,
        limits,
        &mut registry,
        reached.clone(),
        tasks.clone(),
        ending.clone(),
    );
    let trust = match cluster {
        Some(cluster) => {
            let metrics = ca_metrics.clone();
            let ground = (store, discovery.worlds());
            trust::from_cluster(args, cluster, ground, &mut registry, &tasks, metrics).await
        }
        None => trust::from_files(args, ca_metrics.clone()).await,
    };
    let Trust { authority, review } = match trust {
        Ok(trust) => trust,
        Err(error) => {
            // So that another replica need not wait for our lease to end.
            tasks.shutdown(RELEASE).await;
            return Err(error);
        }
    };
    let certificates = CertificateService::new(
        authority.clone(),
        review,
        discovery.worlds(),
        args.trust_domain.clone(),
        limits.pod_wait,
        limits.certificates,
        ca_metrics,
    );
    let control = Control {
        xds_address: listener.local_addr()?,
        admin_address: admin.local_addr(),
        tasks: tasks.clone(),
        drain,
    };
    tasks.spawn_until_cancelled("store-follower", follow);
    spawn_ca(&tasks, &authority, &discovery);
    let incoming = listener::accept(
        listener,
        authority.identity().clone(),
        &tasks,
        handshakes,
        limits.connections,
    );
    let certificates = certificates.into_service(reached.clone());
    serve_clients(&tasks, incoming, &discovery, &certificates, &watch, &ending);
    drop(watch);
    let registry = Arc::new(registry);
    admin::routes(
        &mut admin,
        admin::State {
            registry,
            gauges,
            tasks: tasks.clone(),
            discovery,
            authority,
            report,
            reached,
            connections: limits.admin_connections,
            refusals,
        },
    );
    admin.serve("admin", &tasks);
    tracing::info!(xds = %control.xds_address, admin = %control.admin_address, "control plane serves");
    Ok(control)
}

/// Serves those who have shown a certificate and, with less room for each, those who have not.
fn serve_clients(
    tasks: &Tasks,
    incoming: Incoming,
    discovery: &Discovery,
    certificates: &CertificateServer,
    watch: &DrainWatch,
    ending: &CancellationToken,
) {
    let known = ("xds-server", STREAMS, AHEAD);
    let others = ("xds-strangers", STRANGERS_STREAMS, STRANGERS_AHEAD);
    for (incoming, (name, streams, ahead)) in [(incoming.known, known), (incoming.others, others)] {
        let router = server(streams, ahead)
            .add_service(discovery.service())
            .add_service(certificates.clone());
        let watch = watch.clone();
        let ended = ended(watch.clone(), ending.clone());
        let server = router.serve_with_incoming_shutdown(ReceiverStream::new(incoming), ended);
        tasks.spawn(name, async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the server for proxies ended");
            }
            // Kept until the last connection has ended.
            drop(watch);
        });
    }
}

/// What clients talk to, on a connection with so many streams.
fn server(streams: u32, ahead: (u32, u32)) -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .max_concurrent_streams(Some(streams))
        .initial_stream_window_size(Some(ahead.0))
        .initial_connection_window_size(Some(ahead.1))
}

/// Takes the ports, before anything else is begun.
async fn bind(args: &Args) -> anyhow::Result<(TcpListener, AdminServer)> {
    let listener = listen::bind(args.xds_address).await.with_context(|| {
        let address = args.xds_address;
        format!("cannot listen on {address} for proxies: free the port, or choose another address with --xds-address")
    })?;
    let admin = if args.admin_address.ip().is_loopback() {
        AdminServer::bind(args.admin_address).await
    } else {
        AdminServer::bind_exposed(args.admin_address).await
    };
    Ok((
        listener,
        admin.context("choose another address with --admin-address")?,
    ))
}

/// Resolves when the drain begins, having told the streams.
async fn ended(watch: DrainWatch, ending: CancellationToken) {
    watch.draining().await;
    ending.cancel();
}

/// Drives the CA, and hands its bundles on.
fn spawn_ca(tasks: &Tasks, authority: &Arc<Authority>, discovery: &Discovery) {
    let driven = authority.clone();
    tasks.spawn_until_cancelled("ca", async move { driven.run().await });
    tasks.spawn_until_cancelled(
        "bundle-follower",
        follow_bundle(authority.bundle(), discovery.clone()),
    );
}

/// Hands each new trust bundle to discovery.
async fn follow_bundle(mut bundle: watch::Receiver<Arc<str>>, discovery: Discovery) {
    loop {
        let pem = bundle.borrow_and_update().clone();
        discovery.set_bundle(&pem);
        if bundle.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
