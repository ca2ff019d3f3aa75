//! A small HTTP/1 server for operators: readiness, metrics, debug views, a few switches.
//!
//! It is made so that nothing in the pod, in a browser or on the network can abuse it: it binds loopback unless told
//! otherwise, believes only a `Host` that is an IP address or loopback name (DNS rebinding), takes no `POST` that a
//! browser sent, and bounds heads, bodies, time and connections.

mod check;
mod refusals;
mod serve;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::Full;
use tokio::net::TcpListener;

use crate::listen;
use crate::tasks::Tasks;

pub use refusals::Refusals;
use serve::Server;

/// Connections that a server takes unless it is told otherwise.
pub const CONNECTIONS: usize = 64;

/// What a handler answers with; see [`text`] and [`json`].
pub type Answer = Response<Full<Bytes>>;

type Handler = Arc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Why an admin server could not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is not loopback, and nobody said that it may be.
    #[error(
        "admin address {0} is not loopback: it would be open to the network; use 127.0.0.1 or [::1]"
    )]
    Exposed(SocketAddr),
    /// The address could not be bound.
    #[error("cannot listen on admin address {address}: is another process using the port?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A request as a handler sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The path, without the query.
    pub path: String,
    /// The query, without the question mark; empty if there is none.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most 64 KiB.
    pub body: Bytes,
}

/// A bound server that does not serve yet: add routes, then call [`AdminServer::serve`].
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
    routes: Routes,
    room: Room,
    refusals: Refusals,
}

/// One connection came for which there was no room, and the oldest had to go for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// Who opened the one that came.
    pub client: SocketAddr,
    /// Who had opened the one that went.
    pub oldest: SocketAddr,
}

/// How many connections there may be, and who is told of one more.
struct Room {
    most: usize,
    full: Box<dyn Fn(Evicted) + Send + Sync>,
}

#[derive(Clone, Default)]
struct Routes {
    routes: Vec<Route>,
    hosts: Vec<String>,
    /// Whether routes that are added now are for loopback only.
    inside: bool,
}

#[derive(Clone)]
struct Route {
    method: Method,
    path: String,
    handler: Handler,
    /// Only there for whoever comes by way of loopback.
    inside: bool,
}

impl AdminServer {
    /// Binds a loopback address.
    ///
    /// # Errors
    /// If the address is not loopback, or cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        if !address.ip().is_loopback() {
            return Err(AdminError::Exposed(address));
        }
        Self::bind_exposed(address).await
    }

    /// Binds any address: for readiness and metrics, which kubelet and Prometheus ask for from elsewhere. All else belongs
    /// behind [`AdminServer::inside`].
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind_exposed(address: SocketAddr) -> Result<Self, AdminError> {
        let bind_error = |source| AdminError::Bind { address, source };
        let listener = listen::bind(address).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        Ok(Self {
            listener,
            address,
            routes: Routes::default(),
            room: Room {
                most: CONNECTIONS,
                full: Box::new(|_| ()),
            },
            refusals: Refusals::default(),
        })
    }

    /// The address that it really listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Also believes this DNS name in `Host` (a Service name under which a server is scraped).
    pub fn allow_host(&mut self, name: impl Into<String>) -> &mut Self {
        self.routes.hosts.push(name.into().to_ascii_lowercase());
        self
    }

    /// Routes that are added from now on are only there for whoever comes by way of loopback.
    pub fn inside(&mut self) -> &mut Self {
        self.routes.inside = true;
        self
    }

    /// Takes so many connections at a time; one more ends the oldest, and is told.
    pub fn room(
        &mut self,
        most: usize,
        full: impl Fn(Evicted) + Send + Sync + 'static,
    ) -> &mut Self {
        self.room = Room {
            most,
            full: Box::new(full),
        };
        self
    }

    /// Counts with these what it refuses.
    pub fn refusals(&mut self, refusals: Refusals) -> &mut Self {
        self.refusals = refusals;
        self
    }

    /// Answers `GET` (and `HEAD`) of a path. A path that ends in `*` stands for all that begin like it.
    pub fn get<F>(
        &mut self,
        path: impl Into<String>,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> &mut Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        self.route(Method::GET, path, handler)
    }

    /// Answers `POST` of a path. A path that ends in `*` stands for all that begin like it.
    pub fn post<F>(
        &mut self,
        path: impl Into<String>,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> &mut Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        self.route(Method::POST, path, handler)
    }

    /// Serves until the tasks are cancelled; requests that are being answered then are finished.
    pub fn serve(self, name: &'static str, tasks: &Tasks) {
        tracing::debug!(address = %self.address, server = name, "admin server listens");
        tasks.spawn(
            name,
            serve::accept_loop(
                self.listener,
                Arc::new(Server {
                    name,
                    routes: self.routes,
                    refusals: self.refusals,
                }),
                self.room,
                tasks.clone(),
            ),
        );
    }

    /// What a request gets, without a connection: for fuzz targets.
    #[cfg(feature = "fuzz")]
    pub async fn answer(&self, request: http::Request<Full<Bytes>>) -> Answer {
        let server = Server {
            name: "fuzz",
            routes: self.routes.clone(),
            refusals: self.refusals.clone(),
        };
        let inside = self.address.ip().is_loopback();
        serve::answer(&server, self.address, inside, request).await
    }

    fn route<F>(
        &mut self,
        method: Method,
        path: impl Into<String>,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> &mut Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        self.routes.routes.push(Route {
            method,
            path: path.into(),
            handler,
            inside: self.routes.inside,
        });
        self
    }
}

impl fmt::Debug for AdminServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A plain-text answer.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

/// A JSON answer.
#[must_use]
pub fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => typed(StatusCode::OK, "application/json", body),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("cannot write this as JSON: {error}\n"),
        ),
    }
}

/// An answer of any content type.
#[must_use]
pub fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    answer
}

#[cfg(test)]
mod tests;
