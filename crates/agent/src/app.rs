//! The composition root: builds the agent from its parts, runs it, and takes it down again.
//!
//! Sockets are bound before anything else, so a port that is taken is said at once. Files come first, then the bootstrap
//! that names them, then readiness. Asked to end, the agent stays for the streams that it relays, up to the deadline:
//! the client beside it may still be draining.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tonic::transport::Channel;
use tulle_identity::{CaClientConfig, Identity, ca_client, control_channel};
use tulle_runtime::admin::{AdminServer, Refusals};
use tulle_runtime::backoff::Backoff;
use tulle_runtime::env::Env;
use tulle_runtime::names::CONTROL_DNS_NAME;
use tulle_runtime::tasks::Tasks;
use tulle_runtime::{allocator, drain, signals, trace};

use crate::args::{Args, Client, Place};
use crate::bootstrap::{self, Upstream};
use crate::files::CredentialFiles;
use crate::ready::{ReadyFile, Status};
use crate::relay::{self, Connect, Listener, Relay};

/// How often readiness is looked at.
const LOOK: Duration = Duration::from_secs(1);
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Time for infrastructure tasks to end.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to end.
///
/// # Errors
/// When it cannot start; the message names the cause and the remedy.
pub fn run(args: Args, env: Env) -> anyhow::Result<()> {
    allocator::keep_little();
    let place = Place::from_env(env)?;
    let (_trace, _written) = trace::serve(&place.log, trace::Format::default())?;
    let extra = match args.bootstrap {
        Some(Client::Envoy) => bootstrap::secrets(&args.dir),
        _ => Vec::new(),
    };
    let files = CredentialFiles::open(&args.dir, args.group, extra)?;
    let ready_file = ReadyFile::new(args.ready_file.clone())
        .context("could not remove the ready file of before")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("could not start the runtime")?;
    let agent = Agent {
        args,
        place,
        files,
        metrics: Metrics::default(),
    };
    runtime.block_on(agent.run(ready_file))
}

struct Agent {
    args: Args,
    place: Place,
    files: CredentialFiles,
    metrics: Metrics,
}

#[derive(Clone, Debug, Default)]
struct Metrics {
    writes: Counter,
    failures: Counter,
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "agent_writes",
            "Times that the files were replaced",
            self.writes.clone(),
        );
        registry.register(
            "agent_write_failures",
            "Times that the files could not be replaced",
            self.failures.clone(),
        );
    }
}

impl Agent {
    async fn run(self, ready_file: ReadyFile) -> anyhow::Result<()> {
        let tasks = Tasks::new();
        let status = Status::default();
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("tulle");
        let ca = ca_client::Metrics::register(own);
        let relayed = relay::Metrics::register(own);
        self.metrics.register(own);
        trace::register(own);
        let refusals = Refusals::register(own);
        self.serve_readiness(&status, registry, refusals, &tasks)
            .await?;
        let listener = match &self.args.xds_listen {
            None => None,
            Some(at) => Some(Listener::bind(at).await.context("--xds-listen")?),
        };

        let mut ending = Box::pin(signals::shutdown());
        tracing::info!(client.id = %self.place.id, pod = self.place.pod_name, "starting");
        let identity = tokio::select! {
            identity = ca_client::start(self.ca_config(), ca, &tasks) => identity?,
            why = &mut ending => {
                tracing::info!(why, "ending before there was a certificate");
                return Ok(());
            }
        };
        self.write(&identity, &status)?;
        let at = listener.as_ref().map(Listener::address).transpose()?;
        let upstream = Upstream::new(&self.place, at.as_ref());
        bootstrap::write(&self.args, &self.place, &self.files, &upstream)?;

        let (drain, watch) = drain::channel();
        let relay = match listener {
            None => {
                // Nothing but streams is waited for.
                drop(watch);
                None
            }
            Some(listener) => Some(self.relay(listener, &identity, relayed, watch, &tasks)?),
        };
        tracing::info!(dir = %self.args.dir.display(), relay = ?at, "ready");
        let deadline = self.place.drain_deadline;
        let follow = self.follow(identity, status.clone(), ready_file);
        tasks.spawn_until_cancelled("files", follow);

        let why = ending.await;
        status.set_ending();
        tracing::info!(why, ?deadline, "ending");
        if let Some(relay) = &relay {
            relay.stop();
        }
        if !drain.drain(deadline).await {
            tracing::warn!("the deadline came before the last stream ended; closing the rest");
        }
        tasks.shutdown(SHUTDOWN).await;
        Ok(())
    }

    async fn serve_readiness(
        &self,
        status: &Status,
        registry: Registry,
        refusals: Refusals,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        if let Some(address) = self.args.ready_address {
            let mut server = AdminServer::bind_exposed(address).await?;
            server.refusals(refusals);
            status.routes(&mut server, Arc::new(registry));
            server.serve("readiness", tasks);
        }
        Ok(())
    }

    fn ca_config(&self) -> CaClientConfig {
        let mut config = CaClientConfig::new(&self.place.control_address, self.place.id.clone());
        config.state_dir = Some(self.args.dir.clone());
        config.mark = self.place.mark;
        config
    }

    fn relay(
        &self,
        listener: Listener,
        identity: &Identity,
        metrics: relay::Metrics,
        watch: drain::DrainWatch,
        tasks: &Tasks,
    ) -> anyhow::Result<Relay> {
        let connect = connector(&self.place, identity.clone())?;
        let relay = Relay::new(
            self.place.node(),
            self.args.xds_streams,
            connect,
            metrics,
            watch,
        );
        tasks.spawn("relay", listener.serve(relay.clone(), tasks.clone()));
        Ok(relay)
    }

    fn write(&self, identity: &Identity, status: &Status) -> Result<(), crate::files::FilesError> {
        let current = identity.current();
        self.files.write(&current)?;
        self.metrics.writes.inc();
        status.set_written(identity, current.generation());
        tracing::info!(
            serial = current.svid().serial(),
            roots = current.bundle().roots().len(),
            "files written"
        );
        Ok(())
    }

    /// Writes the files whenever the identity changes, and keeps the ready file. Never ends.
    async fn follow(self, identity: Identity, status: Status, mut ready_file: ReadyFile) {
        let mut changed = identity.changed();
        let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
        let mut retry_at = Instant::now();
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                // Either wakes the same look.
                _ = look.tick() => {}
                Ok(()) = changed.changed() => retry_at = Instant::now(),
            }
            let stale = status.written() != Some(identity.load().generation());
            if stale && Instant::now() >= retry_at {
                match self.write(&identity, &status) {
                    Ok(()) => backoff.reset(),
                    Err(error) => {
                        self.metrics.failures.inc();
                        let delay = backoff.next_delay();
                        let error = anyhow::Error::from(error);
                        tracing::warn!(error = format!("{error:#}"), retry_in = ?delay, "files not written; the old ones stay");
                        retry_at = Instant::now() + delay;
                    }
                }
            }
            if let Err(error) = ready_file.set(status.unready().is_none()) {
                tracing::warn!(%error, "ready file not changed");
            }
        }
    }
}

/// Channels with the newest identity: streams that begin after a rotation do not go over a connection from before.
fn connector(place: &Place, identity: Identity) -> anyhow::Result<Connect> {
    let (address, mark) = (place.control_address.clone(), place.mark);
    let make = move |identity: &Identity| {
        control_channel(&address, CONTROL_DNS_NAME, identity.clone(), mark)
    };
    let last: Mutex<(u64, Channel)> = Mutex::new((identity.load().generation(), make(&identity)?));
    Ok(Box::new(move || {
        let mut last = last.lock();
        let now = identity.load().generation();
        if last.0 != now
            && let Ok(channel) = make(&identity)
        {
            *last = (now, channel);
        }
        last.1.clone()
    }))
}
