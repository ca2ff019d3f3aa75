//! Routes: which request goes to which cluster, changed how, retried when.
//!
//! Matching semantics follow Envoy's RouteMatch, the order of routes inside a table is the order of evaluation, and
//! the first match wins. What is compared with a request is precompiled here.

mod hosts;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

pub use hosts::{DomainError, VirtualHost, VirtualHosts};

/// The routes of one listener.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// Name, as in RDS.
    pub name: Arc<str>,
    /// Routes in order of evaluation, those of one virtual host together. None matched: 404.
    pub routes: Vec<Arc<Route>>,
    /// Which of them a request may use. Nothing: all of them, whatever host it names; so it is in a mesh.
    pub hosts: Option<Box<VirtualHosts>>,
}

impl RouteTable {
    /// What stands for a table that was refused: every request is answered 503.
    #[must_use]
    pub fn refused(name: Arc<str>) -> Self {
        let route = Route {
            name: "refused".into(),
            matches: RouteMatch {
                path: PathMatch::Prefix("/".into()),
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
                grpc: false,
            },
            action: RouteAction::Respond(StatusCode::SERVICE_UNAVAILABLE),
            request_headers: HeaderChanges::default(),
            response_headers: HeaderChanges::default(),
        };
        Self {
            name,
            routes: vec![Arc::new(route)],
            hosts: None,
        }
    }
}

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Name for logs; empty if unnamed.
    pub name: Arc<str>,
    /// What a request must look like.
    pub matches: RouteMatch,
    /// What happens to it.
    pub action: RouteAction,
    /// Changes to the request's headers before it goes upstream.
    pub request_headers: HeaderChanges,
    /// Changes to the response's headers before it goes downstream.
    pub response_headers: HeaderChanges,
}

/// All parts must hold.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// The path, without query.
    pub path: PathMatch,
    /// The method, if it matters.
    pub method: Option<Method>,
    /// Headers, all of them.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, all of them.
    pub query: Vec<QueryMatch>,
    /// Only gRPC requests (content-type `application/grpc*`).
    pub grpc: bool,
}

/// How a path is compared.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// Byte for byte.
    Exact(Box<str>),
    /// Byte prefix; `/` matches everything.
    Prefix(Box<str>),
    /// Prefix of whole path segments: `/a` matches `/a`, `/a/b`, not `/ab` (Gateway API PathPrefix).
    SegmentPrefix(Box<str>),
    /// Whole path.
    Regex(Regex),
}

/// How a header value is compared.
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// Lower-case name.
    pub name: HeaderName,
    /// How.
    pub value: StringMatch,
    /// The match holds where `value` does not.
    pub invert: bool,
}

/// How a query parameter is compared; the first one of the name counts.
#[derive(Clone, Debug)]
pub struct QueryMatch {
    /// Name, percent-decoded.
    pub name: Box<str>,
    /// How.
    pub value: StringMatch,
}

/// How a string is compared.
#[derive(Clone, Debug)]
pub enum StringMatch {
    /// It exists.
    Present,
    /// Byte for byte.
    Exact(Box<str>),
    /// Starts with.
    Prefix(Box<str>),
    /// The whole of it.
    Regex(Regex),
}

/// A linear-time regular expression that matches a whole string.
#[derive(Clone, Debug)]
pub struct Regex {
    pattern: Box<str>,
    compiled: regex_automata::meta::Regex,
    memory: Arc<Memory>,
}

/// Bytes of all compiled patterns of the process.
static COMPILED: AtomicUsize = AtomicUsize::new(0);

/// The part of one pattern; given back when its last clone is dropped.
#[derive(Debug)]
struct Memory(usize);

impl Memory {
    fn take(bytes: usize) -> Self {
        COMPILED.fetch_add(bytes, Ordering::Relaxed);
        Self(bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        COMPILED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

impl Regex {
    /// A pattern, and what it was compiled to so that it matches whole strings only.
    #[must_use]
    pub fn new(pattern: &str, compiled: regex_automata::meta::Regex) -> Self {
        Self {
            pattern: pattern.into(),
            memory: Arc::new(Memory::take(compiled.memory_usage())),
            compiled,
        }
    }

    /// Bytes that this one takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.memory.0
    }

    /// Bytes that all patterns of the process take, those of a config that is about to go included.
    #[must_use]
    pub fn memory_of_all() -> usize {
        COMPILED.load(Ordering::Relaxed)
    }

    /// The pattern as the control plane sent it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Whether it matches all of a string.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.compiled.is_match(text)
    }
}

/// What happens to a request that matched.
#[derive(Clone, Debug)]
pub enum RouteAction {
    /// It goes to a cluster.
    Forward(Forward),
    /// It is sent elsewhere.
    Redirect(Redirect),
    /// It is answered here.
    Respond(StatusCode),
}

/// Forwarding to clusters by weight.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Clusters by weight. Never empty; the sum of weights is greater than zero.
    pub clusters: Vec<WeightedCluster>,
    /// Sum of the weights.
    pub total_weight: u32,
    /// Answer to requests whose share goes to a cluster that does not exist.
    pub cluster_not_found: StatusCode,
    /// How the path changes.
    pub path_rewrite: Option<PathRewrite>,
    /// What `Host`/`:authority` becomes.
    pub host_rewrite: Option<HeaderValue>,
    /// The whole exchange, including retries. `None`: no limit.
    pub timeout: Option<Duration>,
    /// One attempt until the response head. `None`: no limit of its own.
    pub per_try_timeout: Option<Duration>,
    /// Retries.
    pub retry: RetryPolicy,
    /// What clusters that hash find the endpoint by.
    pub hash: Vec<HashPolicy>,
}

/// One part of what a request is hashed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPolicy {
    /// What is hashed.
    pub on: HashOn,
    /// Whether those that follow are left out where this one applies.
    pub terminal: bool,
}

/// What a request is hashed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// The client's address.
    SourceIp,
    /// The value of a header, if it is there.
    Header(HeaderName),
}

/// One of the clusters that a route splits over.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// Cluster name.
    pub name: Arc<str>,
    /// Share of the traffic; may be zero.
    pub weight: u32,
    /// Changes to the request on the way to this cluster only.
    pub request_headers: HeaderChanges,
    /// Changes to the response from this cluster only.
    pub response_headers: HeaderChanges,
}

/// How a path is rewritten; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// The whole path.
    Full(Box<str>),
    /// The matched prefix (Gateway API ReplacePrefixMatch, by path segment).
    Prefix(Box<str>),
}

/// Where a redirect leads (Gateway API HTTPRequestRedirectFilter).
#[derive(Clone, Debug)]
pub struct Redirect {
    /// New scheme; default: the request's.
    pub scheme: Option<http::uri::Scheme>,
    /// New host; default: the request's.
    pub host: Option<Box<str>>,
    /// New port; default: none for a new scheme with its well-known port, else the request's.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Header changes, applied in this order: remove, set, add.
#[derive(Clone, Debug, Default)]
pub struct HeaderChanges {
    /// Removed.
    pub remove: Vec<HeaderName>,
    /// Overwritten or added.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appended.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

/// When and how often a request is tried again.
///
/// What the app provably never got is retried whatever the method; what it may have processed only for idempotent
/// methods (RFC 9110, 9.2.2) and for gRPC status codes named here.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Retries after the first attempt. 0: none.
    pub attempts: u32,
    /// Answers that count as failures, for idempotent methods: by default 502, 503, 504.
    pub status_codes: Vec<StatusCode>,
    /// Whether a reset before the first response byte is retried, for idempotent methods.
    pub on_reset: bool,
    /// gRPC status codes of trailers-only responses that are retried.
    pub grpc_codes: Vec<u32>,
    /// First back-off interval; doubles with each retry, fully jittered.
    pub backoff_base: Duration,
    /// Longest back-off interval.
    pub backoff_max: Duration,
    /// Bytes of the request body kept for replay; past that no more retries.
    pub max_replay_bytes: usize,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            status_codes: vec![
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ],
            on_reset: true,
            grpc_codes: Vec::new(),
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            max_replay_bytes: 64 * 1024,
        }
    }
}
