//! The task: streams to the control plane, one after the other, and what happens beside them.

mod stream;

use std::future::{Future, pending};
use std::time::Duration;

use futures_util::{StreamExt, TryFutureExt, stream::poll_fn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tonic::Status;
use tonic::transport::Channel;
use tulle_runtime::backoff::Backoff;
use tulle_xds_proto::ENDS_WITH_POD;
use tulle_xds_proto::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use tulle_xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tulle_xds_proto::prost::Message as _;

use super::cache::Cache;
use super::metrics::TypeLabel;
use super::pace::Pace;
use super::state::{Outcome, State};
use super::told::Told;
use super::tracker::shortened;
use super::{XdsConfig, XdsMetrics, XdsStatus};
use crate::config::store::ConfigWriter;
use stream::{Due, End, Renewal, at, due, ended, is_pod_finished, open, renew};

/// Wait before the first new attempt, doubling up to the longest; short enough for a failover within seconds.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// A stream that lasted this long was a good one: the next attempt waits the shortest time again.
const GOOD_STREAM: Duration = Duration::from_secs(10);
/// How often unused subscriptions are looked for; they are dropped after ten times of this.
const SWEEP: Duration = Duration::from_secs(60);
/// At most this often something expires, whatever lifetimes a server gives: each time everything is looked through.
const EXPIRY: Duration = Duration::from_secs(1);
/// How often unanswered subscriptions are looked at; after three looks they are given up, which is Envoy's 15 seconds.
const LOOK: Duration = Duration::from_secs(5);
const LOOKS: u32 = 3;
/// What the node says that it can do: without it a server may give no resource a lifetime.
const SUPPORTS_TTL: &str = "xds.config.supports-resource-ttl";
/// Why a stream without a word is given up.
const SILENT: &str = "the control plane takes questions but answers none";
/// Changes are gathered for this long before they are saved.
const SAVE_DELAY: Duration = Duration::from_secs(1);
/// Requests on the way to the server; more wait in the state, where they merge.
const MAX_OUTGOING: usize = 16;
/// Bytes of a server's words that go into a log.
const MAX_LOGGED: usize = 1024;
/// A server that has not answered a thing by then, although something is asked of it that it has never answered, is as
/// good as down: another replica may do better.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// Streams are renewed after this long, give or take a tenth: so that replicas that came later get their share, and a
/// stream that is wrong in a way nobody notices does not stay so for ever.
const LONGEST_STREAM: Duration = Duration::from_secs(3600);

/// The config client of a sidecar.
#[derive(Debug)]
pub struct XdsClient {
    channel: Channel,
    renewal: Option<Renewal>,
    /// To whom to say that the pod has finished.
    finished: Option<oneshot::Sender<()>>,
    node: Node,
    backoff: Backoff,
    core: Core,
}

/// What lives on between streams.
#[derive(Debug)]
struct Core {
    state: State,
    writer: ConfigWriter,
    metrics: XdsMetrics,
    status: XdsStatus,
    cache: Option<Cache>,
    save_at: Option<Instant>,
    cache_fails: bool,
    pace: Pace,
    /// When something expired last.
    expired_at: Option<Instant>,
    told: Told,
    sweeps: Interval,
    looks: Interval,
}

impl XdsClient {
    /// A client that publishes through `writer`. What was saved by the last run is published at once.
    ///
    /// The channel should connect by itself, as often as needed, and notice a dead peer. To be called in a runtime.
    #[must_use]
    pub fn new(
        config: XdsConfig,
        channel: Channel,
        writer: ConfigWriter,
        metrics: XdsMetrics,
    ) -> Self {
        let cache = config
            .state_dir
            .as_deref()
            .map(|dir| Cache::new(dir, &config.node_id));
        let mut core = Core {
            state: State::new(config.wildcard, config.max_subscriptions),
            writer,
            metrics,
            status: XdsStatus::default(),
            cache,
            save_at: None,
            cache_fails: false,
            pace: Pace::new(),
            expired_at: None,
            told: Told::default(),
            sweeps: every(SWEEP),
            looks: every(LOOK),
        };
        core.load();
        let node = Node {
            id: config.node_id,
            cluster: config.node_cluster,
            user_agent_name: "tulle-proxy".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            client_features: vec![SUPPORTS_TTL.to_owned()],
            ..Node::default()
        };
        Self {
            channel,
            renewal: None,
            finished: None,
            node,
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            core,
        }
    }

    /// Goes on over a new channel from `connect` whenever `due` changes: a connection is authorised by the certificate that
    /// it began with, and must not outlive it.
    #[must_use]
    pub fn renewed(
        mut self,
        due: watch::Receiver<u64>,
        connect: impl Fn() -> Option<Channel> + Send + 'static,
    ) -> Self {
        let connect = Box::new(connect);
        self.renewal = Some(Renewal { due, connect });
        self
    }

    /// Believes the control plane when it says that the pod has finished but for its sidecar, and says so to `finished`.
    #[must_use]
    pub fn ending_with_pod(mut self, finished: oneshot::Sender<()>) -> Self {
        self.node.client_features.push(ENDS_WITH_POD.to_owned());
        self.finished = Some(finished);
        self
    }

    /// A view of the client for operators.
    #[must_use]
    pub fn status(&self) -> XdsStatus {
        self.core.status.clone()
    }

    /// Follows the control plane until cancelled; saves what is unsaved then.
    pub async fn run(mut self, cancelled: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = cancelled => {}
            () = self.follow() => {}
        }
        if self.core.save_at.is_some() {
            self.core.save();
        }
    }

    async fn follow(&mut self) {
        loop {
            let started = Instant::now();
            match self.stream().await {
                End::Lost(status) => self.core.disconnected(&status),
                End::Renewed => continue,
                // What drains still has questions.
                End::Finished => return self.core.attend().await,
            }
            if started.elapsed() >= GOOD_STREAM {
                self.backoff.reset();
            }
            let delay = self.backoff.next_delay();
            tracing::debug!(
                delay_ms = delay.as_millis(),
                "reconnecting to the control plane"
            );
            tokio::select! {
                biased;
                () = sleep(delay) => {}
                () = self.core.attend() => {}
            }
        }
    }

    /// One stream, until it ends.
    async fn stream(&mut self) -> End {
        self.core.state.reconnect();
        let (requests, mut outgoing) = mpsc::channel(MAX_OUTGOING);
        let outgoing = poll_fn(move |context| outgoing.poll_recv(context));
        // Not awaited by itself: a server may send its headers only with its first response.
        let opening = open(self.channel.clone(), outgoing);
        let mut responses = std::pin::pin!(opening.try_flatten_stream());
        let mut node = Some(self.node.clone());
        let began = Instant::now();
        let old_at = began + LONGEST_STREAM.mul_f64(0.9 + 0.2 * fastrand::f64());
        let mut heard = false;
        loop {
            let now = Instant::now();
            let (acks, listen) = (self.core.pace.may_ack(now), self.core.may_listen(now));
            let silent_at = (!heard && self.core.state.is_waiting()).then(|| began + FIRST_ANSWER);
            tokio::select! {
                // Whichever is ready: none can starve another for long, as each does a bounded piece of work.
                permit = requests.reserve(), if self.core.state.has_request(acks) => match permit {
                    Ok(permit) => permit.send(self.core.next_request(acks, &mut node)),
                    // tonic lets go of the requests when the stream is over; the response says why.
                    Err(_) => return self.end(responses.next().await),
                },
                response = responses.next(), if listen => match response {
                    Some(Ok(response)) => {
                        heard = true;
                        self.core.connected();
                        self.core.take(response);
                    }
                    other => return self.end(other),
                },
                channel = renew(&mut self.renewal) => {
                    tracing::debug!("going on over a connection with the new certificate");
                    self.channel = channel;
                    return End::Renewed;
                }
                due = due(self.core.pace.next(now), silent_at, old_at) => match due {
                    Due::Pace => {}
                    Due::Silence => return End::Lost(Status::deadline_exceeded(SILENT)),
                    Due::Age => {
                        tracing::debug!("going on over a new stream: this one is old");
                        if let Some(channel) = self.renewal.as_ref().and_then(|renewal| (renewal.connect)()) {
                            self.channel = channel;
                        }
                        return End::Renewed;
                    }
                },
                () = self.core.attend_once() => {}
            }
        }
    }

    /// What it means that a stream is over whose last word this is.
    fn end(&mut self, last: Option<Result<DeltaDiscoveryResponse, Status>>) -> End {
        let status = ended(last);
        let Some(finished) = self.finished.take_if(|_| is_pod_finished(&status)) else {
            return End::Lost(status);
        };
        self.core.metrics.connected.set(0);
        self.core.status.update(|report| report.connected = false);
        // Whoever does not listen any more is ending anyway.
        let _ = finished.send(());
        End::Finished
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.reset();
    interval
}

impl Core {
    /// Deals with questions, sweeps and saving for as long as it is polled.
    async fn attend(&mut self) {
        loop {
            self.attend_once().await;
        }
    }

    /// Waits for one thing to do beside the stream, and does it. Nothing is lost when dropped while waiting.
    async fn attend_once(&mut self) {
        let save_at = self.save_at;
        let save = at(save_at);
        let expire = at(self.expires());
        tokio::select! {
            ask = self.writer.asks.recv() => match ask {
                Some(ask) => self.ask(ask),
                // No reader of the config is left.
                None => pending().await,
            },
            _ = self.sweeps.tick() => {
                if self.state.sweep() {
                    self.count_asked();
                    self.publish();
                }
            }
            _ = self.looks.tick() => self.look(),
            () = save => self.save(),
            () = expire => self.expire(),
        }
    }

    /// When the next thing expires, or may: not at once again.
    fn expires(&self) -> Option<Instant> {
        let at = self.state.expires()?;
        Some(self.expired_at.map_or(at, |last| at.max(last + EXPIRY)))
    }

    /// Takes away what its server has not renewed in time.
    fn expire(&mut self) {
        let began = Instant::now();
        self.expired_at = Some(began);
        let expired = self.state.expire(began);
        for (kind, name) in &expired {
            let label = TypeLabel::of(*kind);
            self.metrics.expired.get_or_create(&label).inc();
            self.told.expired(*kind, name);
        }
        if !expired.is_empty() && self.state.assemble() {
            self.publish();
        }
        // Work that its server makes, as by what it says.
        self.worked(began);
    }

    /// Counts time that was spent for the control plane.
    fn worked(&mut self, began: Instant) {
        let now = Instant::now();
        if self.pace.worked(now, now - began) {
            self.metrics.throttled.inc();
        }
    }

    /// Gives up what a connected control plane does not answer for.
    fn look(&mut self) {
        if self.metrics.connected.get() == 0 {
            return;
        }
        let absent = self.state.give_up(LOOKS);
        for name in &absent {
            self.told.absent(name);
        }
        if !absent.is_empty() && self.state.assemble() {
            self.publish();
        }
    }

    fn ask(&mut self, first: crate::config::store::Ask) {
        let mut next = Some(first);
        while let Some(ask) = next {
            if !self.state.ask(ask) {
                self.metrics.refused_asks.inc();
                self.told.unasked(ask);
            }
            next = self.writer.asks.try_recv().ok();
        }
        self.count_asked();
        if self.state.assemble() {
            self.publish();
        }
    }

    fn count_asked(&self) {
        let (outbound, workloads) = self.state.asked();
        self.metrics.asked(outbound, workloads);
    }

    /// Whether the next response should be read.
    fn may_listen(&self, now: Instant) -> bool {
        self.pace.may_listen(now) && !self.state.is_full()
    }

    fn next_request(&mut self, acks: bool, node: &mut Option<Node>) -> DeltaDiscoveryRequest {
        let mut request = self.state.next_request(acks).unwrap_or_default();
        request.node = node.take();
        tracing::trace!(resource.type = request.type_url, nonce = request.response_nonce, "request");
        request
    }

    fn connected(&self) {
        if self.metrics.connected.get() == 1 {
            return;
        }
        tracing::info!("connected to the control plane");
        self.metrics.connected.set(1);
        self.metrics.streams.inc();
        self.status.update(|report| {
            report.connected = true;
            report.from_cache = false;
            report.last_error = None;
        });
    }

    fn disconnected(&self, end: &Status) {
        let message = shortened(end.message(), MAX_LOGGED);
        let reason = match end.code() {
            tonic::Code::Unimplemented => {
                format!("it does not speak delta ADS, which is needed ({message})")
            }
            code => format!("{code:?}: {message}"),
        };
        let was_connected = self.metrics.connected.set(0) == 1;
        let mut first = false;
        self.status.update(|report| {
            report.connected = false;
            first = report.last_error.replace(reason.clone()).is_none();
        });
        if was_connected {
            tracing::warn!(
                error = reason,
                "lost the control plane; the last good config stays in use"
            );
        } else if first {
            tracing::warn!(
                error = reason,
                "cannot reach the control plane; trying again"
            );
        } else {
            tracing::debug!(error = reason, "still cannot reach the control plane");
        }
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) {
        let began = Instant::now();
        if self.pace.heard(began, response.encoded_len()) {
            self.metrics.throttled.inc();
        }
        self.act_on(response);
        self.worked(began);
    }

    fn act_on(&mut self, response: DeltaDiscoveryResponse) {
        if !self.state.expects(&response.type_url) {
            let resource_type = shortened(&response.type_url, MAX_LOGGED);
            tracing::debug!(resource.type = resource_type, "a response of a type that was not asked for");
            return;
        }
        let Some(outcome) = self.state.apply(response) else {
            return;
        };
        let good = outcome.rejected.is_empty();
        self.pace.applied(Instant::now(), good);
        self.report(&outcome);
        if (outcome.changed || !good) && self.cache.is_some() && self.save_at.is_none() {
            self.save_at = Some(Instant::now() + SAVE_DELAY);
        }
        if self.state.assemble() {
            self.publish();
        }
    }

    fn report(&mut self, outcome: &Outcome) {
        let label = TypeLabel::of(outcome.kind);
        let (accepted, rejected) = (outcome.accepted as u64, outcome.rejected.len() as u64);
        self.metrics.updates.get_or_create(&label).inc_by(accepted);
        self.metrics.rejects.get_or_create(&label).inc_by(rejected);
        self.metrics
            .subscriptions
            .get_or_create(&label)
            .set(outcome.subscribed as i64);
        for (name, error) in &outcome.rejected {
            self.told.refused(outcome.kind, name, error);
        }
        self.status.update_type(outcome.kind, |report| {
            report.subscribed = outcome.subscribed;
            report.updates += accepted;
            report.rejects += rejected;
            report.last_reject = outcome
                .rejected
                .last()
                .map(|(name, error)| format!("{name}: {error}"));
        });
    }

    fn publish(&self) {
        self.writer.publish(self.state.snapshot().clone());
    }

    fn load(&mut self) {
        let Some(cache) = &self.cache else { return };
        match cache.load() {
            Ok(responses) if responses.is_empty() => {}
            Ok(responses) => {
                let resources = self.state.import(responses);
                self.state.assemble();
                self.status.update(|report| report.from_cache = true);
                tracing::info!(
                    resources,
                    "serving the last good config until the control plane answers"
                );
                self.publish();
            }
            Err(error) => {
                self.metrics.cache_failures.inc();
                let path = cache.path().display();
                tracing::warn!(%error, %path, "cannot use the saved config; starting without it");
            }
        }
    }

    fn save(&mut self) {
        self.save_at = None;
        let Some(cache) = &self.cache else { return };
        match cache.save(self.state.export()) {
            Ok(()) => self.cache_fails = false,
            Err(error) => {
                self.metrics.cache_failures.inc();
                // Once is enough while it lasts.
                if !std::mem::replace(&mut self.cache_fails, true) {
                    let path = cache.path().display();
                    tracing::warn!(
                        %error,
                        %path,
                        "cannot save the config; a restart will need the control plane"
                    );
                }
            }
        }
    }
}
