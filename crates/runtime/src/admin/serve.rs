//! Connections of the admin server: bounded in number, in time and in bytes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::{Answer, Evicted, Request, Room, Route, Routes, check, text};
use crate::tasks::Tasks;

/// Time for a request's head, and again for its body; also how long an idle connection stays.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Life of a connection, whatever its client does: a client that does not read cannot hold it for ever.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Bytes of a request's body.
const MAX_BODY: usize = 64 * 1024;
/// Pause after accept has failed, as it does for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The open connections, the oldest first. One more than there is room for ends the oldest: whoever holds all of them must
/// not keep a probe waiting.
#[derive(Default)]
struct Places(VecDeque<(SocketAddr, oneshot::Sender<()>)>);

impl Places {
    /// A place for one more, which is told when it has to make room.
    fn take(&mut self, client: SocketAddr, room: &Room) -> oneshot::Receiver<()> {
        if self.0.len() >= room.most {
            self.0.retain(|(_, place)| !place.is_closed());
        }
        if self.0.len() >= room.most
            && let Some((oldest, place)) = self.0.pop_front()
            && place.send(()).is_ok()
        {
            (room.full)(Evicted { client, oldest });
        }
        let (place, taken) = oneshot::channel();
        self.0.push_back((client, place));
        taken
    }
}

pub(super) async fn accept_loop(
    listener: TcpListener,
    routes: Arc<Routes>,
    room: Room,
    name: &'static str,
    tasks: Tasks,
) {
    let accept = async {
        let mut places = Places::default();
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    let taken = places.take(client, &room);
                    let connection = serve_connection(stream, routes.clone(), tasks.clone());
                    tasks.spawn_connection(name, async move {
                        tokio::select! {
                            () = connection => {}
                            Ok(()) = taken => tracing::debug!("an admin connection made room for another"),
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = tasks.cancelled() => {}
        () = accept => {}
    }
}

async fn serve_connection(stream: TcpStream, routes: Arc<Routes>, tasks: Tasks) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(answer(&routes, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = async {
        tokio::select! {
            biased;
            result = connection.as_mut() => return result,
            () = tasks.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    match tokio::time::timeout(CONNECTION_LIFETIME, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended badly"),
        Err(_) => tracing::debug!("an admin connection reached its time limit"),
    }
}

pub(super) async fn answer<B>(routes: &Routes, request: hyper::Request<B>) -> Answer
where
    B: hyper::body::Body<Data = bytes::Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    if let Err(reason) = check::admit(&head, &routes.hosts) {
        return text(StatusCode::FORBIDDEN, reason);
    }
    let path = head.uri.path();
    let here: Vec<&Route> = routes
        .routes
        .iter()
        .filter(|route| matches(&route.path, path))
        .collect();
    let wanted = if head.method == Method::HEAD {
        &Method::GET
    } else {
        &head.method
    };
    let Some(route) = here.iter().find(|route| route.method == *wanted) else {
        return refuse(routes, &here);
    };
    let body =
        match tokio::time::timeout(READ_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => {
                return text(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("cannot read the body: {error}\n"),
                );
            }
            Err(_) => {
                return text(
                    StatusCode::REQUEST_TIMEOUT,
                    "the body did not arrive in time\n",
                );
            }
        };
    let request = Request {
        path: path.to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    };
    (route.handler)(request).await
}

/// No route fits; `here` are those of the path, with other methods.
fn refuse(routes: &Routes, here: &[&Route]) -> Answer {
    if here.is_empty() {
        let known: Vec<String> = routes
            .routes
            .iter()
            .map(|route| format!("{} {}\n", route.method, route.path))
            .collect();
        let list = format!("nothing here; there is:\n{}", known.concat());
        return text(StatusCode::NOT_FOUND, list);
    }
    let allowed: Vec<&str> = here.iter().map(|route| route.method.as_str()).collect();
    let allowed = allowed.join(", ");
    let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
    if let Ok(allowed) = header::HeaderValue::try_from(allowed) {
        refusal.headers_mut().insert(header::ALLOW, allowed);
    }
    refusal
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}
