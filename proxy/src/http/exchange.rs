//! One client connection, and one exchange on it from its first byte to its last.
//!
//! An [`Exchange`] owns the request's record and reports it exactly once: when the response is over, or, if it is
//! dropped before, as a client that left.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{EXPECT, HOST, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::sync::Notify;
use tokio::time::Instant as TokioInstant;

use super::body::ResponseBody;
use super::crowd::Crowd;
use super::given_up::GivenUp;
use super::headers::{self, Believed, FORWARDED_FOR, Provenance, REQUEST_ID};
use super::local_reply::{self, Failure};
use super::upgrade::Tunnel;
use crate::conn::{Direction, Downstream, HttpVersion};
use crate::fields;
use crate::grpc::Messages;
use crate::io::{Calm, Gate};
use crate::overload::{Taking, Unread};
use crate::retry::{Replay, RequestFailure, grpc_status};
use crate::route;
use crate::telemetry::{Limit, RequestRecord, ResponseFlag, ResponseFlags, Who};
use crate::upstream::{UpstreamError, is_fault};
use crate::worker::Worker;

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) worker: Rc<Worker>,
    pub(super) downstream: Rc<Downstream>,
    pub(super) version: HttpVersion,
    /// What inbound tells the app about the client.
    pub(super) provenance: Provenance,
    /// Whether answers ask the client to use another connection from now on.
    closing: Cell<bool>,
    active: Cell<usize>,
    idle_since: Cell<TokioInstant>,
    /// Whether it has not brought a request yet.
    fresh: Cell<bool>,
    /// Whether a request of it has been served, and its client has taken the answer.
    served: Cell<bool>,
    /// Ends the connection if its client gives up too many requests; only HTTP/2 has it.
    calm: Option<Calm>,
    given_up: GivenUp,
    /// What tells why a message of it is refused; only HTTP/1 has it.
    gate: Option<Gate>,
    /// Whether its client takes its answers, and where they come from; only HTTP/1 has it, which has one at a time.
    pub(super) taking: Taking,
    /// Answers that wait for the client; only HTTP/2 has more than one.
    pub(super) unread: Unread,
    /// Bodies on their way; only HTTP/2 has more than one.
    pub(super) crowd: Crowd,
    /// Rung when the connection should end, but what runs on it should not.
    unwanted: Notify,
    /// What for, and in words.
    why: Cell<(Limit, &'static str)>,
    /// What the connection goes on as after its last request, if that switched protocols.
    tunnel: RefCell<Option<Box<Tunnel>>>,
}

impl Connection {
    pub(super) fn new(worker: Rc<Worker>, downstream: Downstream, version: HttpVersion) -> Self {
        let provenance = Provenance::new(
            &worker.identity.id(),
            downstream.peer.ip(),
            downstream.peer_id(),
            Believed::of(
                downstream.is_mesh_peer(),
                worker.settings.keep_ingress_headers,
            ),
        );
        // A sidecar puts its clients on one connection.
        let unread = Unread::of(downstream.is_mesh_peer());
        Self {
            worker,
            downstream: Rc::new(downstream),
            version,
            provenance,
            closing: Cell::new(false),
            active: Cell::new(0),
            idle_since: Cell::new(TokioInstant::now()),
            fresh: Cell::new(true),
            served: Cell::new(false),
            calm: None,
            given_up: GivenUp::default(),
            gate: None,
            taking: Taking::default(),
            unread,
            crowd: Crowd::default(),
            unwanted: Notify::new(),
            why: Cell::new((Limit::H2GivenUp, "")),
            tunnel: RefCell::new(None),
        }
    }

    /// Where it is known whether its client takes its answers.
    pub(super) fn known_by(mut self, taking: Taking) -> Self {
        self.taking = taking;
        self
    }

    /// Where it is known why a message of its client is refused.
    pub(super) fn guarded_by(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// What is answered to a message that was refused after a part of it had gone on, if one was.
    fn refusal(&self) -> Option<Failure> {
        let refused = self.gate.as_ref()?.refused()?;
        Some(Failure::from(refused.why))
    }

    /// Limits what its client may give up.
    pub(super) fn calmed_by(mut self, calm: Calm) -> Self {
        self.calm = Some(calm);
        self
    }

    /// What ends it and counts what its client sends; only HTTP/2 has it.
    pub(super) fn calm(&self) -> Option<&Calm> {
        self.calm.as_ref()
    }

    /// Resolves when the connection should end after what runs on it: at which limit, and in words.
    pub(super) async fn is_unwanted(&self) -> (Limit, &'static str) {
        self.unwanted.notified().await;
        self.why.get()
    }

    /// The connection should end after what runs on it.
    pub(super) fn leave(&self, limit: Limit, what: &'static str) {
        self.why.set((limit, what));
        self.unwanted.notify_one();
    }

    /// Its client has reached a limit.
    pub(super) fn reached(&self, limit: Limit, what: impl Display) {
        let downstream = &*self.downstream;
        let limits = &self.worker.limits;
        limits.reached(limit, downstream.direction, downstream.into(), what);
    }

    /// A client has given a request up. What many clients share goes on for those that are still served.
    fn gave_up(&self) {
        let Some(calm) = &self.calm else { return };
        if self.given_up.gave_up(self.worker.settings.http2.given_up) {
            return;
        }
        if self.downstream.is_mesh_peer() {
            self.leave(Limit::H2GivenUp, "most requests were given up");
        } else {
            calm.ask();
        }
    }

    /// An answer's body broke off upstream, whose code its client is given: it is not its own fault.
    pub(super) fn passes_on(&self, error: &hyper::Error) {
        if let Some(calm) = &self.calm
            && is_fault(error)
        {
            calm.passes_on();
        }
    }

    /// What many clients share makes room for a fresh one at half of what it has to end at for what some of them sent.
    fn wears_out(&self) {
        let most = self.worker.settings.http2.local_resets;
        let worn = self
            .calm
            .as_ref()
            .is_some_and(|calm| calm.faults() > most / 2);
        if worn && self.downstream.is_mesh_peer() {
            self.leave(Limit::H2LocalResets, "many streams had to be reset");
        }
    }

    /// The connection goes on as a tunnel once its last answer is out.
    pub(super) fn tunnel(&self, tunnel: Tunnel) {
        self.tunnel.replace(Some(Box::new(tunnel)));
    }

    /// The tunnel, if there is one. It owns a share of its connection: whoever serves the connection has to take it.
    pub(super) fn take_tunnel(&self) -> Option<Box<Tunnel>> {
        self.tunnel.take()
    }

    /// From now on answers carry `Connection: close`.
    pub(super) fn close_after_answers(&self) {
        self.closing.set(true);
    }

    /// Since when nothing has been going on; `None` while something is.
    pub(super) fn idle_since(&self) -> Option<TokioInstant> {
        (self.active.get() == 0).then(|| self.idle_since.get())
    }

    /// Whether there was no request yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh.get()
    }

    /// Says in an answer's head what the connection has to say.
    pub(super) fn sign(&self, headers: &mut HeaderMap) {
        if self.closing.get() && self.version == HttpVersion::Http1 {
            headers::close(headers);
        }
    }
}

/// A request as it was taken from its client.
pub(super) struct Arrived {
    pub(super) exchange: Exchange,
    pub(super) parts: Parts,
    pub(super) body: Incoming,
    /// The client's side of switching protocols, should it come to that.
    pub(super) upgrade: OnUpgrade,
}

impl Arrived {
    pub(super) fn new(connection: Rc<Connection>, mut request: Request<Incoming>) -> Self {
        let upgrade = hyper::upgrade::on(&mut request);
        if connection.version == HttpVersion::Http2 {
            // On HTTP/1 hyper does it.
            fields::trim(request.headers_mut());
        }
        let (parts, body) = request.into_parts();
        let mut exchange = Exchange::begin(connection, &parts);
        exchange.expects = !body.is_end_stream() && parts.headers.contains_key(EXPECT);
        Self {
            exchange,
            parts,
            body,
            upgrade,
        }
    }

    /// A request that goes nowhere, of whose body nobody has read anything.
    pub(super) fn unread(self) -> Exchange {
        let mut exchange = self.exchange;
        exchange.take_body(self.body, 0);
        exchange
    }
}

/// One request and its response.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) connection: Rc<Connection>,
    /// Boxed, because what holds it moves a lot.
    pub(super) record: Box<RequestRecord>,
    pub(super) replay: Replay,
    /// Whether its client may wait for leave to send the body, which it has as soon as anybody reads that.
    expects: bool,
    /// Whether the client has sent all of a request that nobody wants; `None`: see there.
    whole: Option<bool>,
    reported: bool,
}

impl Exchange {
    fn begin(connection: Rc<Connection>, request: &Parts) -> Self {
        connection.active.set(connection.active.get() + 1);
        connection.fresh.set(false);
        let requests = &connection.worker.requests;
        requests.set(requests.get() + 1);
        connection.worker.overload.begins_request();
        let header = |name| request.headers.get(name).cloned();
        let authority = request.uri.authority();
        let record = Box::new(RequestRecord {
            downstream: connection.downstream.clone(),
            start_time: SystemTime::now(),
            started: Instant::now(),
            duration: Duration::ZERO,
            method: request.method.clone(),
            uri: request.uri.clone(),
            version: request.version,
            authority: authority
                .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok())
                .or_else(|| header(HOST)),
            user_agent: header(USER_AGENT),
            request_id: header(REQUEST_ID),
            forwarded_for: header(FORWARDED_FOR),
            grpc: route::is_grpc(&request.headers),
            status: CLIENT_LEFT,
            grpc_status: None,
            flags: ResponseFlags::default(),
            details: "",
            route: None,
            cluster: None,
            endpoint: None,
            upstream: None,
            upstream_time: None,
            attempts: 0,
            bytes_received: 0,
            bytes_sent: 0,
            messages_received: Messages::default(),
            messages_sent: Messages::default(),
        });
        Self {
            connection,
            record,
            replay: Replay::empty(),
            expects: false,
            whole: None,
            reported: false,
        }
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.connection.worker
    }

    pub(super) fn direction(&self) -> Direction {
        self.connection.downstream.direction
    }

    /// The request's body, of which so much is kept for another attempt. A call of gRPC may be silent for as long as it
    /// likes: that is what streams of messages do, and the connection below proves that its client is alive.
    pub(super) fn take_body(&mut self, body: Incoming, cap: usize) {
        let grpc = self.record.grpc;
        let streams = grpc && self.connection.version == HttpVersion::Http2;
        let calm = self.connection.calm.clone();
        let counted = calm.is_some();
        self.replay = Replay::new(body, cap, grpc, streams, calm, self.worker());
        if counted && let Some(body) = self.replay.waiting() {
            self.connection.crowd.enter(body);
        }
    }

    /// What a request that will never be complete is answered.
    pub(super) fn request_failure(&self, why: RequestFailure) -> Failure {
        match why {
            RequestFailure::Client => self.connection.refusal().unwrap_or(Failure::ClientGone),
            RequestFailure::Trailer(why) => Failure::BadRequest(why),
            RequestFailure::Late => {
                self.reached(Limit::Body, "a request is refused whose body does not come");
                Failure::SlowBody
            }
            RequestFailure::Overload => {
                self.reached(Limit::Memory, "a large request is cut");
                Failure::Cut
            }
            RequestFailure::Crowd => Failure::Crowd,
        }
    }

    /// The client has reached a limit.
    pub(super) fn reached(&self, limit: Limit, what: &str) {
        self.connection.reached(limit, what);
    }

    /// Makes of the client's request one that can be sent on, unless there is too much going on. Returns whether the client
    /// asks to switch protocols.
    pub(super) fn prepare(&self, request: &mut Parts) -> Result<bool, Failure> {
        self.overload()?;
        let connection = &self.connection;
        let destination = connection.downstream.original_dst;
        headers::prepare_request(request, connection.version, destination)
    }

    /// Whether there is too much going on for this exchange, and what of.
    fn overload(&self) -> Result<(), Failure> {
        let worker = self.worker();
        let connection = &self.connection;
        let (served, active) = (connection.served.get(), connection.active.get());
        let refuses = worker
            .overload
            .refuses_requests(served, &connection.unread, active);
        let limit = if refuses {
            Limit::Memory
        } else if worker.requests.get() > worker.settings.bounds.requests {
            Limit::Requests
        } else {
            return Ok(());
        };
        self.reached(limit, "a request is refused");
        Err(Failure::Overload)
    }

    /// Answers here. What has come of the request is read before that: whether all of it has decides whether an HTTP/1
    /// connection goes on, and that is said in the answer.
    pub(super) async fn refuse(mut self, failure: &Failure) -> Response<ResponseBody> {
        self.read_out().await;
        self.fail(failure)
    }

    /// Nobody wants the rest of the request.
    pub(super) async fn read_out(&mut self) {
        if self.connection.version == HttpVersion::Http1 && !self.expects {
            self.whole = Some(self.replay.throw_away().await);
        }
    }

    /// Says that the connection ends with this answer, if that is over before its request: what is left of that is not read.
    pub(super) fn sign_early(&self, headers: &mut HeaderMap) {
        let whole = self.whole.unwrap_or_else(|| self.replay.has_ended());
        if !whole && self.connection.version == HttpVersion::Http1 {
            headers::close(headers);
        }
    }

    /// Answers here; the exchange is over.
    pub(super) fn fail(mut self, failure: &Failure) -> Response<ResponseBody> {
        if let Failure::Upstream(error) = failure {
            self.too_large(error);
        }
        let client = &self.connection.downstream;
        local_reply::tell(failure, client, &self.worker().connections);
        let mut answer = local_reply::answer(failure, self.direction(), self.record.grpc);
        self.record.flags.insert(answer.flag);
        self.record.details = answer.reason;
        self.record.grpc_status = answer.grpc_status;
        if self.record.method == Method::HEAD && self.connection.version == HttpVersion::Http2 {
            // hyper leaves it out in HTTP/1 only.
            *answer.response.body_mut() = ResponseBody::empty();
        }
        self.finish(&mut answer.response);
        answer.response
    }

    /// Tells who sent a head that is too large for the next hop, or too many: the client, or the upstream.
    fn too_large(&self, error: &UpstreamError) {
        match error {
            UpstreamError::TooLarge { .. } => self.reached(
                Limit::H2HeaderList,
                "a head is refused that is too large for HTTP/2",
            ),
            UpstreamError::AnswerTooLarge(_) => {
                self.upstream_reached(Limit::Head, "the head of an answer is too large");
            }
            UpstreamError::Interim(_) => self.too_many_interim(),
            _ => {}
        }
    }

    /// Tells who sent too many interim answers.
    pub(super) fn too_many_interim(&self) {
        let what = "an answer has too many interim ones before it";
        self.upstream_reached(Limit::Interim, what);
    }

    /// Tells of a limit that the upstream reached.
    fn upstream_reached(&self, limit: Limit, what: &str) {
        let Some(address) = self.record.upstream else {
            return;
        };
        let endpoint = self.record.endpoint.as_ref();
        let mtls = endpoint.and_then(|endpoint| endpoint.mtls.as_ref());
        let id = mtls.and_then(|peer| peer.0.first());
        let limits = &self.worker().limits;
        limits.reached(limit, self.direction(), Who { address, id }, what);
    }

    /// Sends an answer that was made here; the exchange is over.
    pub(super) fn finish(mut self, response: &mut Response<ResponseBody>) {
        self.record.status = response.status();
        self.record.bytes_sent = http_body::Body::size_hint(response.body())
            .exact()
            .unwrap_or(0);
        self.connection.sign(response.headers_mut());
        self.sign_early(response.headers_mut());
        self.report();
    }

    /// Notes what the response's trailers, or its head, say about a gRPC call.
    pub(super) fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if let Some(status) = grpc_status(headers) {
            self.record.grpc_status = u16::try_from(status).ok();
        }
    }

    /// The response was over before its end: hands the record over.
    pub(super) fn note_end(&mut self, flag: ResponseFlag, details: &'static str) {
        self.record.flags.insert(flag);
        self.record.details = details;
        self.report_once();
    }

    /// The response was over, well or not: hands the record over.
    pub(super) fn report(mut self) {
        self.report_once();
    }

    fn report_once(&mut self) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        self.record.duration = self.record.started.elapsed();
        self.record.bytes_received = self.replay.bytes();
        self.record.messages_received = self.replay.messages();
        let connection = &self.connection;
        connection.worker.telemetry.request(&self.record);
        let left = ResponseFlag::DownstreamConnectionTermination;
        if self.record.flags.contains(left) {
            connection.gave_up();
        } else {
            connection.given_up.ended();
            if !self.record.flags.contains(ResponseFlag::Overload) {
                connection.served.set(true);
            }
        }
        connection.wears_out();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.reported {
            self.record
                .flags
                .insert(ResponseFlag::DownstreamConnectionTermination);
            self.report_once();
        }
        self.replay.finish();
        let connection = &self.connection;
        let requests = &connection.worker.requests;
        requests.set(requests.get() - 1);
        connection.active.set(connection.active.get() - 1);
        if connection.active.get() == 0 {
            connection.idle_since.set(TokioInstant::now());
            connection.crowd.clear();
        }
    }
}

/// What access logs say of a client that left before it was answered.
const CLIENT_LEFT: StatusCode = match StatusCode::from_u16(499) {
    Ok(status) => status,
    Err(_) => StatusCode::BAD_REQUEST,
};
