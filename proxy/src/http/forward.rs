//! Sends a request upstream, as often as it takes and its route allows, and answers with what came back.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::body::{ResponseBody, Tail};
use super::exchange::Exchange;
use super::local_reply::Failure;
use super::{headers, upgrade};
use crate::balance::{self, ActiveGuard};
use crate::config::Cluster;
use crate::config::route::{Forward, RetryPolicy, Route, RouteAction, WeightedCluster};
use crate::conn::HttpVersion;
use crate::retry::{BudgetGuard, Retries};
use crate::route;
use crate::telemetry::ResponseFlag;
use crate::upstream::{Head, Lease, Leg, Target, UpstreamError};

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
    Original(SocketAddr, Leg),
}

/// A response head and what it holds.
struct Won {
    response: Response<Incoming>,
    lease: Lease,
    active: ActiveGuard,
    budget: Option<BudgetGuard>,
    deadline: Option<Instant>,
}

/// A request that was not answered; boxed, because that is rare.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) exchange: Exchange,
    pub(super) failure: Failure,
}

impl Failed {
    fn new(exchange: Exchange, failure: Failure) -> Box<Self> {
        Box::new(Self { exchange, failure })
    }
}

/// How an attempt ended that brought no response.
enum Lost {
    Upstream(UpstreamError),
    /// The attempt took too long.
    TryTimeout,
    /// The request took too long.
    Timeout,
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

    /// Picks where the next attempt goes; a retry sees the newest endpoints of the same cluster.
    fn target(&self, exchange: &Exchange, tried: &[SocketAddr]) -> Result<Target, Failure> {
        match self.destination {
            Destination::Original(address, leg) => {
                Ok(Target::original(self.cluster.clone(), address, leg))
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
                let endpoint = balance::pick(cluster, tried, balance::now_ms(), &mut rng);
                let endpoint = endpoint.ok_or(Failure::NoEndpoint)?.clone();
                Ok(Target::endpoint(cluster.clone(), endpoint))
            }
        }
    }
}

/// Sends a request and answers it; what failed is for the caller to answer.
pub(super) async fn forward(
    mut exchange: Exchange,
    plan: Plan,
    head: Head,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<ResponseBody>, Box<Failed>> {
    exchange.record.cluster = Some(plan.cluster.clone());
    match run(&mut exchange, &plan, head).await {
        Ok(won) if won.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            upgrade_both(exchange, &plan, won, upgrade)
        }
        Ok(won) => Ok(respond(exchange, &plan, won)),
        Err(failure) => Err(Failed::new(exchange, failure)),
    }
}

/// The attempts, until one brings a response that is worth sending on.
async fn run(exchange: &mut Exchange, plan: &Plan, head: Head) -> Result<Won, Failure> {
    let mut retries = Retries::new(plan.retry_policy(), &head.method);
    let rules = plan.rules().map(|(_, forward, _)| forward);
    let deadline = rules
        .and_then(|rules| rules.timeout)
        .map(|timeout| Instant::now() + timeout);
    let per_try = rules.and_then(|rules| rules.per_try_timeout);
    let mut head = Some(head);
    let mut tried = SmallVec::<[SocketAddr; 4]>::new();
    let mut budget = None;
    loop {
        let target = plan.target(exchange, &tried)?;
        note_attempt(exchange, &target);
        let outcome = attempt(exchange, &target, &mut head, &retries, deadline, per_try).await;
        let again = head.is_some() && exchange.replay.is_replayable();
        let lost = match outcome {
            Ok((response, lease, active)) => {
                let marked = target.identity().is_some() && headers::is_marked(response.headers());
                let covered =
                    marked || retries.cover_response(response.status(), response.headers());
                let retry = (covered && again).then(|| retries.take(&target.cluster));
                let Some(Some((delay, guard))) = retry else {
                    if covered && !retries.are_left() && exchange.record.attempts > 1 {
                        exchange
                            .record
                            .flags
                            .insert(ResponseFlag::UpstreamRetryLimitExceeded);
                    }
                    exchange.replay.commit();
                    return Ok(Won {
                        response,
                        lease,
                        active,
                        budget,
                        deadline,
                    });
                };
                drop((response, lease, active));
                tried.push(target.address);
                budget = Some(guard);
                pause(delay, deadline).await?;
                continue;
            }
            Err(lost) => lost,
        };
        if exchange.replay.has_failed() {
            return Err(Failure::ClientGone);
        }
        let stale = matches!(&lost, Lost::Upstream(UpstreamError::NotSent));
        if stale && again && retries.take_stale() {
            continue;
        }
        let covered = match &lost {
            Lost::Upstream(error) => retries.covers(error),
            Lost::TryTimeout => retries.cover_timeout(),
            Lost::Timeout => false,
        };
        let retry = (covered && again).then(|| retries.take(&target.cluster));
        let Some(Some((delay, guard))) = retry else {
            if covered && !retries.are_left() && exchange.record.attempts > 1 {
                exchange
                    .record
                    .flags
                    .insert(ResponseFlag::UpstreamRetryLimitExceeded);
            }
            return Err(lost.into());
        };
        tried.push(target.address);
        budget = Some(guard);
        pause(delay, deadline).await?;
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Upstream(error) => Self::Upstream(error),
            Lost::TryTimeout | Lost::Timeout => Self::Timeout,
        }
    }
}

fn note_attempt(exchange: &mut Exchange, target: &Target) {
    exchange.record.attempts += 1;
    exchange.record.upstream = Some(target.address);
    exchange.record.endpoint = target.endpoint.clone();
}

/// One attempt, within its time. The head stays where it is if it may be needed again.
async fn attempt(
    exchange: &mut Exchange,
    target: &Target,
    head: &mut Option<Head>,
    retries: &Retries<'_>,
    deadline: Option<Instant>,
    per_try: Option<Duration>,
) -> Result<(Response<Incoming>, Lease, ActiveGuard), Lost> {
    let try_deadline = per_try.map(|timeout| Instant::now() + timeout);
    let ends = match (deadline, try_deadline) {
        (Some(total), Some(this)) => Some(total.min(this)),
        (total, this) => total.or(this),
    };
    tokio::select! {
        biased;
        outcome = send(exchange, target, head, retries) => outcome.map_err(Lost::Upstream),
        () = expired(ends) => {
            let all = deadline.is_some_and(|deadline| Some(deadline) == ends);
            Err(if all { Lost::Timeout } else { Lost::TryTimeout })
        }
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

async fn send(
    exchange: &mut Exchange,
    target: &Target,
    head: &mut Option<Head>,
    retries: &Retries<'_>,
) -> Result<(Response<Incoming>, Lease, ActiveGuard), UpstreamError> {
    if target.cluster.state.active.load(Relaxed) >= target.cluster.limits.max_requests {
        return Err(UpstreamError::Overflow("requests"));
    }
    let active = match &target.endpoint {
        Some(endpoint) => ActiveGuard::new(&target.cluster, endpoint),
        None => ActiveGuard::of_cluster(&target.cluster),
    };
    let worker = exchange.connection.worker.clone();
    let version = exchange.connection.version;
    let careful = !retries.is_idempotent();
    let mut lease = worker
        .upstream
        .lease(&worker, target, version, careful)
        .await?;
    // What may have been processed is sent again only if that is harmless, or if a peer can say that it was not.
    let repeatable = retries.are_left()
        && (retries.is_idempotent()
            || target.identity().is_some()
            || version == HttpVersion::Http2);
    let this = if repeatable {
        head.clone()
    } else {
        head.take()
    };
    let Some(this) = this else {
        return Err(UpstreamError::NotSent);
    };
    let sent = std::time::Instant::now();
    match lease.send(this, exchange.replay.attempt()).await {
        Ok(response) => {
            exchange.record.upstream_time = Some(sent.elapsed());
            Ok((response, lease, active))
        }
        Err(failed) => {
            if failed.head.is_some() {
                *head = failed.head.map(|head| *head);
            }
            Err(failed.error)
        }
    }
}

/// Turns the upstream's response into the client's.
fn respond(mut exchange: Exchange, plan: &Plan, won: Won) -> Response<ResponseBody> {
    let (mut parts, body) = won.response.into_parts();
    change_response(&exchange, plan, &mut parts, false);
    exchange.record.status = parts.status;
    if exchange.record.grpc {
        exchange.note_grpc_status(&parts.headers);
    }
    let deadline = won
        .deadline
        .map(|at| Box::pin(tokio::time::sleep_until(at)));
    let Won {
        lease,
        active,
        budget,
        ..
    } = won;
    let tail = Tail {
        exchange,
        lease,
        _active: active,
        _budget: budget,
        deadline,
    };
    Response::from_parts(parts, ResponseBody::upstream(body, tail))
}

fn change_response(
    exchange: &Exchange,
    plan: &Plan,
    parts: &mut http::response::Parts,
    upgraded: bool,
) {
    headers::prepare_response(&mut parts.headers, upgraded);
    if let Some((rules, _, cluster)) = plan.rules() {
        route::change_headers(&cluster.response_headers, &mut parts.headers);
        route::change_headers(&rules.response_headers, &mut parts.headers);
    }
    // The upstream's version says how it framed its answer to us, not how we frame ours.
    parts.version = Version::HTTP_11;
    if !upgraded {
        exchange.connection.sign(&mut parts.headers);
    }
}

/// The upstream switches protocols: so does the client's connection, and from then on bytes pass untouched.
fn upgrade_both(
    mut exchange: Exchange,
    plan: &Plan,
    won: Won,
    client: Option<OnUpgrade>,
) -> Result<Response<ResponseBody>, Box<Failed>> {
    let Some(client) = client else {
        return Err(Failed::new(exchange, UpstreamError::UnwantedUpgrade.into()));
    };
    let mut response = won.response;
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    change_response(&exchange, plan, &mut parts, true);
    exchange.record.status = parts.status;
    won.lease.detach();
    upgrade::relay(exchange, won.active, client, upstream);
    Ok(Response::from_parts(parts, ResponseBody::empty()))
}
