//! Turns a byte stream into an HTTP connection with a task of its own.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::AbortHandle;
use tulle_runtime::limits::Way;

use super::calm;
use super::crowd::{Load, relieve};
use super::pool::{ConnectionGuard, Http2Connection, Idle};
use super::{ConnectError, Target};
use crate::io::{Answers, FrameBounds, Frames, IoStream, Whose};
use crate::net::Reach;
use crate::settings::Bounds;
use crate::telemetry::Limit;
use crate::worker::Worker;

/// An idle HTTP/2 connection with streams on it is asked for a sign of life this often ...
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// ... and is broken when none comes within this.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Streams whose late frames are still expected after their client has left; the frames of others count as errors,
/// and too many errors end the connection.
const RESET_STREAMS: usize = 1_000;
/// For how long: of a sidecar that is short of memory they may come late.
const RESET_STREAMS_FOR: Duration = Duration::from_secs(10);

/// Runs hyper's futures on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// The task that drives an HTTP/1 connection; dropped, it takes the connection down.
#[derive(Debug)]
pub(super) struct Driver(Option<AbortHandle>);

impl Driver {
    /// Lets the task go on by itself.
    pub(super) fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

pub(super) async fn http1(
    mut io: IoStream,
    guard: ConnectionGuard,
    bounds: &Bounds,
) -> Result<Idle, ConnectError> {
    let probe = io.probe()?;
    let (io, asked) = Answers::new(io);
    let mut builder = http1::Builder::new();
    // What the head of an answer may take is also what is read ahead, and written behind, at most.
    builder.max_buf_size(bounds.head);
    if bounds.fields != Bounds::default().fields {
        // hyper's own number needs no allocation.
        builder.max_headers(bounds.fields);
    }
    let (sender, connection) = builder
        .handshake(TokioIo::new(io))
        .await
        .map_err(ConnectError::Handshake)?;
    let task = tokio::task::spawn_local(async move {
        let _guard = guard;
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(Idle {
        sender,
        asked,
        probe,
        task: Driver(Some(task.abort_handle())),
        since: Instant::now(),
    })
}

pub(super) async fn http2(
    io: IoStream,
    guard: ConnectionGuard,
    worker: &Worker,
    target: &Target,
) -> Result<Http2Connection, ConnectError> {
    let limits = worker.settings.http2;
    let way = match target.reach {
        Reach::App => Way::Near,
        Reach::Out => Way::Far,
    };
    let bounds = FrameBounds::new(&limits, worker.settings.patience.unread);
    let (io, calm) = Frames::new(io, Whose::Server, bounds);
    let (sender, mut connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        // Others may take PINGs for an attack: servers of gRPC end connections for one every few seconds. If they are gone,
        // the kernel says so.
        .keep_alive_interval(target.is_sidecar().then_some(KEEP_ALIVE_INTERVAL))
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_STREAMS_FOR)
        .max_local_error_reset_streams(limits.local_resets as usize)
        .max_header_list_size(limits.max_header_list)
        .initial_stream_window_size(limits.window(way))
        .initial_connection_window_size(limits.connection_window)
        .max_send_buf_size(limits.send_buffer as usize)
        .handshake(TokioIo::new(io))
        .await
        .map_err(ConnectError::Handshake)?;
    let max_streams = Rc::new(Cell::new(connection.current_max_send_streams()));
    calm.pieces().watch(limits.connection_window);
    let load = Rc::new(Load::new(
        calm.clone(),
        limits.local_resets,
        target.clone(),
        worker.limits.clone(),
    ));
    let relieving = relieve(load.clone(), worker.newest.clone(), worker.limits.clone());
    // A task of its own, which sleeps until there is something to see to: what drives the connection is woken for every request.
    let relieving = Driver(Some(tokio::task::spawn_local(relieving).abort_handle()));
    let driven = max_streams.clone();
    let told = worker.limits.clone();
    let target = target.clone();
    tokio::task::spawn_local(async move {
        let (_guard, _relieving) = (guard, relieving);
        let ended = std::future::poll_fn(|cx| {
            // hyper reads in a task of its own: else what its peer allows would only be known after the next request.
            calm.on_settings(cx.waker());
            let polled = Pin::new(&mut connection).poll(cx);
            driven.set(connection.current_max_send_streams());
            polled
        });
        let ended = ended.await;
        if let Err(error) = &ended {
            tracing::debug!(%error, "upstream connection ended");
        }
        if let Some(why) = calm.ended() {
            // hyper keeps the error to itself.
            target.reached(&told, calm::limit_of(why), "a connection to it is given up");
        } else if ended.is_err_and(|error| error.is_timeout()) {
            let what = "a connection to it is broken, because it answers no PING";
            target.reached(&told, Limit::H2KeepAlive, what);
        }
    });
    Ok(Http2Connection {
        sender,
        load,
        max_streams,
        most: limits.streams_upstream(way),
        since: Cell::new(Instant::now()),
    })
}
