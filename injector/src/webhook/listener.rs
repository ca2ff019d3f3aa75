//! Connections: accepted, spoken TLS with, served over HTTP/2 or HTTP/1.1, and ended in order.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tulle_http2_guard::{FrameBounds, Frames, Whose};
use tulle_identity::{ClientAuth, Identity};
use tulle_runtime::drain::DrainWatch;
use tulle_runtime::tasks::Tasks;

use super::Webhook;
use super::connections::{Connections, Open};

/// Pause after accept has failed, as it does for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Requests on a connection of HTTP/2 at a time; the API server has one connection for all.
const STREAMS: u32 = 128;
/// Head of a request: that of HTTP/1, and the fields of one on HTTP/2.
const HEAD: usize = 16 << 10;
/// Control frames of HTTP/2 on a connection beyond what its messages need.
const CONTROL_FRAMES: u32 = 1000;
/// How long a client may take nothing of what waits for it.
const UNREAD: Duration = Duration::from_secs(30);
/// How often a silent connection is asked whether anybody is there, and how long that may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Bytes of a body that may be under way, and of all bodies of a connection.
const AHEAD: (u32, u32) = (256 << 10, 4 << 20);
/// Protocols, the best first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Serves until the drain begins; connections end after what they have begun.
pub(crate) async fn serve(
    listener: TcpListener,
    webhook: Arc<Webhook>,
    identity: Identity,
    drain: DrainWatch,
    tasks: Tasks,
) {
    let live = Arc::new(Live {
        identity,
        config: Mutex::new(None),
    });
    let mut connections = Connections::new(webhook.bounds.connections);
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.draining() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(left_out) = webhook.files_told.pass() {
                    tracing::warn!(%error, left_out, "cannot accept a connection of the API server");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(open) = connections.take(client.ip().to_canonical()) else {
            webhook.no_room(client.ip());
            continue;
        };
        let served = connection(
            stream,
            client,
            webhook.clone(),
            live.clone(),
            open,
            drain.clone(),
        );
        tasks.spawn_connection("webhook", served);
    }
}

/// The identity, and the configuration of its present generation.
#[derive(Debug)]
struct Live {
    identity: Identity,
    config: Mutex<Option<(u64, Arc<ServerConfig>)>>,
}

impl Live {
    fn config(&self) -> Arc<ServerConfig> {
        let current = self.identity.load();
        let mut config = self.config.lock();
        match &*config {
            Some((generation, config)) if *generation == current.generation() => config.clone(),
            _ => {
                let made = current.server(ClientAuth::None, &ALPN);
                *config = Some((current.generation(), made.clone()));
                made
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    webhook: Arc<Webhook>,
    live: Arc<Live>,
    open: Arc<Open>,
    drain: DrainWatch,
) {
    let handshake = async {
        stream.set_nodelay(true)?;
        TlsAcceptor::from(live.config()).accept(stream).await
    };
    let handshake = tokio::time::timeout(webhook.bounds.receive, handshake);
    let shaken = tokio::select! {
        biased;
        () = open.given_up.cancelled() => {
            webhook.metrics.connection_given_up();
            return;
        }
        shaken = handshake => shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
    };
    match shaken {
        Ok(tls) => served(tls, client, webhook, open, drain).await,
        Err(error) => webhook.handshake_failed(client, &error),
    }
}

async fn served(
    tls: TlsStream<TcpStream>,
    client: SocketAddr,
    webhook: Arc<Webhook>,
    open: Arc<Open>,
    drain: DrainWatch,
) {
    let spoken = speak(tls, client, webhook.clone(), open.clone(), &drain);
    let ended = tokio::select! {
        biased;
        ended = spoken => ended,
        () = open.untaken(webhook.bounds.receive) => {
            open.given_up.cancel();
            Ok(())
        }
    };
    if open.given_up.is_cancelled() {
        webhook.metrics.connection_given_up();
    }
    if let Err(error) = ended {
        tracing::debug!(client.addr = %client, %error, "a connection ended badly");
    }
}

/// Takes requests and answers them.
async fn speak(
    tls: TlsStream<TcpStream>,
    client: SocketAddr,
    webhook: Arc<Webhook>,
    open: Arc<Open>,
    drain: &DrainWatch,
) -> hyper::Result<()> {
    let is_h2 = tls.get_ref().1.alpn_protocol() == Some(ALPN[0]);
    let receive = webhook.bounds.receive;
    let requests = open.clone();
    let service = service_fn(move |request| {
        let (webhook, open, busy) = (webhook.clone(), requests.clone(), requests.request());
        async move {
            let answer = webhook.answer(client, &open, request).await;
            drop(busy);
            Ok::<_, Infallible>(answer)
        }
    });
    if is_h2 {
        let bounds = FrameBounds {
            control_frames: CONTROL_FRAMES,
            header_list: HEAD as u32,
            patience: UNREAD,
        };
        let (io, _calm) = Frames::new(tls, Whose::Client, bounds);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEAD as u32)
            .initial_stream_window_size(AHEAD.0)
            .initial_connection_window_size(AHEAD.1)
            .keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = leaving(&open, drain) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(receive)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(tls), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = leaving(&open, drain) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }
}

/// Resolves when the connection should end after what it has begun.
async fn leaving(open: &Open, drain: &DrainWatch) {
    tokio::select! {
        () = open.given_up.cancelled() => {}
        () = drain.draining() => {}
    }
}

impl Webhook {
    fn no_room(&self, client: IpAddr) {
        self.metrics.connection_given_up();
        if let Some(left_out) = self.full_told.pass() {
            tracing::warn!(
                client.addr = %client, left_out,
                "all connections are at work, and one more is closed: raise --max-connections, or add a replica"
            );
        }
    }

    fn handshake_failed(&self, client: SocketAddr, error: &io::Error) {
        self.metrics.handshake_failed();
        if let Some(left_out) = self.failures_told.pass(&(), client.ip()) {
            tracing::info!(client.addr = %client, %error, left_out, "TLS handshake failed");
        }
    }
}
