//! The composition root: builds the injector from its parts, runs it, and takes it down again.
//!
//! Ports are bound before anything else. Reviews are taken once there is a certificate; until then connections wait in the
//! kernel, and readiness says why. Asked to end, the injector first says that it is not ready and serves on, because nodes
//! take a moment to send new connections elsewhere; then it closes each connection after what was begun on it.

mod args;
mod limits;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use http::StatusCode;
use kube::Client;
use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tulle_identity::{CaClientConfig, Identity, SpiffeId, ca_client};
use tulle_runtime::admin::{self, AdminServer, Refusals};
use tulle_runtime::drain;
use tulle_runtime::gate::Gate;
use tulle_runtime::listen;
use tulle_runtime::names::{CONTROL_NAMESPACE, INJECTOR};
use tulle_runtime::tasks::Tasks;
use tulle_runtime::{allocator, metrics, signals, trace};

use crate::events::{self, Teller};
use crate::namespaces::{self, Namespaces};
use crate::reconcile::{self, Reconciler};
use crate::webhook::{self, Webhook};
use crate::{HookKey, InjectorConfig, Located, Reviewer};

pub use args::{AccessLog, Args, PullPolicy, SidecarArgs};
pub use limits::LimitArgs;

/// How long new connections may still come after the end was asked for.
const LINGER: Duration = Duration::from_secs(3);
/// How long what was begun may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Time for infrastructure tasks to end.
const SHUTDOWN: Duration = Duration::from_secs(1);
/// How long the API server may say nothing: longer than it leaves a watch without a word.
const SILENCE: Duration = Duration::from_secs(300);

/// Runs the injector until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start: a port is taken, or there is no API server to be a part of.
pub fn run(args: Args) -> anyhow::Result<()> {
    allocator::keep_little();
    let (_trace, _written) = trace::serve(&args.log, trace::Format::Text)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("injector")
        // Reviews, and a few for what else blocks.
        .max_blocking_threads(args.limits.max_reviews + 4)
        .build()
        .context("could not start the runtime")?;
    runtime.block_on(async {
        // Asked for first, so that a signal during the start is not lost.
        let mut signal = std::pin::pin!(signals::shutdown());
        let injector = Injector::start(args, client().await?).await?;
        let signal = signal.as_mut().await;
        tracing::info!(signal, "ending");
        injector.shutdown(LINGER, DRAIN).await;
        Ok(())
    })
}

/// A client of the API server: that of the cluster that this runs in, or of KUBECONFIG.
async fn client() -> anyhow::Result<Client> {
    let remedy = "there is no API server to follow: run it in a pod with a service account, or set KUBECONFIG";
    let mut config = kube::Config::infer().await.context(remedy)?;
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).context(remedy)
}

/// An injector that serves, or will once it has a certificate.
#[derive(Debug)]
pub struct Injector {
    webhook_address: SocketAddr,
    admin_address: SocketAddr,
    status: Status,
    tasks: Tasks,
    drain: drain::Drain,
}

/// How far it has come.
#[derive(Clone, Debug, Default)]
struct Status(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    identity: RwLock<Option<Identity>>,
    ending: AtomicBool,
}

impl Status {
    /// Why it is not ready, if it is not.
    fn unready(&self) -> Option<&'static str> {
        if self.0.ending.load(Ordering::Acquire) {
            return Some("ending\n");
        }
        match &*self.0.identity.read() {
            None => Some("no certificate from the CA yet\n"),
            Some(identity) if identity.load().check().is_err() => Some(
                "the certificate has expired or is no longer trusted, and the CA gives no new one\n",
            ),
            Some(_) => None,
        }
    }
}

impl Injector {
    /// Starts an injector in this process. Its addresses are bound when this returns.
    ///
    /// # Errors
    /// If a port is taken, or the service account can have no identity.
    pub async fn start(args: Args, client: Client) -> anyhow::Result<Self> {
        let (listener, mut admin) = bind(&args).await?;
        let id = SpiffeId::new(
            &args.trust_domain,
            CONTROL_NAMESPACE,
            &args.service_account(),
        )
        .context("--service-account")?;
        let mut registry = Registry::with_prefix("tulle");
        trace::register(&mut registry);
        let ca = ca_client::Metrics::register(&mut registry);
        let namespaces = namespaces::Metrics::register(&mut registry);
        let reviews = webhook::Metrics::register(&mut registry);
        let refusals = Refusals::register(&mut registry);
        let uninjected = reconcile::Metrics::register(&mut registry);
        let annotations = events::Metrics::register(&mut registry);
        let namespaces = Namespaces::new(Some(client.clone()), namespaces);
        let control_at = Located::default();
        let following = control_at.clone().follow(args.control_address());
        let reviewer = Reviewer {
            config: InjectorConfig {
                control_at,
                hook_key: HookKey::random().context("cannot get random numbers of the system")?,
                ..args.config()
            },
        };
        let config = reviewer.config.clone();
        let (teller, telling) =
            Teller::new(client.clone(), config, namespaces.clone(), annotations);
        let bounds = args.limits.bounds();
        let webhook = Webhook::new(reviewer, namespaces.clone(), teller, reviews, bounds);
        let (drain, watch) = drain::channel();
        let injector = Self {
            webhook_address: listener.local_addr()?,
            admin_address: admin.local_addr(),
            status: Status::default(),
            tasks: Tasks::new(),
            drain,
        };
        let tasks = &injector.tasks;
        admin.refusals(refusals);
        injector.admin_routes(&mut admin, registry, &args);
        admin.serve("admin", tasks);
        let reconciler = Reconciler::new(client, namespaces.clone(), args.config(), uninjected);
        tasks.spawn_until_cancelled("control-address", following);
        tasks.spawn_until_cancelled("namespace-beat", namespaces::beat(namespaces.clone()));
        tasks.spawn_until_cancelled("namespaces", namespaces::follow(namespaces));
        tasks.spawn_until_cancelled("events", telling);
        tasks.spawn_until_cancelled("reconcile", reconciler.run(args.reconcile_interval));
        let (status, owner) = (injector.status.clone(), tasks.clone());
        let ca_config = ca_config(&args, id);
        tasks.spawn_until_cancelled("webhook", async move {
            let identity = match ca_client::start(ca_config, ca, &owner).await {
                Ok(identity) => identity,
                // Only a state directory can be wrong, and there is none.
                Err(error) => {
                    tracing::error!(%error, "no certificate can be had");
                    return;
                }
            };
            *status.0.identity.write() = Some(identity.clone());
            tracing::info!("taking reviews");
            webhook::serve(listener, webhook, identity, watch, owner).await;
        });
        tracing::info!(webhook = %injector.webhook_address, admin = %injector.admin_address, revision = %args.revision, "injector begins");
        Ok(injector)
    }

    /// Where the API server connects to.
    #[must_use]
    pub fn webhook_address(&self) -> SocketAddr {
        self.webhook_address
    }

    /// Where operators connect to.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Ends it: not ready at once, no new connections after `linger`, what was begun by `deadline` after that.
    pub async fn shutdown(self, linger: Duration, deadline: Duration) {
        self.status.0.ending.store(true, Ordering::Release);
        tokio::time::sleep(linger).await;
        if !self.drain.drain(deadline).await {
            tracing::warn!("connections are still open at the deadline; they are cut off");
        }
        self.tasks.shutdown(SHUTDOWN).await;
    }

    fn admin_routes(&self, server: &mut AdminServer, registry: Registry, args: &Args) {
        server.allow_host(format!(
            "{}.{CONTROL_NAMESPACE}.svc",
            args.revision.of(INJECTOR)
        ));
        let told = Gate::default();
        server.room(args.limits.max_admin_connections, move |evicted| {
            if let Some(left_out) = told.pass() {
                tracing::info!(client.addr = %evicted.client, left_out, "an admin connection is closed for one more");
            }
        });
        let status = self.status.clone();
        server.get("/ready", move |_| {
            let answer = match status.unready() {
                None => admin::text(StatusCode::OK, "ready\n"),
                Some(why) => admin::text(StatusCode::SERVICE_UNAVAILABLE, why),
            };
            async move { answer }
        });
        let registry = Arc::new(registry);
        server.get("/metrics", move |_| {
            let text = metrics::encode(&registry);
            async move { admin::typed(StatusCode::OK, metrics::CONTENT_TYPE, text) }
        });
    }
}

/// Both ports.
async fn bind(args: &Args) -> anyhow::Result<(TcpListener, AdminServer)> {
    let listener = listen::bind(args.webhook_address).await.with_context(|| {
        let address = args.webhook_address;
        format!("cannot listen on {address} for reviews: free the port, or choose another address with --webhook-address")
    })?;
    let admin = AdminServer::bind_exposed(args.admin_address)
        .await
        .context("choose another address with --admin-address")?;
    Ok((listener, admin))
}

/// As a sidecar gets its own; nothing of it is kept for a restart.
fn ca_config(args: &Args, id: SpiffeId) -> CaClientConfig {
    let mut config = CaClientConfig::new(args.control_address(), id);
    config.token_file.clone_from(&args.token_file);
    config.bundle_file.clone_from(&args.bundle_file);
    config.state_dir = None;
    config.ttl = args.certificate_ttl;
    config
}
