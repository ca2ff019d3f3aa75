//! Runs one client connection, until it ends or drains.

use std::cell::Cell;
use std::error::Error as _;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::header::UPGRADE;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tulle_runtime::limits::Way;

use super::body::ResponseBody;
use super::crowd::relieve;
use super::exchange::Connection;
use super::linger::Linger;
use super::stalls::Streams;
use super::{inbound, outbound, refused, unused};
use crate::conn::{Direction, Downstream, HttpVersion};
use crate::io::{Abrupt, Calm, FrameBounds, Frames, Gate, Guard, Heads, REFUSED, Whose};
use crate::settings::Bounds;
use crate::telemetry::Limit;
use crate::upstream::calm;
use crate::worker::Worker;

/// A client's HTTP/2 connection is asked for a sign of life this often ...
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// ... and is broken when none comes within this, if it comes from another sidecar, which always reads. What anybody else
/// has not read yet may be megabytes, before which no PING is answered: that has the time of what is left unread.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A draining HTTP/1 connection of a mesh peer is kept until it has been idle for this long: closing it earlier
/// would race with the peer's next request.
const DRAIN_IDLE: Duration = Duration::from_secs(2);

/// What hyper's HTTP/1 reads from and writes to.
pub(super) type Client<I> = Guard<Linger<I>>;

/// Serves the requests of one connection.
///
/// # Errors
///
/// When the connection ends otherwise than in peace.
pub async fn serve<I>(
    worker: Rc<Worker>,
    downstream: Downstream,
    io: I,
    version: HttpVersion,
) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Abrupt + Unpin + Send + 'static,
{
    let taking = worker.newest.taking();
    let io = Linger::new(io, taking.clone());
    let connection = Connection::new(worker, downstream, version).known_by(taking);
    match version {
        HttpVersion::Http1 => {
            let heads = refused::heads(&connection);
            let (io, gate): (Client<I>, _) = Guard::new(io, heads);
            let connection = Owned(Rc::new(connection.guarded_by(gate.clone())));
            let declined = Declined::default();
            let io = TokioIo::new(io);
            let served = serve_http1(&connection.0, io, gate.clone(), &declined).await;
            match served.as_ref().err() {
                Some(error) if !gate.is_late() && is_unread(error) => tell_unread(&connection.0),
                error => refused::tell(&connection.0, &gate, error),
            }
            served?;
            if let Some(tunnel) = connection.0.take_tunnel() {
                Box::pin(tunnel.run(&connection.0)).await;
            } else if let Some(declined) = declined.take() {
                close_declined(declined).await;
            }
            Ok(())
        }
        HttpVersion::Http2 => {
            let settings = &connection.worker.settings;
            let bounds = FrameBounds::new(&settings.http2, settings.patience.unread);
            let (io, calm) = Frames::new(io, Whose::Client, bounds);
            let connection = Rc::new(connection.calmed_by(calm.clone()));
            let served = tokio::select! {
                biased;
                served = serve_http2(connection.clone(), TokioIo::new(io)) => served,
                () = relieve(&connection) => Ok(()),
            };
            refused::tell_http2(&connection, &calm);
            if let Err(error) = &served {
                tell_http2(&connection, &calm, error);
            }
            served
        }
    }
}

/// Tells how an HTTP/2 connection ended, if its client is to blame.
fn tell_http2(connection: &Connection, calm: &Calm, error: &hyper::Error) {
    if let Some(limit) = calm::limit(calm, error) {
        connection.reached(limit, error);
    } else if calm::broken(error).is_some() {
        refused::malformed(connection, None, Some(error));
    } else if is_unread(error) {
        tell_unread(connection);
    } else if error.is_timeout() {
        let what = "a connection is broken whose client answers no PING";
        connection.reached(Limit::H2KeepAlive, what);
    }
}

/// Whether the kernel gave a connection up because its client took nothing for as long as it may.
fn is_unread(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        let io = io.or_else(|| error.downcast_ref::<h2::Error>()?.get_io());
        if let Some(io) = io {
            return io.kind() == io::ErrorKind::TimedOut;
        }
        cause = error.source();
    }
    false
}

/// Tells who left its answers unread.
fn tell_unread(connection: &Connection) {
    let what = "a connection is broken whose client does not read";
    connection.reached(Limit::Unread, what);
}

/// The connection as its task owns it: when that ends early, a tunnel that never began ends with it.
struct Owned(Rc<Connection>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.take_tunnel();
    }
}

pub(super) async fn handle(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, h2::Error> {
    match connection.downstream.direction {
        Direction::Outbound => Ok(outbound::serve(connection, request).await),
        Direction::Inbound => inbound::serve(connection, request).await,
    }
}

/// As [`handle`], and tells the guard whether the connection switches protocols, where the client asked for it.
async fn handle_http1(
    connection: Rc<Connection>,
    gate: Gate,
    declined: &Declined,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, h2::Error> {
    if let Some(refused) = gate.refused()
        && request.method().as_str() == REFUSED
    {
        return Ok(refused::answer(&connection, refused.why));
    }
    let asks = request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE);
    let offer = asks.then(|| request.extensions().get().cloned()).flatten();
    let answer = handle(connection, request).await;
    if asks {
        let status = answer.as_ref().map(Response::status);
        let switches = status.is_ok_and(|status| status == StatusCode::SWITCHING_PROTOCOLS);
        declined.set(offer.filter(|_| !switches));
        gate.answered(switches);
    }
    answer
}

/// What hyper hands the connection to when it ends after a request for another protocol, although that was declined.
type Declined = Cell<Option<OnUpgrade>>;

/// Closes a connection that hyper has handed over without need: not by dropping it, which could cost its last answer.
async fn close_declined(offer: OnUpgrade) {
    if let Ok(io) = offer.await {
        let _ = TokioIo::new(io).shutdown().await;
    }
}

async fn serve_http1<I>(
    connection: &Rc<Connection>,
    io: TokioIo<Client<I>>,
    gate: Gate,
    declined: &Declined,
) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Abrupt + Unpin + Send + 'static,
{
    let late = is_draining(connection);
    let service =
        service_fn(|request| handle_http1(connection.clone(), gate.clone(), declined, request));
    let bounds = connection.worker.settings.bounds;
    let mut builder = http1::Builder::new();
    // Whoever closes its side has given its request up, as far as anyone can tell. What a head may take is also what is read
    // ahead, and written behind, at most: hyper takes a connection that is fed fast up to it.
    builder
        .half_close(false)
        .max_buf_size(bounds.head + Heads::MORE);
    if bounds.fields != Bounds::default().fields {
        // hyper's own number needs no allocation.
        builder.max_headers(bounds.fields);
    }
    let serving = builder.serve_connection(io, service);
    let mut serving = pin!(serving.with_upgrades());
    tokio::select! {
        biased;
        ended = serving.as_mut() => return ended,
        () = draining(connection) => connection.close_after_answers(),
        limit = unused::unused(connection) => {
            unused::tell(connection, limit);
            if limit == Limit::FirstRequest {
                // hyper would wait for one all the same.
                return Ok(());
            }
            serving.as_mut().graceful_shutdown();
            return serving.await;
        }
    }
    if !late && !connection.downstream.is_mesh_peer() {
        serving.as_mut().graceful_shutdown();
        return serving.await;
    }
    tokio::select! {
        biased;
        ended = serving => ended,
        () = idle(connection) => Ok(()),
    }
}

async fn serve_http2<I>(connection: Rc<Connection>, io: TokioIo<I>) -> Result<(), hyper::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let late = is_draining(&connection);
    let limits = connection.worker.settings.http2;
    let way = match connection.downstream.direction {
        Direction::Outbound => Way::Near,
        Direction::Inbound => Way::Far,
    };
    let keep_alive_timeout = if connection.downstream.is_mesh_peer() {
        KEEP_ALIVE_TIMEOUT
    } else {
        connection.worker.settings.patience.unread
    };
    let service = service_fn(|request| handle(connection.clone(), request));
    let serving = http2::Builder::new(Streams(connection.clone()))
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(keep_alive_timeout)
        .max_concurrent_streams(limits.max_streams)
        .max_pending_accept_reset_streams(pending_resets(&connection))
        .max_local_error_reset_streams(limits.local_resets as usize)
        .max_header_list_size(limits.max_header_list)
        .initial_stream_window_size(limits.window(way))
        .initial_connection_window_size(limits.connection_window)
        .max_send_buf_size(limits.send_buffer as usize)
        .serve_connection(io, service);
    let mut serving = pin!(serving);
    tokio::select! {
        biased;
        ended = serving.as_mut() => return ended,
        () = idle(&connection), if late => serving.as_mut().graceful_shutdown(),
        () = draining(&connection), if !late => serving.as_mut().graceful_shutdown(),
        limit = unused::unused(&connection) => {
            unused::tell(&connection, limit);
            serving.as_mut().graceful_shutdown();
            // What its client has not taken of answers that are over is not waited for.
            return tokio::select! {
                biased;
                ended = serving => ended,
                () = idle(&connection) => Ok(()),
            };
        }
        (limit, what) = connection.is_unwanted() => {
            connection.reached(limit, what);
            serving.as_mut().graceful_shutdown();
        }
    }
    serving.await
}

/// Streams that a client may have reset before they were looked at; with one more the connection ends (CVE-2023-44487).
/// The app of this pod may give up as many at once as it may have open, and so may the sidecar that others share.
fn pending_resets(connection: &Connection) -> usize {
    let limits = &connection.worker.settings.http2;
    let trusted = connection.downstream.direction == Direction::Outbound
        || connection.downstream.is_mesh_peer();
    let limit = if trusted {
        limits.max_streams
    } else {
        limits.pending_resets
    };
    limit as usize
}

/// Whether a connection comes so late that the drain has begun: it is served all the same, because whoever opened it
/// has nowhere better to go.
fn is_draining(connection: &Connection) -> bool {
    connection.downstream.direction == Direction::Inbound && connection.worker.drain.is_draining()
}

/// Resolves when the connection should end: only inbound drains, the app may call out until it is gone.
async fn draining(connection: &Connection) {
    match connection.downstream.direction {
        Direction::Inbound => connection.worker.drain.draining().await,
        Direction::Outbound => std::future::pending().await,
    }
}

/// Resolves when nothing has been going on for long enough, counted from now.
async fn idle(connection: &Connection) {
    let begun = Instant::now();
    loop {
        let since = connection.idle_since().map(|since| since.max(begun));
        let until = since.unwrap_or_else(Instant::now) + DRAIN_IDLE;
        if since.is_some() && until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}
