//! One stream: takes the client's requests in, sends what is due, and keeps the books.
//!
//! A single task. It reads before it writes, unless its client has asked for more than it may: then what comes next is
//! left where it is until that is paid for, and whatever is owed goes out meanwhile. It holds at most one response that
//! the client has not taken, and it asks for what changed only when there is room to send: so a slow client skips
//! intermediate states and costs no memory.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tulle_xds_proto::envoy::config::core::v3::Node;
use tulle_xds_proto::prost::Message as _;
use tulle_xds_proto::{ENDS_WITH_POD, POD_FINISHED, POD_TRAILER, ResourceType};

use super::account::{OPENING, OpenStream};
use super::admission::{Admitted, runs_as};
use super::index::Mailbox;
use super::intake::Held;
use super::metrics::Connected;
use super::refused::Refused;
use super::resource::Name;
use super::subscription::{Ask, Asked, Phase, Subscription, Verdict};
use super::variant::{Change, Incoming, Refusal, Variant};
use super::{Discovery, Peer, Proxy, Subscriptions};
use crate::limit::{LARGE, network};
use crate::store::ObjectKey;
use crate::translate::{ClientKind, ProxyView};

/// Names that a client of the state-of-the-world variant wants as before, for the cost of one that it asks for.
const RESTATED: usize = 32;
/// Bytes of a request, or of what it is answered with, for the cost of a name.
const BYTES: usize = 2048;
/// Names that are looked after without waiting for a turn.
const FEW: usize = 64;
/// How often a client may ask for all there is at once: clusters and listeners, and endpoints and routes of each, twice.
const EVERYTHING: usize = 8;
/// How long a client may take to make room for the status that ends its stream.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Serves a stream to its end.
pub(super) async fn serve<V: Variant>(
    discovery: Discovery,
    peer: Peer,
    requests: impl Stream<Item = Result<V::Request, Status>> + Send + Unpin,
    held: Held,
    responses: mpsc::Sender<Result<V::Response, Status>>,
) {
    let ended = tokio::select! {
        // An end is an end.
        biased;
        () = discovery.0.ending.cancelled() => {
            Err(Status::unavailable("the control plane is shutting down; connect to another replica"))
        }
        ended = run::<V>(&discovery, &peer, requests, &held, &responses) => ended,
    };
    let Err(status) = ended else { return };
    tell_ended(&discovery, &peer, &status);
    // Without room for the status the stream just ends.
    let _ = tokio::time::timeout(LAST_WORD, responses.send(Err(status))).await;
}

/// Says whose stream has ended, and why.
pub(super) fn tell_ended(discovery: &Discovery, peer: &Peer, status: &Status) {
    let (code, client) = (status.code(), network(peer.address.ip()));
    if let Some(left_out) = discovery.0.ends_told.pass(&i32::from(code), client) {
        let id = peer.id.as_ref().map(ToString::to_string);
        tracing::info!(client.addr = %peer.address, client.id = id, ?code, reason = status.message(), left_out,
            "discovery stream ended");
    }
}

async fn run<V: Variant>(
    discovery: &Discovery,
    peer: &Peer,
    requests: impl Stream<Item = Result<V::Request, Status>> + Send + Unpin,
    held: &Held,
    responses: &mpsc::Sender<Result<V::Response, Status>>,
) -> Result<(), Status> {
    let limit = discovery.0.limits.subscriptions;
    // What waits for anything has been read: then it is no larger than what may be asked.
    let mut requests =
        requests.map(|it| received(discovery, it).map(|request| read::<V>(request, limit)));
    let patience = discovery.0.limits.first_request;
    let (node, first) = match tokio::time::timeout(patience, requests.next()).await {
        Ok(Some(request)) => request?,
        Ok(None) => return Ok(()),
        Err(_) => {
            discovery.0.metrics.refused(Refused::NoRequest);
            return Err(Status::deadline_exceeded("no request on this stream"));
        }
    };
    let admitted = tokio::select! {
        biased;
        () = responses.closed() => return Ok(()),
        admitted = discovery.admit(peer, node.as_ref()) => admitted?,
    };
    let mut session = Session::open(discovery.clone(), peer, admitted)?;
    let mut requests = stream::iter([Ok((node, first))]).chain(requests);
    loop {
        let owing = session.is_owing();
        let waits = session.waits_until();
        tokio::select! {
            // In this order: requests are read before anything is sent.
            biased;
            () = responses.closed() => return Ok(()),
            request = requests.next(), if waits.is_none() => match request {
                Some(request) => {
                    let (_, request) = request?;
                    session.take(request).await?;
                    held.give_back();
                }
                None => return Ok(()),
            },
            () = paid(waits), if waits.is_some() => {}
            () = session.proxy.mailbox.rung() => session.collect()?,
            room = responses.reserve(), if owing => {
                let Ok(room) = room else { return Ok(()) };
                let _turn = session.turn(session.owes_much()).await;
                if let Some(response) = session.next_response::<V>() {
                    room.send(Ok(response));
                }
            }
        }
        // Nobody does two things in a row while others wait.
        tokio::task::yield_now().await;
    }
}

/// Comes at a moment, or never.
async fn paid(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Takes what came from a stream: a message, or why there is none. One that is too long or cannot be read is counted; an
/// end that the transport gives a reason for is the client's affair.
fn received<R>(discovery: &Discovery, request: Result<R, Status>) -> Result<R, Status> {
    request.inspect_err(|status| {
        if status.source().is_none() && matches!(status.code(), Code::Internal | Code::OutOfRange) {
            discovery.0.metrics.refused(Refused::BadMessage);
        }
    })
}

/// What a request asks, or why it asks nothing, and its bytes.
struct Taken {
    request: Result<Incoming, Refusal>,
    size: usize,
}

/// Reads a request, which may name `limit` of what it wants. Of who its client is only that is kept which matters.
fn read<V: Variant>(mut request: V::Request, limit: usize) -> (Option<Node>, Taken) {
    let size = request.encoded_len();
    let node = V::take_node(&mut request).map(|node| Node {
        id: node.id,
        user_agent_name: node.user_agent_name,
        user_agent_version_type: node.user_agent_version_type,
        client_features: {
            let features = node.client_features.into_iter();
            features.filter(|it| it == ENDS_WITH_POD).take(1).collect()
        },
        ..Node::default()
    });
    let request = V::decode(request, limit);
    (node, Taken { request, size })
}

/// The books of a stream; dropping them leaves no trace in registry and index.
struct Session {
    discovery: Discovery,
    proxy: Arc<Proxy>,
    nonce: u64,
    account: OpenStream,
    /// Its client ends when it is told that its pod has finished.
    ends_with_pod: bool,
    /// Its client has asked for more than it may.
    waits: bool,
    /// Nothing can leave before the client has said something or something has changed: what is gone stays until the client
    /// has taken what may have named it.
    stuck: bool,
    _connected: Connected,
}

impl Session {
    fn open(discovery: Discovery, peer: &Peer, admitted: Admitted) -> Result<Self, Status> {
        let limit = discovery.0.limits.streams_per_pod;
        let Some(account) = admitted.account.open(limit) else {
            discovery.0.metrics.refused(Refused::TooManyStreams);
            if let Some(left_out) = admitted.account.streams_told.pass() {
                tracing::warn!(proxy.id = %admitted.pod, client.addr = %peer.address, client.id = %admitted.id, limit, left_out,
                    "a client has as many discovery streams as it may, and gets no more");
            }
            let client = &admitted.account.client;
            return Err(Status::resource_exhausted(format!(
                "{client} has {limit} streams open"
            )));
        };
        account.pace.spend(OPENING as usize);
        let id = discovery.new_stream();
        let proxy = Arc::new(Proxy {
            pod: admitted.pod,
            kind: admitted.kind,
            id: admitted.id,
            address: peer.address,
            build: admitted.build,
            since: SystemTime::now(),
            mailbox: Mailbox::new(id, admitted.view),
            subscriptions: Mutex::new(Subscriptions(BTreeMap::new())),
        });
        discovery.0.proxies.lock().insert(id, proxy.clone());
        if let Some(left_out) = account.streams_told.pass() {
            tracing::info!(proxy.id = %proxy.pod, client.addr = %proxy.address, client.id = %proxy.id, left_out, "proxy connected");
        }
        let connected = discovery.0.metrics.connected();
        let session = Self {
            discovery,
            proxy,
            nonce: 0,
            account,
            ends_with_pod: admitted.ends_with_pod,
            waits: false,
            stuck: false,
            _connected: connected,
        };
        // The pod may have changed between admission and registration.
        session.check_pod()?;
        Ok(session)
    }

    fn is_owing(&self) -> bool {
        let any = || {
            let subscriptions = self.proxy.subscriptions.lock();
            subscriptions.0.values().any(Subscription::is_owing)
        };
        !self.stuck && any()
    }

    /// Waits for a turn, if there is `much` to do. Of one client's streams only one has a turn at a time, and all turns
    /// together leave room for what is done in no time: who asks for little waits for nobody who asks for much.
    async fn turn(&self, much: bool) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        if !much {
            return None;
        }
        let own = self.account.turn.clone().acquire_owned().await.ok()?;
        let one_of_all = self.discovery.0.turns.clone().acquire_owned().await.ok()?;
        Some((own, one_of_all))
    }

    fn is_much(&self, request: &Incoming) -> bool {
        let subscriptions = self.proxy.subscriptions.lock();
        // Naming nothing at first means everything.
        request.change.names() > FEW
            || request.change.asks_for_all()
            || !subscriptions.0.contains_key(&request.kind)
    }

    fn owes_much(&self) -> bool {
        let subscriptions = self.proxy.subscriptions.lock();
        let owing = subscriptions.0.values().filter(|it| it.is_owing());
        owing.map(Subscription::size).sum::<usize>() > FEW
    }

    /// Until when no more requests are taken; `None` if they are.
    fn waits_until(&mut self) -> Option<Instant> {
        let until = self.account.pace.waits_until();
        let waited = std::mem::replace(&mut self.waits, until.is_some());
        if let Some(until) = until
            && !waited
        {
            self.discovery.0.reached.count("pace");
            if let Some(left_out) = self.account.waits_told.pass() {
                let proxy = &self.proxy;
                let seconds = (until - Instant::now()).as_secs_f64();
                tracing::warn!(proxy.id = %proxy.pod, client.addr = %proxy.address, client.id = %proxy.id, seconds, left_out,
                    "a client asks for more than it may, and its requests wait");
            }
        }
        until
    }

    /// Takes in a request, when it is its turn.
    async fn take(&mut self, Taken { request, size }: Taken) -> Result<(), Status> {
        if size >= LARGE {
            self.discovery.0.slack.left();
        }
        match request {
            Ok(request) => {
                let _turn = self.turn(self.is_much(&request)).await;
                self.request(request, size)
            }
            Err(refusal) => self.refuse(refusal, size),
        }
    }

    /// Counts and charges for a request that asks nothing that there is. One about a type that is not served is left: what is
    /// said of other types goes on, and nothing is said of this one, of which another control plane may know more.
    fn refuse(&self, refusal: Refusal, size: usize) -> Result<(), Status> {
        let metrics = &self.discovery.0.metrics;
        self.account.pace.spend(size / BYTES);
        let (reason, status) = match refusal {
            Refusal::Unserved(type_url, names) => {
                self.account.pace.spend(1 + names);
                metrics.refused_request("unserved_type");
                if let Some(left_out) = self.account.unserved_told.pass() {
                    let proxy = &self.proxy;
                    tracing::info!(proxy.id = %proxy.pod, client.addr = %proxy.address, client.id = %proxy.id, resource.type = type_url, left_out,
                        "a client asks for a type that is not served, and gets no answer about it");
                }
                return Ok(());
            }
            Refusal::TooMany(error, names) => {
                self.account.pace.spend(1 + names);
                let status = Status::resource_exhausted(error.to_string());
                (Refused::TooManyNames, status)
            }
            Refusal::Malformed(status) => (Refused::BadRequest, status),
        };
        metrics.refused(reason);
        Err(status)
    }

    /// Takes in a request of that many bytes.
    fn request(&mut self, request: Incoming, size: usize) -> Result<(), Status> {
        self.stuck = false;
        let (kind, discovery, proxy) = (request.kind, &self.discovery, &self.proxy);
        let limit = discovery.0.limits.subscriptions;
        let mut subscriptions = proxy.subscriptions.lock();
        let subscription = subscriptions
            .0
            .entry(kind)
            .or_insert_with(|| begin(kind, proxy.kind, limit));
        // A long text, or what nobody reads, is work as well; saying again what is wanted is the protocol's doing.
        let again = match &request.change {
            Change::Full(..) => subscription.said_again(),
            Change::Delta(_) => 0,
        };
        self.account.pace.spend(size.saturating_sub(again) / BYTES);
        let (ask, restated) = match request.change {
            Change::Delta(ask) => (ask, 0),
            Change::Full(names, reply) => {
                let restated = names.len() / RESTATED;
                match subscription.restate(names, reply) {
                    Some(ask) => (ask, restated),
                    None => {
                        self.account.pace.spend(1 + restated);
                        discovery.0.metrics.expired_nonce(kind);
                        return Ok(());
                    }
                }
            }
        };
        let verdict = self.apply(kind, subscription, ask, restated)?;
        self.heard(kind, verdict, subscription);
        Ok(())
    }

    /// Does what a request asks, and charges for it, which has named so many others again.
    fn apply(
        &self,
        kind: ResourceType,
        subscription: &mut Subscription,
        ask: Ask,
        restated: usize,
    ) -> Result<Verdict, Status> {
        let (discovery, proxy) = (&self.discovery, &self.proxy);
        let (index, view) = (&discovery.0.index, proxy.mailbox.view());
        let listed = Cell::new(0);
        let all = || {
            let all = discovery.0.catalog.names(&view, kind);
            listed.set(all.len());
            all
        };
        // A word on what we sent costs nothing, as long as we wait for it, however many names it says again.
        let (names, is_reply) = (ask.names(), ask.is_reply());
        let dropped = ask.unsubscribe.clone();
        // Watched before anything is looked up, so that no change falls between.
        index.watch(kind, ask.subscribe.iter().cloned(), &proxy.mailbox);
        if kind.supports_wildcard() {
            index.watch_all(kind, &proxy.mailbox);
        }
        let verdict = subscription.apply(ask, all);
        let is_free = is_reply && matches!(verdict, Ok(Verdict::Accepted(_) | Verdict::Refused));
        self.account.pace.allow(listed.get() * EVERYTHING);
        let request = if is_free { 0 } else { 1 + restated };
        // What is refused has been looked at, too.
        self.account.pace.spend(request + names + listed.get());
        let verdict = verdict.map_err(|error| {
            discovery.0.metrics.refused(Refused::TooManyNames);
            Status::resource_exhausted(error.to_string())
        })?;
        if kind.supports_wildcard() && !subscription.is_wildcard() {
            index.unwatch_all(kind, &proxy.mailbox);
        }
        index.unwatch(
            kind,
            dropped.into_iter().filter(|name| !subscription.wants(name)),
            &proxy.mailbox,
        );
        Ok(verdict)
    }

    /// Counts and tells what a client said of a response.
    fn heard(&self, kind: ResourceType, verdict: Verdict, subscription: &Subscription) {
        let metrics = &self.discovery.0.metrics;
        match verdict {
            Verdict::None => {}
            Verdict::Accepted(after) => {
                after.into_iter().for_each(|after| metrics.converged(after));
            }
            Verdict::Stale => metrics.expired_nonce(kind),
            Verdict::Refused => {
                metrics.rejected(kind);
                if let Some(left_out) = self.account.refusals_told(kind).pass() {
                    let reason = subscription.status().last_error;
                    tracing::warn!(proxy.id = %self.proxy.pod, resource.type = kind.short_name(), reason, left_out,
                        "a proxy refused its configuration and keeps what it had");
                }
            }
        }
    }

    /// Takes in what changed.
    fn collect(&mut self) -> Result<(), Status> {
        self.stuck = false;
        let news = self.proxy.mailbox.take();
        if news.pod {
            self.check_pod()?;
        }
        let view = self.proxy.mailbox.view();
        let mut subscriptions = self.proxy.subscriptions.lock();
        for (kind, at) in news.relist {
            if let Some(subscription) = subscriptions.0.get_mut(&kind) {
                relist(&self.discovery, subscription, &view, kind, at);
            }
        }
        for ((kind, name), at) in news.changed {
            if let Some(subscription) = subscriptions.0.get_mut(&kind) {
                subscription.changed(&name, at);
            }
        }
        Ok(())
    }

    /// The next response that is due, in push order: what is new first, what is gone of clusters and endpoints last, and
    /// not before the client has all that may have named it.
    fn next_response<V: Variant>(&mut self) -> Option<V::Response> {
        let proxy = self.proxy.clone();
        let mut subscriptions = proxy.subscriptions.lock();
        for phase in [Phase::Make, Phase::Break] {
            if phase == Phase::Break && subscriptions.0.values().any(Subscription::is_unsure) {
                self.stuck = true;
                return None;
            }
            for kind in ResourceType::ALL {
                if let Some(response) = self.response::<V>(&mut subscriptions, phase, kind) {
                    return Some(response);
                }
            }
        }
        None
    }

    /// The next response about a type that is due in a phase.
    fn response<V: Variant>(
        &mut self,
        subscriptions: &mut Subscriptions,
        phase: Phase,
        kind: ResourceType,
    ) -> Option<V::Response> {
        let subscription = subscriptions.0.get_mut(&kind);
        let subscription = subscription.filter(|state| state.is_owing())?;
        let (shared, view) = (&self.discovery.0, self.proxy.mailbox.view());
        let (catalog, limit) = (&shared.catalog, shared.limits.response_bytes);
        let lookup = |name: &Name, asked| match asked {
            Asked::ByName => catalog.lookup(&view, kind, name),
            Asked::AsOneOfAll => catalog.lookup_listed(&view, kind, name),
        };
        let batch = if V::FULL {
            subscription.take_full(phase, limit, lookup)
        } else {
            subscription.take(phase, limit, lookup)
        }?;
        self.account.pace.spend(batch.asked / BYTES);
        self.nonce += 1;
        let (nonce, version) = (
            format!("{:x}", self.nonce),
            format!("{:x}", catalog.generation()),
        );
        subscription.sent(nonce.clone(), version.clone(), &batch);
        if kind == ResourceType::Cluster
            && let Some(endpoints) = subscriptions.0.get_mut(&ResourceType::Endpoints)
        {
            // A cluster that was sent warms until its endpoints have come.
            let fresh = batch.fresh.iter();
            fresh.for_each(|(name, _)| endpoints.repeat(name));
        }
        let sizes = batch.resources.iter().map(|(_, encoded)| encoded.size());
        shared.metrics.pushed(kind, sizes.sum());
        tracing::debug!(proxy.id = %self.proxy.pod, resource.type = kind.short_name(), nonce,
            resources = batch.resources.len(), removed = batch.removed.len(), "sending");
        Some(V::encode(kind, nonce, version, &batch))
    }

    /// Makes sure that the pod is still there, still the caller's and in need of it, and sees the world with its eyes.
    fn check_pod(&self) -> Result<(), Status> {
        let world = self.discovery.world();
        let key = &self.proxy.pod;
        // No removals for a pod that is gone: a proxy that still drains keeps what it has.
        let pod = world
            .pod(key)
            .ok_or_else(|| Status::unavailable(format!("pod {key} is gone")))?;
        if !runs_as(pod, &self.proxy.id) {
            return Err(Status::permission_denied(format!(
                "pod {key} does not run as {}",
                self.proxy.id
            )));
        }
        if pod.finished && self.ends_with_pod {
            return Err(finished(key));
        }
        let view = ProxyView::of_pod(&world, self.proxy.kind, pod);
        if view == *self.proxy.mailbox.view() {
            return Ok(());
        }
        let view = Arc::new(view);
        self.proxy.mailbox.set_view(view.clone());
        for (kind, subscription) in &mut self.proxy.subscriptions.lock().0 {
            relist(&self.discovery, subscription, &view, *kind, Instant::now());
        }
        Ok(())
    }
}

/// By which a sidecar ends: it is all that keeps its pod from completing.
fn finished(pod: &ObjectKey) -> Status {
    let mut trailers = MetadataMap::new();
    trailers.insert(POD_TRAILER, MetadataValue::from_static(POD_FINISHED));
    Status::with_metadata(
        Code::FailedPrecondition,
        format!("pod {pod} has finished, but for its sidecar"),
        trailers,
    )
}

impl Drop for Session {
    fn drop(&mut self) {
        let shared = &self.discovery.0;
        let mailbox = &self.proxy.mailbox;
        shared.proxies.lock().remove(&mailbox.id());
        shared.index.leave(mailbox);
        if let Some(left_out) = self.account.streams_told.pass() {
            tracing::info!(proxy.id = %self.proxy.pod, client.addr = %self.proxy.address, left_out, "proxy disconnected");
        }
    }
}

/// The conversation about one type with a client of a kind. Of a response with a route table that Envoy refuses, it takes
/// those before it and none behind it: so what it refused comes again in parts, and nobody's mistake costs another his
/// update. All of them alone at once would have it name all that it wants once for each.
fn begin(kind: ResourceType, client: ClientKind, limit: usize) -> Subscription {
    if kind == ResourceType::Route && client == ClientKind::Envoy {
        Subscription::taking_apart(kind, limit)
    } else {
        Subscription::new(kind, limit)
    }
}

/// Looks at everything again: what the client may hold, and, for a wildcard, all there is.
fn relist(
    discovery: &Discovery,
    subscription: &mut Subscription,
    view: &ProxyView,
    kind: ResourceType,
    at: Instant,
) {
    let mut names: Vec<Name> = subscription.names().cloned().collect();
    if subscription.is_wildcard() {
        names.extend(discovery.0.catalog.names(view, kind));
    }
    names.iter().for_each(|name| subscription.changed(name, at));
}
