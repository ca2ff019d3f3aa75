//! Connections of the admin server: bounded in number, in time and in bytes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Method, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::refusals::{Reason, Refusals};
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

/// What the connections of a server have in common.
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) routes: Routes,
    pub(super) refusals: Refusals,
}

/// A request that is not answered as it wants: why, and what its client is told.
type Refused = (Reason, Answer);

pub(super) async fn accept_loop(
    listener: TcpListener,
    server: Arc<Server>,
    room: Room,
    tasks: Tasks,
) {
    let accept = async {
        let mut places = Places::default();
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    let taken = places.take(client, &room);
                    let connection =
                        serve_connection(stream, client, server.clone(), tasks.clone());
                    tasks.spawn_connection(server.name, async move {
                        tokio::select! {
                            () = connection => {}
                            Ok(()) = taken => tracing::debug!("an admin connection made room for another"),
                        }
                    });
                }
                Err(error) => {
                    server.refusals.accept(server.name, &error);
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

async fn serve_connection(
    stream: TcpStream,
    client: SocketAddr,
    server: Arc<Server>,
    tasks: Tasks,
) {
    let of_all = server.clone();
    let inside = is_inside(&stream, client);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(answer(&server, client, inside, request).await) }
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
        Ok(Err(error)) if error.is_parse() => of_all.refusals.unread(of_all.name, client, &error),
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended badly"),
        Err(_) => tracing::debug!("an admin connection reached its time limit"),
    }
}

/// Whether both ends of a connection are on loopback, which nothing from elsewhere can be.
fn is_inside(stream: &TcpStream, client: SocketAddr) -> bool {
    let is_loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
    is_loopback(client) && stream.local_addr().is_ok_and(is_loopback)
}

/// What a request gets; a refusal is counted and told.
pub(super) async fn answer<B>(
    server: &Server,
    client: SocketAddr,
    inside: bool,
    request: hyper::Request<B>,
) -> Answer
where
    B: hyper::body::Body<Data = bytes::Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    match serve(&server.routes, inside, &head, body).await {
        Ok(answer) => answer,
        Err((reason, answer)) => {
            server.refusals.request(server.name, client, reason, &head);
            answer
        }
    }
}

async fn serve<B>(routes: &Routes, inside: bool, head: &Parts, body: B) -> Result<Answer, Refused>
where
    B: hyper::body::Body<Data = bytes::Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    check::admit(head, &routes.hosts).map_err(|(reason, why)| refused(reason, why))?;
    let path = head.uri.path();
    let visible = routes.routes.iter().filter(|route| inside || !route.inside);
    let here: Vec<&Route> = visible
        .clone()
        .filter(|route| matches(&route.path, path))
        .collect();
    let wanted = if head.method == Method::HEAD {
        &Method::GET
    } else {
        &head.method
    };
    let Some(route) = here.iter().find(|route| route.method == *wanted) else {
        return Err(unrouted(visible, &here));
    };
    let collected = Limited::new(body, MAX_BODY).collect();
    let body = match tokio::time::timeout(READ_TIMEOUT, collected).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            let reason = if error.is::<LengthLimitError>() {
                Reason::BodyTooLarge
            } else {
                Reason::BadBody
            };
            return Err(refused(reason, format!("cannot read the body: {error}\n")));
        }
        Err(_) => {
            let why = "the body did not arrive in time\n";
            return Err(refused(Reason::BodyTimeout, why));
        }
    };
    let request = Request {
        path: path.to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers.clone(),
        body,
    };
    Ok((route.handler)(request).await)
}

fn refused(reason: Reason, why: impl Into<bytes::Bytes>) -> Refused {
    (reason, text(reason.status(), why))
}

/// No route fits; `here` are those of the path, with other methods.
fn unrouted<'a>(visible: impl Iterator<Item = &'a Route>, here: &[&Route]) -> Refused {
    if here.is_empty() {
        let known: Vec<String> = visible
            .map(|route| format!("{} {}\n", route.method, route.path))
            .collect();
        let list = format!("nothing here; there is:\n{}", known.concat());
        return refused(Reason::NotFound, list);
    }
    let allowed: Vec<&str> = here.iter().map(|route| route.method.as_str()).collect();
    let allowed = allowed.join(", ");
    let (reason, mut answer) = refused(Reason::Method, format!("use {allowed}\n"));
    if let Ok(allowed) = header::HeaderValue::try_from(allowed) {
        answer.headers_mut().insert(header::ALLOW, allowed);
    }
    (reason, answer)
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}
