//! The port that proxies speak to: TLS of the mesh, a client certificate asked for but not required.
//!
//! Our own acceptor under tonic's server, so that each handshake uses the certificate and the roots of that moment, and
//! each request knows who is on the other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tulle_identity::{ClientAuth, Identity, peer_id};
use tulle_runtime::tasks::Tasks;

use crate::discovery::Peer;

/// Handshakes at a time; more wait in the kernel's queue.
const HANDSHAKES: usize = 256;
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Connections at a time; more wait in the kernel's queue.
    pub(crate) connections: usize,
    /// Of these, connections without a client certificate; more are closed.
    pub(crate) anonymous: usize,
    /// How long a connection without a client certificate lives.
    pub(crate) anonymous_life: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            anonymous: ANONYMOUS,
            anonymous_life: ANONYMOUS_LIFE,
        }
    }
}

/// What the port counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    failed: Counter,
}

impl Metrics {
    /// Registers every metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "TLS handshakes of proxies that failed or took too long";
        registry.register("xds_handshake_failures", help, metrics.failed.clone());
        metrics
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
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let handshaking = take(&handshakes).await;
        let place = take(&acceptor.connections).await;
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of a proxy");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (acceptor, connections) = (acceptor.clone(), connections.clone());
        tasks.spawn_connection("xds-handshake", async move {
            let handshake =
                tokio::time::timeout(HANDSHAKE, acceptor.handshake(stream, address, place));
            match handshake
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            {
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

/// Waits for room.
async fn take(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let place = places.clone().acquire_owned().await;
    place.expect("the semaphore is never closed")
}

struct Acceptor {
    identity: Identity,
    /// The configuration of the identity's present generation.
    config: Mutex<Option<(u64, Arc<ServerConfig>)>>,
    metrics: Metrics,
    connections: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    anonymous_life: Duration,
}

impl Acceptor {
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
