//! Sends a request upstream, as often as it takes and its route allows, and answers with what came back.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::UPGRADE;
use http::{HeaderMap, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::body::{ResponseBody, Tail};
use super::exchange::Exchange;
use super::local_reply::{FAILED_HOP_HEADER, Failure};
use super::{headers, upgrade};
use crate::balance::{self, ActiveGuard};
use crate::config::Cluster;
use crate::config::route::{Forward, RetryPolicy, Route, RouteAction, WeightedCluster};
use crate::conn::{Direction, HttpVersion};
use crate::net::Reach;
use crate::retry::{BudgetGuard, Retries};
use crate::route;
use crate::telemetry::ResponseFlag;
use crate::upstream::{Head, Lease, Target, UpstreamError};

/// Where a request goes and under which rules, decided once from one snapshot.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) cluster: Arc<Cluster>,
    pub(super) destination: Destination,
    /// The route and the index of the chosen cluster in it; `None` where there is no route.
    pub(super) route: Option<(Arc<Route>, usize)>,
}

/// How the address of an attempt is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Destination {
    /// By balancing.
    Balanced,
    /// It is the connection's own.
    Original(SocketAddr, Reach),
}

/// A response head and what it holds.
pub(super) struct Won {
    response: Response<Incoming>,
    lease: Lease,
    active: ActiveGuard,
}

/// How much of an unwanted response is read to keep its connection ...
const DISCARD_BYTES: usize = 64 * 1024;
/// ... and for how long.
const DISCARD_TIME: Duration = Duration::from_millis(20);

/// Bytes of an answer that are written at once.
const SHORT: u64 = 64 * 1024;

/// How an attempt ended that brought no response.
enum Lost {
    Upstream(UpstreamError),
    /// The attempt took too long.
    TryTimeout,
    /// The request took too long.
    Timeout,
    /// The request was given up because memory was short.
    GivenUp,
}

/// Nothing is retried but what was not sent.
static NO_RETRIES: LazyLock<RetryPolicy> = LazyLock::new(|| RetryPolicy {
    attempts: 0,
    max_replay_bytes: 0,
    ..RetryPolicy::default()
});

impl Plan {
    fn rules(&self) -> Option<(&Route, &Forward, &WeightedCluster)> {
        let (route, index) = self.route.as_ref()?;
        match &route.action {
            RouteAction::Forward(forward) => Some((route, forward, forward.clusters.get(*index)?)),
            RouteAction::Redirect(_) | RouteAction::Respond(_) => None,
        }
    }

    /// Retries are outbound's business: inbound has no other endpoint to try.
    pub(super) fn retry_policy(&self) -> &RetryPolicy {
        match (self.destination, self.rules()) {
            (Destination::Balanced, Some((_, forward, _))) => &forward.retry,
            _ => &NO_RETRIES,
        }
    }

    /// Changes a request's head as the route says.
    pub(super) fn change_request(&self, request: &mut http::request::Parts) -> Result<(), Failure> {
        if let Some((rules, forward, cluster)) = self.rules() {
            let host = forward.host_rewrite.as_ref();
            route::rewrite(&rules.matches, forward.path_rewrite.as_ref(), host, request)?;
            route::change_headers(&rules.request_headers, &mut request.headers);
            route::change_headers(&cluster.request_headers, &mut request.headers);
        }
        Ok(())
    }

    /// What the request is hashed by, if its route says so.
    fn hash(&self, exchange: &Exchange, headers: &HeaderMap) -> Option<u64> {
        let (_, forward, _) = self.rules()?;
        let client = exchange.connection.downstream.peer.ip();
        balance::of_request(&forward.hash, client, headers)
    }

    /// Picks where the next attempt goes; a retry sees the newest endpoints of the same cluster.
    fn target(
        &self,
        exchange: &Exchange,
        key: Option<u64>,
        tried: &[SocketAddr],
    ) -> Result<Target, Failure> {
        match self.destination {
            Destination::Original(address, reach) => {
                Ok(Target::original(self.cluster.clone(), address, reach))
            }
            Destination::Balanced => {
                let newest = (!tried.is_empty())
                    .then(|| {
                        exchange
                            .worker()
                            .config
                            .load()
                            .cluster(&self.cluster.name)
                            .cloned()
                    })
                    .flatten();
                let cluster = newest.as_ref().unwrap_or(&self.cluster);
                let mut rng = fastrand::Rng::new();
                let endpoint = balance::pick(cluster, key, tried, balance::now_ms(), &mut rng);
                let endpoint = endpoint.ok_or(Failure::NoEndpoint)?.clone();
                Ok(Target::endpoint(cluster.clone(), endpoint))
            }
        }
    }
}

/// The attempts of one request.
pub(super) struct Attempts<'p> {
    retries: Retries<'p>,
    /// When the whole exchange has to be over.
    deadline: Option<Instant>,
    per_try: Option<Duration>,
    /// The request's head, unless an attempt has used it up.
    head: Option<Head>,
    /// Endpoints that were tried in vain.
    tried: Vec<SocketAddr>,
    /// The current attempt's share of the retry budget.
    budget: Option<BudgetGuard>,
    /// Counts the request from its first attempt on, pauses included, until a response takes it along.
    active: Option<ActiveGuard>,
}

/// Whether an attempt is followed by another one.
enum Next {
    Nothing,
    AtOnce,
    After(Duration, Option<BudgetGuard>),
}

impl<'p> Attempts<'p> {
    pub(super) fn new(plan: &'p Plan, head: Head) -> Self {
        let forward = plan.rules().map(|(_, forward, _)| forward);
        let timeout = forward.and_then(|forward| forward.timeout);
        Self {
            retries: Retries::new(plan.retry_policy(), &head.method),
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            per_try: forward.and_then(|forward| forward.per_try_timeout),
            head: Some(head),
            tried: Vec::new(),
            budget: None,
            active: None,
        }
    }

    /// Tries until one attempt brings a response that is worth sending on, or nothing is left to try.
    pub(super) async fn run(
        &mut self,
        exchange: &mut Exchange,
        plan: &Plan,
    ) -> Result<Won, Failure> {
        let head = self.head.as_ref();
        let key = head.and_then(|head| plan.hash(exchange, &head.headers));
        loop {
            let mut target = plan.target(exchange, key, &self.tried)?;
            note_attempt(exchange, &target);
            let outcome = self.attempt(exchange, &mut target).await;
            note_failure(&target, &outcome);
            if let (true, Some(why)) = (outcome.is_err(), exchange.replay.failure()) {
                return Err(exchange.request_failure(why));
            }
            match self.next(exchange, &target, &outcome) {
                Next::Nothing => {
                    exchange.replay.commit();
                    return outcome.map_err(Failure::from);
                }
                Next::AtOnce => exchange.replay.promise(),
                Next::After(delay, guard) => {
                    let complete = exchange.replay.is_complete();
                    exchange.replay.promise();
                    if let Ok(won) = outcome {
                        self.active = Some(won.discard(complete).await);
                    }
                    if let Some(active) = &mut self.active {
                        active.leave();
                    }
                    self.tried.push(target.address);
                    self.budget = guard;
                    pause(delay, self.deadline).await?;
                }
            }
        }
    }

    fn next(
        &mut self,
        exchange: &mut Exchange,
        target: &Target,
        outcome: &Result<Won, Lost>,
    ) -> Next {
        let (covered, unprocessed) = match outcome {
            Ok(won) => {
                let headers = won.response.headers();
                let refused = won.response.status() == StatusCode::SERVICE_UNAVAILABLE;
                let marked = refused && target.identity().is_some() && headers::is_marked(headers);
                let covered = self.retries.cover_response(won.response.status(), headers);
                (marked || covered, marked)
            }
            Err(Lost::Upstream(error)) => (self.retries.covers(error), error.is_unprocessed()),
            Err(Lost::TryTimeout) => (self.retries.cover_timeout(), false),
            Err(Lost::Timeout | Lost::GivenUp) => (false, false),
        };
        if !covered {
            return Next::Nothing;
        }
        let possible = self.head.is_some() && exchange.replay.is_replayable();
        let stale = matches!(outcome, Err(Lost::Upstream(UpstreamError::NotSent)));
        if possible && stale && self.retries.take_stale() {
            return Next::AtOnce;
        }
        if !self.retries.are_left() && exchange.record.attempts > 1 {
            let exhausted = ResponseFlag::UpstreamRetryLimitExceeded;
            exchange.record.flags.insert(exhausted);
        }
        if !possible {
            return Next::Nothing;
        }
        let retry = if unprocessed {
            self.retries.take_free().map(|delay| (delay, None))
        } else {
            let taken = self.retries.take(&target.cluster);
            taken.map(|(delay, guard)| (delay, Some(guard)))
        };
        retry.map_or(Next::Nothing, |(delay, guard)| Next::After(delay, guard))
    }

    /// One attempt, within its time.
    async fn attempt(&mut self, exchange: &mut Exchange, target: &mut Target) -> Result<Won, Lost> {
        let this_try = self.per_try.map(|timeout| Instant::now() + timeout);
        let all = self.deadline;
        let ends = all.into_iter().chain(this_try).min();
        target.ends = ends;
        let body = exchange.replay.watched();
        tokio::select! {
            biased;
            outcome = self.send(exchange, target) => outcome.map_err(Lost::Upstream),
            () = expired(ends) => Err(if ends == all { Lost::Timeout } else { Lost::TryTimeout }),
            () = poll_fn(|cx| body.poll_given_up(cx)) => Err(Lost::GivenUp),
        }
    }

    /// Sends the request. Its head stays here if it may be needed again.
    async fn send(
        &mut self,
        exchange: &mut Exchange,
        target: &Target,
    ) -> Result<Won, UpstreamError> {
        self.enter(target)?;
        let worker = exchange.connection.worker.clone();
        let head = self.head.as_ref();
        let upgrades = head.is_some_and(|head| head.headers.contains_key(UPGRADE));
        let version = target.version(exchange.connection.version, upgrades);
        // Where a repetition is out of the question, a pooled connection is looked at first.
        let careful = !(self.retries.is_idempotent() && self.retries.are_left());
        let mut lease = worker
            .upstream
            .lease(&worker, target, version, careful)
            .await?;
        let head = if self.is_repeatable(target, version) {
            self.head.clone()
        } else {
            self.head.take()
        };
        let body = exchange.replay.attempt();
        let head = head.ok_or(UpstreamError::NotSent)?;
        let limit = worker.settings.http2.max_header_list;
        let head = head.suited_to(version, target.address, &body, limit)?;
        let sent = std::time::Instant::now();
        match lease.send(head, body).await {
            Ok(response) => {
                exchange.record.upstream_time = Some(sent.elapsed());
                Ok(Won {
                    response,
                    lease,
                    active: self.active.take().expect("it was entered above"),
                })
            }
            Err(failed) => {
                if let Some(head) = failed.head {
                    self.head = Some(*head);
                }
                Err(failed.error)
            }
        }
    }

    /// Counts the request, once, and the attempt at its endpoint.
    fn enter(&mut self, target: &Target) -> Result<(), UpstreamError> {
        let active = match &mut self.active {
            Some(active) => active,
            none => {
                let state = &target.cluster.state;
                if state.active.load(Relaxed) >= target.cluster.limits.max_requests {
                    return Err(UpstreamError::Overflow("requests"));
                }
                if self.retries.are_left() {
                    state.window.note_request(balance::now_ms());
                }
                none.insert(ActiveGuard::of_cluster(&target.cluster))
            }
        };
        if let Some(endpoint) = &target.endpoint {
            active.enter(endpoint);
        }
        Ok(())
    }

    /// What may have been processed is sent again only if that is harmless, or if a peer can say that it was not.
    fn is_repeatable(&self, target: &Target, version: HttpVersion) -> bool {
        let can_tell = target.identity().is_some() || version == HttpVersion::Http2;
        self.retries.are_left() && (self.retries.is_idempotent() || can_tell)
    }
}

impl Won {
    /// Reads a response that nobody wants to its end, if that is near, so that its connection can be used again: an
    /// HTTP/1 connection has to be at a message boundary, and HTTP/2 peers count streams that are dropped before.
    async fn discard(self, request_complete: bool) -> ActiveGuard {
        let Self {
            response,
            lease,
            active,
        } = self;
        let mut body = response.into_body();
        let reading = async {
            let mut read = 0;
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, bytes::Bytes::len);
                lease.took(length);
                read += length;
                if read > DISCARD_BYTES {
                    return false;
                }
            }
            body.is_end_stream()
        };
        let ended = tokio::time::timeout(DISCARD_TIME, reading).await;
        if request_complete && ended == Ok(true) {
            lease.release();
        }
        active
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Upstream(error) => Self::Upstream(error),
            Lost::TryTimeout | Lost::Timeout => Self::Timeout,
            Lost::GivenUp => Self::Cut,
        }
    }
}

fn note_attempt(exchange: &mut Exchange, target: &Target) {
    exchange.record.attempts += 1;
    exchange.record.upstream = Some(target.address);
    exchange.record.endpoint = target.endpoint.clone();
}

/// Tells the balancer that an endpoint answers, but does not serve.
fn note_failure(target: &Target, outcome: &Result<Won, Lost>) {
    let failed = match outcome {
        Ok(won) => matches!(
            won.response.status(),
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        ),
        Err(Lost::Upstream(error)) => error.may_be_processed(),
        Err(Lost::TryTimeout | Lost::Timeout | Lost::GivenUp) => false,
    };
    let Some(endpoint) = &target.endpoint else {
        return;
    };
    if failed {
        balance::report_failed_response(endpoint, balance::now_ms());
    }
    if outcome.is_ok() {
        balance::report_answer(endpoint);
    }
}

async fn expired(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn pause(delay: Duration, deadline: Option<Instant>) -> Result<(), Failure> {
    let until = Instant::now() + delay;
    match deadline {
        Some(deadline) if deadline <= until => {
            tokio::time::sleep_until(deadline).await;
            Err(Failure::Timeout)
        }
        _ => {
            tokio::time::sleep_until(until).await;
            Ok(())
        }
    }
}

/// Answers with the upstream's response. Where it switches protocols, so does the client's connection.
pub(super) fn answer(
    mut exchange: Exchange,
    plan: &Plan,
    attempts: Attempts<'_>,
    won: Won,
    upgrade: Option<OnUpgrade>,
) -> Response<ResponseBody> {
    if won.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return upgrade_both(exchange, plan, won, upgrade);
    }
    let (mut parts, body) = won.response.into_parts();
    if change_response(&exchange, plan, &mut parts, false) {
        return exchange.fail(&UpstreamError::Coded.into());
    }
    if is_short(parts.status, &body) {
        exchange.sign_early(&mut parts.headers);
    }
    exchange.record.status = parts.status;
    if exchange.record.grpc {
        exchange.note_grpc_status(&parts.headers);
    }
    let Attempts {
        budget, deadline, ..
    } = attempts;
    let tail = Tail {
        exchange,
        lease: won.lease,
        _active: won.active,
        _budget: budget,
        deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
    };
    Response::from_parts(parts, ResponseBody::upstream(body, tail))
}

/// Whether an answer to an unfinished request is over before that is. Others may go on for as long as the request, as
/// streams do, whose connection is used again.
fn is_short(status: StatusCode, body: &Incoming) -> bool {
    let length = body.size_hint().exact();
    let refuses = status.is_client_error() || status.is_server_error();
    refuses || length.is_some_and(|length| length <= SHORT)
}

/// Returns whether the body is coded in a way that nobody asked for.
fn change_response(
    exchange: &Exchange,
    plan: &Plan,
    parts: &mut http::response::Parts,
    upgraded: bool,
) -> bool {
    let coded = headers::prepare_response(&mut parts.headers, upgraded);
    if exchange.direction() == Direction::Inbound {
        // No sidecar has answered, whatever the app says.
        parts.headers.remove(FAILED_HOP_HEADER);
    }
    if let Some((rules, _, cluster)) = plan.rules() {
        route::change_headers(&cluster.response_headers, &mut parts.headers);
        route::change_headers(&rules.response_headers, &mut parts.headers);
    }
    // The upstream's version says how it framed its answer to us, not how we frame ours.
    parts.version = Version::HTTP_11;
    if !upgraded {
        exchange.connection.sign(&mut parts.headers);
    }
    coded
}

/// From now on bytes pass untouched.
fn upgrade_both(
    mut exchange: Exchange,
    plan: &Plan,
    won: Won,
    client: Option<OnUpgrade>,
) -> Response<ResponseBody> {
    let Some(client) = client else {
        return exchange.fail(&UpstreamError::UnwantedUpgrade.into());
    };
    let mut response = won.response;
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    change_response(&exchange, plan, &mut parts, true);
    exchange.record.status = parts.status;
    won.lease.detach();
    upgrade::relay(exchange, won.active, client, upstream);
    Response::from_parts(parts, ResponseBody::empty())
}
