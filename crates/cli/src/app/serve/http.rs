//! HTTP/1.1 and HTTP/2 without TLS on one port, told apart by the preface; gRPC goes on to its services.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRAILER, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::body::Body;
use tulle_runtime::drain::DrainWatch;
use tulle_runtime::tasks::Tasks;

use super::knobs::{Knobs, query};
use super::{App, grpc};
use crate::app::headers;

/// The connection is to end without an answer.
#[derive(Debug, thiserror::Error)]
#[error("aborted, as the request asked")]
pub(super) struct Aborted;

/// Serves one connection until it ends, or until a drain has let it finish.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    app: Arc<App>,
    tasks: Tasks,
    watch: DrainWatch,
    http2_only: bool,
) {
    let services = grpc::Services::new(app.clone());
    let service = service_fn(move |request| {
        let (app, tasks, services) = (app.clone(), tasks.clone(), services.clone());
        async move { handle(request, peer, app, tasks, services).await }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // A client that has sent all it has to say still wants its answer.
    builder.http1().half_close(true);
    if http2_only {
        builder = builder.http2_only();
    }
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // A connection that has ended needs no drain. How it ended is the client's to judge.
        biased;
        _ = connection.as_mut() => return,
        () = watch.draining() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn handle(
    request: Request<Incoming>,
    peer: SocketAddr,
    app: Arc<App>,
    tasks: Tasks,
    services: grpc::Services,
) -> Result<Response<Body>, Aborted> {
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    if content_type.starts_with(b"application/grpc") {
        return Ok(services.call(request, peer).await);
    }
    if request.headers().contains_key(UPGRADE) && request.version() < http::Version::HTTP_2 {
        return Ok(upgrade(request, &tasks));
    }
    let (parts, body) = request.into_parts();
    let behaviour = app.behaviour.read().clone();
    let knobs = match Knobs::of_request(&behaviour, &parts) {
        Ok(knobs) => knobs,
        Err(problem) => return Ok(text(StatusCode::BAD_REQUEST, problem)),
    };
    let mut response = match parts.uri.path() {
        "/ready" => ready(&app),
        "/count" => count(&app, &knobs),
        "/counts" => counts(&app, &parts),
        "/behave" => behave(&app, knobs),
        "/echo" => {
            let mut response = Response::new(Body::new(body));
            sign(&app, &parts, response.headers_mut());
            response
        }
        _ => answer(&app, peer, &parts, body, knobs).await?,
    };
    if parts.method == Method::HEAD {
        // hyper leaves the body out in HTTP/1 only.
        let length = response.body().size_hint().exact();
        *response.body_mut() = Body::default();
        if let Some(length) = length {
            let headers = response.headers_mut();
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
    Ok(response)
}

fn ready(app: &App) -> Response<Body> {
    if *app.ready.borrow() {
        text(StatusCode::OK, "ready\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

fn count(app: &App, knobs: &Knobs) -> Response<Body> {
    match &knobs.id {
        Some(id) => document(&json!({ "id": id, "count": app.counts.get(id) })),
        None => text(
            StatusCode::BAD_REQUEST,
            "which request? write /count?id=ID\n",
        ),
    }
}

fn counts(app: &App, parts: &Parts) -> Response<Body> {
    let prefix = query(parts)
        .find(|(name, _)| name == "prefix")
        .map(|(_, value)| value);
    let counts = app.counts.with_prefix(&prefix.unwrap_or_default());
    document(&json!({ "pod": app.pod, "counts": counts }))
}

fn behave(app: &App, knobs: Knobs) -> Response<Body> {
    if let Some(ready) = knobs.ready {
        app.ready.send_replace(ready);
    }
    *app.behaviour.write() = Knobs { id: None, ..knobs };
    text(StatusCode::OK, "behaving as asked from now on\n")
}

async fn answer(
    app: &App,
    peer: SocketAddr,
    parts: &Parts,
    body: Incoming,
    knobs: Knobs,
) -> Result<Response<Body>, Aborted> {
    if let Some(id) = &knobs.id {
        app.counts.add(id);
    }
    let received = if knobs.early {
        Received::default()
    } else {
        Received::read(body).await?
    };
    tokio::time::sleep(knobs.latency).await;
    let fails = knobs.fails();
    if fails && knobs.abort {
        return Err(Aborted);
    }
    let mut response = match knobs.size {
        Some(size) => made_up(size, &knobs),
        None => document(&report(app, peer, parts, &received)),
    };
    if fails {
        *response.status_mut() =
            StatusCode::from_u16(knobs.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    }
    sign(app, parts, response.headers_mut());
    if let Some((name, _)) = &knobs.trailer {
        response
            .headers_mut()
            .insert(TRAILER, HeaderValue::from(name.clone()));
    }
    if knobs.close && parts.version < http::Version::HTTP_2 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(match knobs.trailer {
        Some((name, value)) => response.map(|body| {
            let trailers = HeaderMap::from_iter([(name, value)]);
            let body = body.with_trailers(std::future::ready(Some(Ok(trailers))));
            // A body of known length would go out with a content-length, and HTTP/1 has trailers only without one.
            Body::new(StreamBody::new(BodyStream::new(body)))
        }),
        None => response,
    })
}

/// What arrived after the head.
#[derive(Debug, Default)]
struct Received {
    length: u64,
    trailers: HeaderMap,
}

impl Received {
    async fn read(mut body: Incoming) -> Result<Self, Aborted> {
        let mut received = Self::default();
        while let Some(frame) = body.frame().await {
            // A request that breaks off has nobody left to answer.
            match frame.map_err(|_| Aborted)?.into_data() {
                Ok(data) => received.length += data.len() as u64,
                Err(frame) => received
                    .trailers
                    .extend(frame.into_trailers().unwrap_or_default()),
            }
        }
        Ok(received)
    }
}

fn report(app: &App, peer: SocketAddr, parts: &Parts, received: &Received) -> Value {
    json!({
        "name": app.name,
        "version": app.version,
        "pod": app.pod,
        "protocol": protocol(parts),
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query(),
        "authority": parts.uri.authority().map(http::uri::Authority::as_str),
        "headers": listed(&parts.headers),
        "peer": peer.to_string(),
        "bodyLength": received.length,
        "trailers": listed(&received.trailers),
    })
}

/// Values by name; several of one name with commas between.
pub(crate) fn listed(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut listed = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        match listed.get_mut(name.as_str()) {
            Some(all) => {
                all.push_str(", ");
                all.push_str(&value);
            }
            None => {
                listed.insert(name.to_string(), value.into_owned());
            }
        }
    }
    listed
}

fn protocol(parts: &Parts) -> String {
    format!("{:?}", parts.version)
}

/// A body of `size` bytes in equal pieces.
fn made_up(size: usize, knobs: &Knobs) -> Response<Body> {
    let filler = Bytes::from(vec![b'x'; size.div_ceil(knobs.chunks)]);
    if knobs.chunks == 1 {
        return Response::new(Body::new(Full::new(filler)));
    }
    let interval = knobs.interval;
    let pieces = stream::unfold((size, true), move |(left, first)| {
        let piece = filler.slice(..left.min(filler.len()));
        async move {
            if piece.is_empty() {
                return None;
            }
            if !first {
                tokio::time::sleep(interval).await;
            }
            let left = left - piece.len();
            Some((
                Ok::<_, std::convert::Infallible>(Frame::data(piece)),
                (left, false),
            ))
        }
    });
    Response::new(Body::new(StreamBody::new(pieces)))
}

/// Who answered.
fn sign(app: &App, parts: &Parts, headers: &mut HeaderMap) {
    let protocol = protocol(parts);
    let pairs = [
        (headers::NAME, &app.name),
        (headers::VERSION, &app.version),
        (headers::POD, &app.pod),
        (headers::PROTOCOL, &protocol),
    ];
    for (name, value) in pairs {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// Agrees to whatever protocol the client names, and echoes.
fn upgrade(mut request: Request<Incoming>, tasks: &Tasks) -> Response<Body> {
    let upgraded = hyper::upgrade::on(&mut request);
    tasks.spawn_connection("upgrade", async move {
        // A client that went away before the upgrade has nothing to be echoed.
        let Ok(upgraded) = upgraded.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        if tokio::io::copy(&mut read, &mut write).await.is_ok() {
            let _ = write.shutdown().await;
        }
    });
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = request.headers().get(UPGRADE) {
        headers.insert(UPGRADE, protocol.clone());
    }
    response
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn document(value: &Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, format!("{value}\n"));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
