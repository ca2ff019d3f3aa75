//! How long peers may do nothing, and how much there may be of what they make grow.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{bytes, number, period};
use crate::admin;
use crate::env::Env;
use crate::names::variables;

/// How long peers may do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The head of an HTTP/1 request, from its first byte to its last.
    pub head: Duration,
    /// An HTTP connection without a first request.
    pub first_request: Duration,
    /// An HTTP connection without another request.
    pub idle: Duration,
    /// A client that pauses in the middle of a body, while its request has no answer yet.
    pub body: Duration,
    /// Bytes a second that such a body must bring, counted over the time that it may pause.
    pub body_rate: u32,
    /// An HTTP client that does not read its answer.
    pub unread: Duration,
    /// A client that takes nothing of an answer on HTTP/2.
    pub flush: Duration,
    /// An opaque connection on which nothing moves.
    pub tcp_idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            head: MINUTE / 2,
            first_request: 5 * MINUTE,
            idle: 60 * MINUTE,
            body: 15 * MINUTE,
            body_rate: 16,
            unread: 15 * MINUTE,
            flush: 5 * MINUTE,
            tcp_idle: 60 * MINUTE,
        }
    }
}

impl Patience {
    pub(super) fn from_env(env: &Env) -> Self {
        let default = Self::default();
        let read = |name, default| period(env, name, default);
        Self {
            head: read(variables::REQUEST_HEAD_TIMEOUT, default.head),
            first_request: read(variables::FIRST_REQUEST_TIMEOUT, default.first_request),
            idle: read(variables::IDLE_TIMEOUT, default.idle),
            body: read(variables::BODY_TIMEOUT, default.body),
            body_rate: number(env, variables::BODY_RATE, RATE).unwrap_or(default.body_rate),
            unread: read(variables::UNREAD_TIMEOUT, default.unread),
            flush: read(variables::FLUSH_TIMEOUT, default.flush),
            tcp_idle: read(variables::TCP_IDLE_TIMEOUT, default.tcp_idle),
        }
    }
}

/// Bytes a second, from none to what a slow line brings.
const RATE: RangeInclusive<u32> = 0..=1_000_000;
/// From what ordinary requests have, and hyper reads at least, to what one buffer can be.
const HEAD: RangeInclusive<u64> = 8 << 10..=1 << 30;
/// As many of anything as a machine can have.
const MOST: usize = 1_000_000_000;
/// As many fields as `http` can hold in one map.
const FIELDS: RangeInclusive<usize> = 1..=24_000;
/// Of one type the config client keeps a little more.
const SUBSCRIPTIONS: RangeInclusive<usize> = 1..=32_000;
/// As many as there can be to one address.
const CONNECTING: RangeInclusive<u32> = 1..=64_000;
/// One for each who asks at ordinary times, and fewer than there are files by default.
const ADMIN: RangeInclusive<usize> = 4..=1_000;
/// From what a small app has to say, to what no sidecar has memory for.
const APP_METRICS: RangeInclusive<u64> = 16 << 10..=1 << 30;
/// Less than a sidecar that does nothing would be short of at once.
const MEMORY: RangeInclusive<u64> = 1..=1 << 50;

/// How much there may be at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Captured connections in each direction; `None`: as many as the limit of open files has room for.
    pub connections: Option<usize>,
    /// Requests in flight on a worker.
    pub requests: usize,
    /// Bytes of an HTTP/1 request's head.
    pub head: usize,
    /// Fields of one.
    pub fields: usize,
    /// Destinations, and as many addresses of clients, that the control plane is asked about.
    pub subscriptions: usize,
    /// Connections with mTLS that a worker makes to one peer at a time on HTTP/1.
    pub connecting: u32,
    /// Connections that each of the servers for operators, metrics and readiness takes.
    pub admin_connections: usize,
    /// Bytes of the app's own metrics that are passed on.
    pub app_metrics: usize,
    /// Bytes of memory; `None`: the limit of the cgroup, if there is one.
    pub memory: Option<u64>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: None,
            requests: 20_000,
            head: 64 * 1024,
            fields: 100,
            subscriptions: 4_096,
            connecting: 32,
            admin_connections: admin::CONNECTIONS,
            app_metrics: 8 << 20,
            memory: None,
        }
    }
}

impl Bounds {
    pub(super) fn from_env(env: &Env) -> Self {
        let default = Self::default();
        let count = |name| number(env, name, 1..=MOST);
        let head = bytes(env, variables::MAX_HEAD, HEAD);
        let head = head.and_then(|head| usize::try_from(head).ok());
        let app_metrics = bytes(env, variables::MAX_APP_METRICS, APP_METRICS);
        let app_metrics = app_metrics.and_then(|bytes| usize::try_from(bytes).ok());
        Self {
            connections: count(variables::MAX_CONNECTIONS),
            requests: count(variables::MAX_REQUESTS).unwrap_or(default.requests),
            head: head.unwrap_or(default.head),
            fields: number(env, variables::MAX_FIELDS, FIELDS).unwrap_or(default.fields),
            subscriptions: number(env, variables::MAX_SUBSCRIPTIONS, SUBSCRIPTIONS)
                .unwrap_or(default.subscriptions),
            connecting: number(env, variables::MAX_CONNECTING, CONNECTING)
                .unwrap_or(default.connecting),
            admin_connections: number(env, variables::MAX_ADMIN_CONNECTIONS, ADMIN)
                .unwrap_or(default.admin_connections),
            app_metrics: app_metrics.unwrap_or(default.app_metrics),
            memory: bytes(env, variables::MEMORY_LIMIT, MEMORY),
        }
    }
}
