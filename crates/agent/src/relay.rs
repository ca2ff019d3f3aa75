//! The relay: discovery streams of this pod's own clients, in plaintext on loopback, to the control plane over mTLS.
//!
//! Both ADS methods pass message by message as they are; nothing is kept, reordered or answered here. An end passes with its
//! code, message and details, a half-close as a half-close, and a client that goes away takes its stream along. What
//! breaks between here and the control plane is UNAVAILABLE, so that the client tries again. Whoever reaches the
//! relay is taken for this pod, so it listens on loopback only, and only carries streams whose node is this pod.

mod codec;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod listener;
mod refusal;
mod relayed;

use std::error::Error as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tonic::server::StreamingService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tulle_runtime::causes::chain;
use tulle_runtime::drain::DrainWatch;
use tulle_runtime::gate::Gate;
use tulle_xds_proto::parts;

pub(crate) use listener::Listener;

use bytes::Bytes;
use codec::Whole;
use refusal::Refusal;
use relayed::{Held, Relayed};

/// How long a client may take for its first request, as at the control plane.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Connections beside one for each stream, and streams of a connection beside all that may be relayed: so that what is
/// too much comes so far that it can be refused.
const SPARE: usize = 28;
/// Longest request.
const MAX_REQUEST: usize = 4 << 20;
/// What the parts of a first request, which is read here, may count for: as at the control plane.
const MAX_PARTS: usize = MAX_REQUEST / 4;
/// Longest response: a response of the control plane is about a megabyte, unless one resource alone is larger.
const MAX_RESPONSE: usize = 64 << 20;

/// Gives the channel for a new stream.
pub(crate) type Connect = Box<dyn Fn() -> Channel + Send + Sync>;

/// What the relay counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    streams: Gauge,
    relayed: Counter,
    refused: Family<Reason, Counter>,
    waited: Counter,
    accept_failures: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "relay_streams",
            "Discovery streams being relayed",
            metrics.streams.clone(),
        );
        registry.register(
            "relay_streams_opened",
            "Discovery streams that were relayed",
            metrics.relayed.clone(),
        );
        registry.register(
            "relay_streams_refused",
            "Discovery streams that were not relayed",
            metrics.refused.clone(),
        );
        registry.register(
            "relay_connections_waited",
            "How often a connection to the relay had to wait until another one ended",
            metrics.waited.clone(),
        );
        registry.register(
            "relay_accept_failures",
            "How often a connection to the relay could not be accepted",
            metrics.accept_failures.clone(),
        );
        metrics
    }

    fn refused(&self, refusal: Refusal) {
        let reason = refusal.name();
        self.refused.get_or_create(&Reason { reason }).inc();
    }
}

/// The relay. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Relay(Arc<Shared>);

struct Shared {
    connect: Connect,
    /// This pod's node id without its kind.
    node: String,
    streams: usize,
    places: Arc<Semaphore>,
    metrics: Metrics,
    told: Told,
    drain: Mutex<Option<DrainWatch>>,
}

/// Gates for lines, of which clients can cause as many as they like: each is one of a kind that is counted.
#[derive(Default)]
struct Told {
    waits: Gate,
    streams: Gate,
    nodes: Gate,
    methods: Gate,
    messages: Gate,
    silent: Gate,
    breaks: Gate,
    accepts: Gate,
}

/// The methods that are relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Full,
    Delta,
}

impl Method {
    fn of(path: &str) -> Option<Self> {
        [Self::Full, Self::Delta]
            .into_iter()
            .find(|method| method.path() == path)
    }

    fn path(self) -> &'static str {
        match self {
            Self::Full => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
            Self::Delta => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
        }
    }
}

impl Relay {
    /// For at most `streams` streams of the pod with this node.
    pub(crate) fn new(
        node: String,
        streams: usize,
        connect: Connect,
        metrics: Metrics,
        drain: DrainWatch,
    ) -> Self {
        Self(Arc::new(Shared {
            connect,
            node,
            streams: streams.min(Semaphore::MAX_PERMITS - SPARE),
            told: Told::default(),
            places: Arc::new(Semaphore::new(streams.min(Semaphore::MAX_PERMITS))),
            metrics,
            drain: Mutex::new(Some(drain)),
        }))
    }

    /// Connections at a time, and streams of one of them: gRPC has a connection for each stream, Envoy one for all.
    fn connections(&self) -> usize {
        self.0.streams + SPARE
    }

    /// A client waits until another connection ends.
    fn waits(&self) {
        self.0.metrics.waited.inc();
        if let Some(left_out) = self.0.told.waits.pass() {
            tracing::warn!(
                connections = self.connections(),
                left_out,
                "clients of this pod have as many connections open as the relay takes, and more wait; see --xds-streams"
            );
        }
    }

    /// From now on only the open streams keep the process alive.
    pub(crate) fn stop(&self) {
        self.0.drain.lock().take();
    }

    /// Answers one call of a client, which has an address unless it comes by a socket file.
    async fn call<B>(
        &self,
        request: http::Request<B>,
        client: Option<SocketAddr>,
    ) -> http::Response<tonic::body::Body>
    where
        B: hyper::body::Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    {
        let Some(method) = Method::of(request.uri().path()) else {
            self.0.refuse_method(request.uri().path(), client);
            let why = format!("only {} is relayed", Method::Full.path());
            return Status::unimplemented(why).into_http();
        };
        let service = Service {
            relay: self.clone(),
            method,
            client,
        };
        tonic::server::Grpc::new(Whole)
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(usize::MAX)
            .streaming(service, request)
            .await
    }

    async fn open(
        &self,
        method: Method,
        client: Option<SocketAddr>,
        mut requests: Streaming<Bytes>,
    ) -> Result<Response<Relayed>, Status> {
        let shared = &self.0;
        let Some(drain) = shared.drain.lock().clone() else {
            shared.metrics.refused(Refusal::Ending);
            return Err(Status::unavailable("the agent is ending"));
        };
        let place = shared.places.clone().try_acquire_owned().map_err(|_| {
            shared.metrics.refused(Refusal::TooManyStreams);
            if let Some(left_out) = shared.told.streams.pass() {
                tracing::warn!(
                    client.addr = client.map(tracing::field::display),
                    left_out,
                    "a client of this pod has too many discovery streams open; see --xds-streams"
                );
            }
            Status::resource_exhausted("too many discovery streams through this agent")
        })?;
        let first = match tokio::time::timeout(FIRST_REQUEST, requests.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None)) => return Ok(Response::new(Relayed::empty())),
            Ok(Err(status)) => return Err(shared.unread(status, client)),
            Err(_) => return Err(shared.refuse_silence(client)),
        };
        self.check(method, client, &first)?;
        // A client's own end shows as the end of its requests; dropping the response says the rest.
        // Nothing comes behind what cannot be read: where the next message would begin nobody knows.
        let reader = shared.clone();
        let readable = move |(): &mut (), request: Result<Bytes, Status>| {
            std::future::ready(request.map_err(|status| reader.unread(status, client)).ok())
        };
        let requests = stream::iter([first]).chain(requests.scan((), readable));
        let mut control =
            tonic::client::Grpc::new((shared.connect)()).max_decoding_message_size(MAX_RESPONSE);
        let ready = control.ready().await;
        ready.map_err(|error| shared.told.unavailable(&error))?;
        let responses = control
            .streaming(
                Request::new(requests),
                PathAndQuery::from_static(method.path()),
                Whole,
            )
            .await
            .map_err(|status| shared.told.broken(status))?;
        shared.metrics.relayed.inc();
        tracing::debug!(?method, "relaying a discovery stream");
        let (responses, relay) = (responses.into_inner(), shared.clone());
        let responses = responses.map(move |it| it.map_err(|status| relay.told.broken(status)));
        let held = Held::new(place, drain, &shared.metrics.streams);
        Ok(Response::new(Relayed::new(responses, held)))
    }

    /// Makes sure that the first request speaks for this pod.
    fn check(
        &self,
        method: Method,
        client: Option<SocketAddr>,
        first: &Bytes,
    ) -> Result<(), Status> {
        let shared = &self.0;
        if !parts::fits(first, &[], MAX_PARTS) {
            let status = Status::out_of_range("the first request has too many parts");
            return Err(shared.refuse_message(status, client));
        }
        let id = codec::node_id(method, first).map_err(|error| {
            let why = format!("the first request cannot be read: {error}");
            shared.refuse_message(Status::invalid_argument(why), client)
        })?;
        let fits = id
            .split_once('~')
            .is_some_and(|(_, node)| node == shared.node);
        if fits {
            return Ok(());
        }
        shared.metrics.refused(Refusal::ForeignNode);
        let shown: String = id.chars().take(256).collect();
        if let Some(left_out) = shared.told.nodes.pass() {
            tracing::warn!(
                client.addr = client.map(tracing::field::display),
                node = shown,
                left_out,
                "a client of this pod speaks for another node; use the bootstrap that the agent writes"
            );
        }
        Err(Status::permission_denied(format!(
            "node.id {shown:?} is not this pod's: expected KIND~{}",
            shared.node
        )))
    }
}

/// What tonic calls for each stream.
struct Service {
    relay: Relay,
    method: Method,
    client: Option<SocketAddr>,
}

impl StreamingService<Bytes> for Service {
    type Response = Bytes;
    type ResponseStream = Relayed;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Relayed>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (relay, method, client) = (self.relay.clone(), self.method, self.client);
        Box::pin(async move { relay.open(method, client, request.into_inner()).await })
    }
}

impl Shared {
    fn refuse_method(&self, path: &str, client: Option<SocketAddr>) {
        self.metrics.refused(Refusal::UnknownMethod);
        if let Some(left_out) = self.told.methods.pass() {
            let path: String = path.chars().take(256).collect();
            tracing::warn!(
                client.addr = client.map(tracing::field::display),
                path,
                left_out,
                "a client of this pod calls a method that is not relayed; let it use aggregated discovery (ADS)"
            );
        }
    }

    /// Why there is no message: one that is too long or cannot be read is refused; an end that the transport gives a reason
    /// for is the client's affair.
    fn unread(&self, status: Status, client: Option<SocketAddr>) -> Status {
        let read = matches!(status.code(), Code::Internal | Code::OutOfRange);
        if read && status.source().is_none() {
            return self.refuse_message(status, client);
        }
        status
    }

    fn refuse_message(&self, status: Status, client: Option<SocketAddr>) -> Status {
        self.metrics.refused(Refusal::BadMessage);
        if let Some(left_out) = self.told.messages.pass() {
            tracing::warn!(
                client.addr = client.map(tracing::field::display),
                error = status.message(),
                left_out,
                "a client of this pod sends what is no discovery request, or too long a one"
            );
        }
        status
    }

    fn refuse_silence(&self, client: Option<SocketAddr>) -> Status {
        self.metrics.refused(Refusal::NoRequest);
        if let Some(left_out) = self.told.silent.pass() {
            tracing::warn!(
                client.addr = client.map(tracing::field::display),
                left_out,
                "a client of this pod opened a discovery stream and has asked nothing in {FIRST_REQUEST:?}"
            );
        }
        Status::deadline_exceeded("no request on this stream")
    }
}

impl Told {
    /// An end as the client gets it: the control plane's word as it is, and a broken way as such.
    fn broken(&self, status: Status) -> Status {
        match std::error::Error::source(&status) {
            Some(source) => self.unavailable(source),
            // Metadata is the control plane's affair with us; code, message and details are for the client.
            None => Status::with_details(
                status.code(),
                status.message(),
                Bytes::copy_from_slice(status.details()),
            ),
        }
    }

    fn unavailable(&self, error: &(dyn std::error::Error + 'static)) -> Status {
        let text = chain(error);
        if let Some(left_out) = self.breaks.pass() {
            tracing::info!(error = text, left_out, "the way to the control plane broke");
        }
        Status::new(Code::Unavailable, format!("no control plane: {text}"))
    }
}

#[cfg(test)]
mod tests;
