//! The port that proxies speak to: TLS of the mesh, a client certificate asked for but not required.
//!
//! Our own acceptor under tonic's server, so that each handshake uses the certificate and the roots of that moment, and
//! each request knows who is on the other end.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tulle_identity::{ClientAuth, Identity, peer_id};
use tulle_runtime::tasks::Tasks;

use crate::discovery::Peer;

/// Handshakes at a time; more wait in the kernel's queue.
const HANDSHAKES: usize = 1024;
/// How long the oldest of them may keep others waiting: whoever says nothing must not keep out who does.
const KEEPS_WAITING: Duration = Duration::from_secs(2);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection lives no longer than this, whatever its certificate says.
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 16_384;
/// Of these, connections without a client certificate; more are closed, so that the others have room.
const ANONYMOUS: usize = 1024;
/// How long a connection without a client certificate lives: it is good for one certificate request.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(30);
/// Pause after accept has failed, as it does for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection whose other end is known. It ends with the certificate that opened it, so that nobody lives on an identity
/// that he could not show again.
#[derive(Debug)]
pub(crate) struct Connection {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    expires: Pin<Box<Sleep>>,
    /// The room that it takes, given back when it ends.
    _places: Places,
}

/// Room of one connection among all, and among those without a certificate if it is one of them.
type Places = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

/// How many connections there may be, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Connections at a time; more wait in the kernel's queue.
    pub(crate) connections: usize,
    /// Of these, connections without a client certificate; more are closed.
    pub(crate) anonymous: usize,
    /// How long a connection without a client certificate lives.
    pub(crate) anonymous_life: Duration,
    /// Handshakes at a time; more wait in the kernel's queue.
    pub(crate) handshakes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            anonymous: ANONYMOUS,
            anonymous_life: ANONYMOUS_LIFE,
            handshakes: HANDSHAKES,
        }
    }
}

/// What the port counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    failed: Counter,
    reached: Family<Reached, Counter>,
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reached {
    limit: &'static str,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "TLS handshakes of proxies that failed or took too long";
        registry.register("xds_handshake_failures", help, metrics.failed.clone());
        let help = "How often a limit on connections of proxies was reached, by limit";
        registry.register("control_limits_reached", help, metrics.reached.clone());
        metrics
    }

    fn reached(&self, limit: &'static str) {
        self.reached.get_or_create(&Reached { limit }).inc();
    }
}

/// Accepts connections until the tasks are cancelled or the receiver is dropped.
pub(crate) fn accept(
    listener: TcpListener,
    identity: Identity,
    tasks: &Tasks,
    metrics: Metrics,
    bounds: Bounds,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (connections, incoming) = mpsc::channel(1);
    let acceptor = Arc::new(Acceptor {
        identity,
        config: Mutex::new(None),
        metrics,
        connections: Arc::new(Semaphore::new(bounds.connections)),
        anonymous: Arc::new(Semaphore::new(bounds.anonymous)),
        anonymous_life: bounds.anonymous_life,
        handshakes: Arc::new(Handshakes::new(bounds.handshakes)),
    });
    let (owner, cancelled) = (tasks.clone(), tasks.cancelled());
    tasks.spawn("xds-listener", async move {
        tokio::select! {
            () = cancelled => {}
            () = connections.closed() => {}
            () = accept_loop(listener, acceptor, &connections, &owner) => {}
        }
    });
    incoming
}

async fn accept_loop(
    listener: TcpListener,
    acceptor: Arc<Acceptor>,
    connections: &mpsc::Sender<io::Result<Connection>>,
    tasks: &Tasks,
) {
    let handshakes = &acceptor.handshakes;
    loop {
        handshakes
            .room(|| acceptor.metrics.reached("handshakes"))
            .await;
        let place = take(&acceptor.connections, || acceptor.reached()).await;
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of a proxy");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let handshaking = Handshakes::begin(handshakes);
        let (acceptor, connections) = (acceptor.clone(), connections.clone());
        tasks.spawn_connection("xds-handshake", async move {
            let handshake =
                tokio::time::timeout(HANDSHAKE, acceptor.handshake(stream, address, place));
            let ended = tokio::select! {
                biased;
                ended = handshake => ended.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                () = handshaking.given_up.cancelled() => {
                    Err(io::Error::other("others waited for its handshake to end"))
                }
            };
            match ended {
                // Nobody listens any more while the server is shutting down.
                Ok(connection) => drop(connections.send(Ok(connection)).await),
                Err(error) => {
                    acceptor.metrics.failed.inc();
                    tracing::info!(client.addr = %address, %error, "TLS handshake failed");
                }
            }
            drop(handshaking);
        });
    }
}

/// Waits for room; if it has to, `tell` is told.
async fn take(places: &Arc<Semaphore>, tell: impl FnOnce()) -> OwnedSemaphorePermit {
    if let Ok(place) = places.clone().try_acquire_owned() {
        return place;
    }
    tell();
    let place = places.clone().acquire_owned().await;
    place.expect("the semaphore is never closed")
}

/// Handshakes that are going on.
struct Handshakes {
    most: usize,
    /// When each began, and how to give it up; the oldest first.
    open: Mutex<BTreeMap<u64, (Instant, CancellationToken)>>,
    ended: Notify,
}

/// One of them, for as long as it lives.
struct Handshaking {
    all: Arc<Handshakes>,
    number: u64,
    given_up: CancellationToken,
}

impl Handshakes {
    fn new(most: usize) -> Self {
        Self {
            most,
            open: Mutex::default(),
            ended: Notify::new(),
        }
    }

    /// Waits for room, until one has ended or the oldest had to; if it has to wait, `tell` is told.
    async fn room(&self, tell: impl FnOnce()) {
        let mut tell = Some(tell);
        while let Some((since, given_up)) = self.oldest_of_too_many() {
            if let Some(tell) = tell.take() {
                tell();
            }
            tokio::select! {
                () = self.ended.notified() => {}
                () = tokio::time::sleep_until(since + KEEPS_WAITING), if !given_up.is_cancelled() => {
                    given_up.cancel();
                }
            }
        }
    }

    fn oldest_of_too_many(&self) -> Option<(Instant, CancellationToken)> {
        let open = self.open.lock();
        let (_, oldest) = open.first_key_value()?;
        (open.len() >= self.most).then(|| oldest.clone())
    }

    fn begin(all: &Arc<Self>) -> Handshaking {
        let given_up = CancellationToken::new();
        let mut open = all.open.lock();
        let number = open.last_key_value().map_or(0, |(last, _)| last + 1);
        open.insert(number, (Instant::now(), given_up.clone()));
        Handshaking {
            all: all.clone(),
            number,
            given_up,
        }
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.all.open.lock().remove(&self.number);
        // Whoever comes to wait later finds the room, too.
        self.all.ended.notify_one();
    }
}

struct Acceptor {
    identity: Identity,
    /// The configuration of the identity's present generation.
    config: Mutex<Option<(u64, Arc<ServerConfig>)>>,
    metrics: Metrics,
    connections: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    anonymous_life: Duration,
    handshakes: Arc<Handshakes>,
}

impl Acceptor {
    /// There is no room for another connection.
    fn reached(&self) {
        self.metrics.reached("connections");
        tracing::warn!(
            "proxies have as many connections as they may, and more wait; raise --max-connections or add a replica"
        );
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let tls = TlsAcceptor::from(self.config()).accept(stream).await?;
        let (id, life, anonymous) = match tls.get_ref().1.peer_certificates() {
            Some([leaf, ..]) => {
                let id = peer_id(std::slice::from_ref(leaf)).map_err(io::Error::other)?;
                let left = not_after(leaf)?
                    .duration_since(SystemTime::now())
                    .unwrap_or_default();
                (Some(id), left.min(LONGEST_LIFE), None)
            }
            _ => {
                let place = self.anonymous.clone().try_acquire_owned().map_err(|_| {
                    self.metrics.reached("anonymous_connections");
                    io::Error::other("too many connections without a client certificate")
                })?;
                (None, self.anonymous_life, Some(place))
            }
        };
        Ok(Connection {
            tls,
            peer: Peer { address, id },
            expires: Box::pin(tokio::time::sleep(life)),
            _places: (place, anonymous),
        })
    }

    fn config(&self) -> Arc<ServerConfig> {
        let current = self.identity.load();
        let mut config = self.config.lock();
        match &*config {
            Some((generation, config)) if *generation == current.generation() => config.clone(),
            _ => {
                let made = current.server(ClientAuth::Optional, &[b"h2"]);
                *config = Some((current.generation(), made.clone()));
                made
            }
        }
    }
}

/// End of a certificate's validity.
fn not_after(cert: &[u8]) -> io::Result<SystemTime> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).map_err(io::Error::other)?;
    let seconds = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.expires.as_mut().poll(cx).is_ready() {
            let reason = match self.peer.id {
                Some(_) => "the client certificate has expired",
                None => "a connection without a client certificate has had its time",
            };
            return Poll::Ready(Err(io::Error::other(reason)));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
