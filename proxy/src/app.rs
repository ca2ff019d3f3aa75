//! The composition root: builds the sidecar from its parts, runs it, and takes it down again.
//!
//! The process's first thread runs everything that is not a byte of the app's: certificates, config, admin. Each worker
//! has a thread and a runtime of its own ([`pool`]). Listeners are bound before anything else, so a port that is taken
//! is said at once; they are served once there is an identity, and until then connections wait in the kernel, because a
//! sidecar without an identity has nothing honest to do with them.

mod outlive;
mod pool;

use std::sync::Arc;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tulle_identity::Identity;
use tulle_identity::ca_client::{self, ControlName};
use tulle_runtime::admin::Refusals;
use tulle_runtime::allocator;
use tulle_runtime::drain;
use tulle_runtime::env::Env;
use tulle_runtime::names::{CONTROL_DNS_NAME, files, ports};
use tulle_runtime::signals;
use tulle_runtime::tasks::Tasks;
use tulle_runtime::trace::{self, TraceHandle};

use crate::admin::{Addresses, Admin, AppProbes, Status};
use crate::config::store::ConfigWriter;
use crate::config::{Config, Snapshot, Workload};
use crate::merged::{Failures, Merged};
use crate::net;
use crate::overload::{self, Memory, MemoryMetrics, Overload};
use crate::settings::{ForeignControl, Settings, Startup};
use crate::telemetry::{AccessLog, Hub, Limits, Local};
use crate::worker::Handles;
use crate::xds::{XdsClient, XdsConfig, XdsMetrics, node_id};

/// Time for infrastructure tasks to end after the data path has.
const SHUTDOWN: std::time::Duration = std::time::Duration::from_secs(1);

/// Runs the sidecar until it is told to end and has drained.
///
/// # Errors
///
/// When it cannot start; the message names the cause and the remedy.
pub fn run(env: Env) -> anyhow::Result<()> {
    allocator::keep_little();
    let startup = Startup::from_env(env)?;
    let (trace, _written) = trace::serve(&startup.log, trace::Format::default())?;
    let files = net::raise_file_limit();
    let listeners = Listeners::bind()?;
    if let Some(mark) = startup.settings.socket_mark {
        net::check_mark(mark)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_stack_size(pool::STACK)
        .build()
        .context("could not start the control runtime")?;
    runtime.block_on(
        Sidecar {
            startup,
            trace,
            files,
            listeners,
        }
        .run(),
    )
}

/// The sockets that captured connections come to.
struct Listeners {
    outbound: Vec<std::net::TcpListener>,
    inbound: Vec<std::net::TcpListener>,
}

impl Listeners {
    fn bind() -> Result<Self, net::ListenError> {
        Ok(Self {
            outbound: net::listen(ports::OUTBOUND)?,
            inbound: net::listen(ports::INBOUND)?,
        })
    }
}

struct Sidecar {
    startup: Startup,
    trace: TraceHandle,
    files: u64,
    listeners: Listeners,
}

/// The metrics of every room.
struct Metrics {
    ca: ca_client::Metrics,
    xds: XdsMetrics,
    connections: net::Metrics,
    limits: Limits,
    refusals: Refusals,
    app_metrics: Failures,
    memory: MemoryMetrics,
    telemetry: Arc<Hub>,
}

impl Sidecar {
    async fn run(self) -> anyhow::Result<()> {
        let tasks = Tasks::new();
        let status = Status::default();
        let (config, writer) = Config::new(Snapshot::default());
        let (registry, metrics) = self.register(&config)?;
        let settings = Arc::new(self.startup.settings.clone());
        let admin = self.admin(&status, &config, registry, &settings, &metrics);
        admin.start(Addresses::default(), &tasks).await?;
        tracing::info!(client.id = %self.startup.id, pod = self.startup.pod_name, "starting");

        let (pod_finished, finished) = oneshot::channel();
        let (signal, dismissed) = (signals::shutdown(), dismissed(&status, finished));
        tokio::pin!(signal, dismissed);
        let starting = ca_client::start(self.ca_config(), metrics.ca.clone(), &tasks);
        let started = tokio::select! {
            identity = starting => Ok(identity?),
            why = &mut signal => Err(why),
            why = &mut dismissed => Err(why),
        };
        let identity = match started {
            Ok(identity) => identity,
            Err(why) => {
                tracing::info!(why, "ending before there was a certificate");
                return Ok(());
            }
        };
        status.set_identity(identity.clone());
        self.follow_config(&identity, writer, pod_finished, &metrics, &tasks)?;

        let overload = self.watch_over(metrics.memory, &tasks);
        let (drain, watch) = drain::channel();
        let handles = Handles {
            config,
            identity,
            settings: settings.clone(),
            connections: metrics.connections,
            limits: metrics.limits,
            overload,
            telemetry: Some(metrics.telemetry.clone()),
            drain: watch,
        };
        pool::start(handles, self.listeners.outbound, self.listeners.inbound)?;
        status.set_listening();
        tracing::info!("accepting connections");

        let app = outlive::App::of_this_pod(self.startup.outlive);
        let ending = outlive::end(app, signal, dismissed, settings.drain_deadline);
        let (why, deadline) = ending.await;
        tracing::info!(why, ?deadline, "draining");
        status.set_draining();
        if !drain.drain(deadline).await {
            tracing::warn!("the deadline came before the last connection ended; closing the rest");
        }
        tasks.shutdown(SHUTDOWN).await;
        metrics.telemetry.close();
        Ok(())
    }

    fn admin(
        &self,
        status: &Status,
        config: &Config,
        registry: Arc<Registry>,
        settings: &Arc<Settings>,
        metrics: &Metrics,
    ) -> Admin {
        Admin {
            status: status.clone(),
            config: config.clone(),
            registry,
            trace: self.trace.clone(),
            app: AppProbes {
                probes: self.startup.probes.clone(),
                address: self.startup.pod_ip,
                settings: settings.clone(),
            },
            merged: Arc::new(Merged::new(
                self.startup.app_metrics.clone(),
                metrics.app_metrics.clone(),
                settings.bounds.app_metrics,
            )),
            limits: metrics.limits.clone(),
            refusals: metrics.refusals.clone(),
        }
    }

    fn register(&self, config: &Config) -> anyhow::Result<(Arc<Registry>, Metrics)> {
        let mut registry = Registry::default();
        let local = Local {
            address: self.startup.pod_ip,
            id: self.startup.id.clone(),
            workload: Arc::new(Workload {
                namespace: self.startup.id.namespace().into(),
                service_account: self.startup.id.service_account().into(),
                ..Workload::default()
            }),
        };
        let log = self.startup.access_log.then(AccessLog::stdout);
        let log = log.transpose().context("could not start the access log")?;
        let telemetry = Hub::new(config.clone(), local, log, &mut registry);
        let own = registry.sub_registry_with_prefix("tulle");
        trace::register(own);
        let metrics = Metrics {
            ca: ca_client::Metrics::register(own),
            xds: XdsMetrics::register(own),
            connections: net::Metrics::register(own),
            limits: Limits::register(own),
            refusals: Refusals::register(own),
            app_metrics: Failures::register(own),
            memory: MemoryMetrics::register(own),
            telemetry,
        };
        Ok((Arc::new(registry), metrics))
    }

    /// Finds what there is of files and memory, and looks after the latter from now on.
    fn watch_over(&self, metrics: MemoryMetrics, tasks: &Tasks) -> Overload {
        let bounds = &self.startup.settings.bounds;
        let memory = Memory::find(bounds, metrics);
        let overload = Overload::new(self.files, bounds, memory.as_ref());
        tracing::info!(
            files = self.files,
            connections = overload.connections(),
            memory = memory.as_ref().map(Memory::limit),
            "limits of this sidecar"
        );
        let cancelled = tasks.cancelled();
        let watching = async move {
            match memory {
                Some(memory) => memory.watch().await,
                None => std::future::pending().await,
            }
        };
        tasks.spawn("memory", async move {
            tokio::select! {
                biased;
                () = cancelled => {}
                () = watching => {}
                () = overload::give_back_what_was_freed() => {}
            }
        });
        overload
    }

    fn ca_config(&self) -> ca_client::CaClientConfig {
        let Startup {
            control_address,
            id,
            settings,
            ..
        } = &self.startup;
        let mut config = ca_client::CaClientConfig::new(control_address, id.clone());
        config.mark = settings.socket_mark;
        config
    }

    fn follow_config(
        &self,
        identity: &Identity,
        writer: ConfigWriter,
        pod_finished: oneshot::Sender<()>,
        metrics: &Metrics,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        let Startup {
            control_address,
            pod_ip,
            pod_name,
            cluster_domain,
            id,
            settings,
            wildcard,
            foreign,
            ..
        } = &self.startup;
        let mark = settings.socket_mark;
        let own = || ForeignControl {
            address: control_address.clone(),
            name: ControlName::Dns(CONTROL_DNS_NAME.to_owned()),
        };
        let ForeignControl { address, name } = foreign.clone().unwrap_or_else(own);
        let due = identity.changed();
        let identity = identity.clone();
        let connect = move || ca_client::foreign_channel(&address, &name, identity.clone(), mark);
        let channel = connect()?;
        let config = XdsConfig {
            node_id: node_id(*pod_ip, pod_name, id.namespace(), cluster_domain),
            node_cluster: format!("{}.{}", id.service_account(), id.namespace()),
            wildcard: *wildcard,
            max_subscriptions: settings.bounds.subscriptions,
            state_dir: Some(files::STATE_DIR.into()),
        };
        let mut client = XdsClient::new(config, channel, writer, metrics.xds.clone())
            .renewed(due, move || connect().ok());
        if foreign.is_none() {
            client = client.ending_with_pod(pod_finished);
        }
        tasks.spawn("xds", client.run(tasks.cancelled()));
        Ok(())
    }
}

/// Resolves when somebody who knows says that the sidecar is needed no longer, with the reason.
async fn dismissed(status: &Status, pod_finished: oneshot::Receiver<()>) -> &'static str {
    tokio::select! {
        () = status.drain_requested() => "drain",
        // Without its sender nobody will ever say so.
        Ok(()) = pod_finished => "the pod has finished",
    }
}
