//! Routes of Services, of requests and of connections alike, in one shape.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{Kind, ObjectKey};

/// When an object was made, in microseconds since 1970; objects without a time sort after all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Created(pub i64);

impl Default for Created {
    fn default() -> Self {
        Self(i64::MAX)
    }
}

/// A route with at least one Service among its parents. One of connections has one rule, whose match is everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which kind it is.
    pub kind: RouteKind,
    /// Namespace and name.
    pub key: ObjectKey,
    /// When it was made: the older of two equal matches wins.
    pub created: Created,
    /// The Services whose traffic it routes.
    pub parents: Vec<Parent>,
    /// Rules, in the order of the manifest.
    pub rules: Vec<Rule>,
}

/// The kinds of routes; the greater one wins where both are attached to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// TCPRoute: connections.
    Tcp,
    /// TLSRoute: connections, too.
    Tls,
    /// HTTPRoute.
    Http,
    /// GRPCRoute.
    Grpc,
}

impl RouteKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Http, Self::Grpc];

    /// Whether connections are routed, not requests.
    #[must_use]
    pub fn is_opaque(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }
}

impl From<RouteKind> for Kind {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Http => Self::HttpRoute,
            RouteKind::Grpc => Self::GrpcRoute,
            RouteKind::Tcp => Self::TcpRoute,
            RouteKind::Tls => Self::TlsRoute,
        }
    }
}

/// A Service that a route is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The Service.
    pub service: ObjectKey,
    /// One of its ports; `None`: all.
    pub port: Option<u16>,
    /// One of its ports, by name; `None`: all.
    pub section: Option<Arc<str>>,
}

/// A rule: any of its matches leads to its action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// Never empty.
    pub matches: Vec<Match>,
    /// What happens.
    pub action: Action,
    /// Changes to the request, whichever backend gets it.
    pub request_headers: HeaderChanges,
    /// Changes to the response, whoever gave it.
    pub response_headers: HeaderChanges,
}

/// What a request must look like: all parts hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The path.
    pub path: PathMatch,
    /// The method.
    pub method: Option<Method>,
    /// Headers, sorted by name.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, sorted by name.
    pub query: Vec<QueryMatch>,
    /// For GRPCRoutes, which have an order of their own: how many characters of the service and of the method are named.
    pub named: (usize, usize),
}

impl Match {
    /// What every request looks like.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            named: (0, 0),
        }
    }
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// All of it.
    Exact(Arc<str>),
    /// Whole leading segments; without a slash at the end, except for `/` itself.
    Prefix(Arc<str>),
    /// All of it, by a regular expression that compiled.
    Regex(Arc<str>),
}

/// How a string is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// Byte for byte.
    Exact(Arc<str>),
    /// All of it, by a regular expression that compiled.
    Regex(Arc<str>),
}

/// A header that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: StringMatch,
}

/// A query parameter that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// Its name.
    pub name: Arc<str>,
    /// Its value.
    pub value: StringMatch,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes to one of the backends.
    Forward(Box<Forward>),
    /// It is sent elsewhere.
    Redirect(Redirect),
}

/// Forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Backends with their weights. None at all: 500.
    pub backends: Vec<Backend>,
    /// New `Host`.
    pub host_rewrite: Option<HeaderValue>,
    /// New path.
    pub path_rewrite: Option<PathRewrite>,
    /// The whole exchange. `Some(ZERO)`: no limit; `None`: not said.
    pub timeout: Option<Duration>,
    /// One attempt. `Some(ZERO)`: no limit; `None`: not said.
    pub backend_timeout: Option<Duration>,
    /// Retries; `None`: not said.
    pub retry: Option<Retry>,
}

/// Where requests of a rule go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// What it is.
    pub target: BackendTarget,
    /// Its share.
    pub weight: u32,
    /// Changes to requests on the way to it.
    pub request_headers: HeaderChanges,
    /// Changes to its responses.
    pub response_headers: HeaderChanges,
}

/// What a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTarget {
    /// A port of a Service, which may or may not exist.
    Service(ObjectKey, u16),
    /// Something that can never be a backend: 500.
    Invalid,
}

/// How a path is rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// All of it.
    Full(Arc<str>),
    /// The prefix that matched; the rule has prefix matches only.
    Prefix(Arc<str>),
}

/// Where a request is sent instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// New scheme, `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// New host.
    pub host: Option<Arc<str>>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Retries of a route (GEP-1731).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Retries after the first attempt.
    pub attempts: u32,
    /// Statuses that are retried, sorted.
    pub codes: Vec<StatusCode>,
    /// First back-off interval.
    pub backoff: Option<Duration>,
}

/// Header changes, applied in this order: remove, set, add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Removed.
    pub remove: Vec<HeaderName>,
    /// Overwritten or added.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appended.
    pub add: Vec<(HeaderName, HeaderValue)>,
}
