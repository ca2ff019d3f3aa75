//! The app's own probes and hooks, which kubelet asks this sidecar for because the app's ports may be closed to it.
//!
//! The injector has put the originals into an environment variable, by the path that kubelet asks for now. A probe goes
//! to the app the way inbound traffic does, and means what kubelet makes it mean: an HTTP status from 200 to 399 where
//! redirects within the host have led, a TCP connection, or a gRPC health answer of `SERVING`. A hook has succeeded if it was heard: kubelet looks at no status of
//! its answer, either. As with kubelet, certificates of the app are not verified.

mod target;
pub(crate) mod unverified;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, LOCATION, TE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::net::{Reach, dial};
use crate::settings::Settings;
use target::{Target, rooted};

/// Requests of one HTTP probe: as kubelet, it is sent on nine times.
const MAX_REQUESTS: usize = 10;
/// Bytes of a health answer that are read.
const MAX_ANSWER: usize = 4096;

/// What paths of hooks begin with.
pub(crate) const HOOKS: &str = "/app-lifecycle/";

/// The originals, by the path that stands for each.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Probes(Arc<HashMap<String, Probe>>);

#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    #[serde(default = "one")]
    timeout_seconds: u64,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    port: u16,
    #[serde(default = "root")]
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct TcpSocket {
    port: u16,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Grpc {
    port: u16,
    #[serde(default)]
    service: String,
}

fn one() -> u64 {
    1
}

fn root() -> String {
    "/".to_owned()
}

impl FromStr for Probes {
    type Err = serde_json::Error;

    fn from_str(json: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(json)
    }
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No probe has this path.
    #[error("no probe of the app has this path")]
    Unknown,
    /// The app cannot be reached.
    #[error("could not connect to {0} ({1})")]
    Connect(SocketAddr, #[source] std::io::Error),
    /// The app does not speak HTTP there.
    #[error("no HTTP answer ({0})")]
    Http(#[from] hyper::Error),
    /// The probe cannot be made a request.
    #[error("the probe is no valid request ({0})")]
    Request(#[from] http::Error),
    /// The app answered that it is not well.
    #[error("the app answered {0}")]
    Status(StatusCode),
    /// Each answer sends the probe on to another.
    #[error("the app redirected {MAX_REQUESTS} times")]
    Redirects,
    /// The health answer is not `SERVING`.
    #[error("the app's health answer is not SERVING")]
    NotServing,
    /// Nothing came back in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl Probes {
    /// Asks the app what the probe of a path asks.
    ///
    /// # Errors
    ///
    /// Why the app is not well.
    pub async fn check(
        &self,
        path: &str,
        app: IpAddr,
        settings: &Settings,
    ) -> Result<(), ProbeError> {
        let probe = self.0.get(path).ok_or(ProbeError::Unknown)?;
        let limit = Duration::from_secs(probe.timeout_seconds);
        let asking = async {
            if let Some(http) = &probe.http_get {
                http.check(app, settings).await
            } else if let Some(grpc) = &probe.grpc {
                grpc.check(app, settings).await
            } else if let Some(tcp) = &probe.tcp_socket {
                connect(SocketAddr::new(app, tcp.port), settings)
                    .await
                    .map(drop)
            } else {
                Err(ProbeError::Unknown)
            }
        };
        let asked = tokio::time::timeout(limit, asking)
            .await
            .map_err(|_| ProbeError::Timeout(limit))?;
        match asked {
            Err(ProbeError::Status(_) | ProbeError::Redirects) if path.starts_with(HOOKS) => Ok(()),
            asked => asked,
        }
    }
}

async fn connect(address: SocketAddr, settings: &Settings) -> Result<TcpStream, ProbeError> {
    dial(settings, address, Reach::App)
        .await
        .map_err(|error| ProbeError::Connect(address, error))
}

impl HttpGet {
    async fn check(&self, app: IpAddr, settings: &Settings) -> Result<(), ProbeError> {
        let mut target = Target {
            tls: self.scheme.eq_ignore_ascii_case("https"),
            port: self.port,
            path: rooted(&self.path),
        };
        for _ in 0..MAX_REQUESTS {
            let answer = self.ask(&target, app, settings).await?;
            let status = answer.status();
            let location = answer.headers().get(LOCATION).filter(|_| sends_on(status));
            let location = location.and_then(|location| location.to_str().ok());
            match location.and_then(|location| target.follow(location, app)) {
                Some(next) => target = next,
                None if (200..400).contains(&status.as_u16()) => return Ok(()),
                None => return Err(ProbeError::Status(status)),
            }
        }
        Err(ProbeError::Redirects)
    }

    async fn ask(
        &self,
        target: &Target,
        app: IpAddr,
        settings: &Settings,
    ) -> Result<Response<Incoming>, ProbeError> {
        let address = SocketAddr::new(app, target.port);
        let mut request = Request::get(&*target.path).body(Empty::new())?;
        *request.headers_mut() = self.headers(address)?;
        let tcp = connect(address, settings).await?;
        if !target.tls {
            return ask_http1(tcp, request).await;
        }
        let connector = TlsConnector::from(unverified::config());
        let tls = connector.connect(unverified::name(app), tcp).await;
        let tls = tls.map_err(|error| ProbeError::Connect(address, error))?;
        ask_http1(tls, request).await
    }

    /// What the probe says, every value of a name, over what is said without it.
    fn headers(&self, address: SocketAddr) -> Result<HeaderMap, http::Error> {
        let mut headers = HeaderMap::new();
        for Header { name, value } in &self.http_headers {
            let name = HeaderName::try_from(name)?;
            // Of hosts there is one.
            if name != HOST || !headers.contains_key(HOST) {
                headers.append(name, HeaderValue::try_from(value)?);
            }
        }
        for (name, value) in [
            (HOST, address.to_string()),
            (USER_AGENT, "kube-probe/tulle".to_owned()),
        ] {
            if !headers.contains_key(&name) {
                headers.insert(name, HeaderValue::try_from(value)?);
            }
        }
        Ok(headers)
    }
}

/// Whether an answer of that status sends a client on.
fn sends_on(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

async fn ask_http1<I>(
    io: I,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, ProbeError>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    Ok(drive(sender.send_request(request), connection).await?)
}

impl Grpc {
    async fn check(&self, app: IpAddr, settings: &Settings) -> Result<(), ProbeError> {
        let address = SocketAddr::new(app, self.port);
        let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(USER_AGENT, "kube-probe/tulle")
            .body(Full::new(health_request(&self.service)))?;
        let tcp = connect(address, settings).await?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
        let answering = async {
            let response = sender.send_request(request).await?;
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await;
            Ok(body
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default())
        };
        let body = drive(answering, connection).await?;
        if is_serving(&body) {
            Ok(())
        } else {
            Err(ProbeError::NotServing)
        }
    }
}

/// `HealthCheckRequest { service }` in a gRPC frame.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Kubernetes' service names fit one length byte; a longer one is cut and will not be found.
        let name = &service.as_bytes()[..service.len().min(127)];
        message.extend_from_slice(&[0x0a, u8::try_from(name.len()).unwrap_or(127)]);
        message.extend_from_slice(name);
    }
    let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(u8::MAX)];
    frame.extend_from_slice(&message);
    frame.into()
}

/// Whether a gRPC frame holds `HealthCheckResponse { status: SERVING }`.
fn is_serving(frame: &[u8]) -> bool {
    frame
        .get(5..)
        .is_some_and(|message| message.starts_with(&[0x08, 0x01]))
}

/// Waits for an answer while driving the connection that it comes on.
pub(crate) async fn drive<T>(
    answering: impl Future<Output = hyper::Result<T>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> hyper::Result<T> {
    let driving = async {
        // Its error, if it is one, is the answer's too.
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = answering => answer,
        never = driving => never,
    }
}

#[cfg(test)]
mod tests;
