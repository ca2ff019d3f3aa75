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
use tokio::sync::{Semaphore, mpsc};
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
/// Pause after accept has failed, as it does for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection whose other end is known. It ends with the certificate that opened it, so that nobody lives on an identity
/// that he could not show again.
#[derive(Debug)]
pub(crate) struct Connection {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    expires: Option<Pin<Box<Sleep>>>,
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
) -> mpsc::Receiver<io::Result<Connection>> {
    let (connections, incoming) = mpsc::channel(1);
    let acceptor = Arc::new(Acceptor {
        identity,
        config: Mutex::new(None),
        metrics,
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
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let place = places
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
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
            let handshake = tokio::time::timeout(HANDSHAKE, acceptor.handshake(stream, address));
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
            drop(place);
        });
    }
}

struct Acceptor {
    identity: Identity,
    /// The configuration of the identity's present generation.
    config: Mutex<Option<(u64, Arc<ServerConfig>)>>,
    metrics: Metrics,
}

impl Acceptor {
    async fn handshake(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let tls = TlsAcceptor::from(self.config()).accept(stream).await?;
        let (mut peer, mut expires) = (Peer { address, id: None }, None);
        if let Some(leaf) = tls.get_ref().1.peer_certificates().and_then(<[_]>::first) {
            peer.id = Some(peer_id(std::slice::from_ref(leaf)).map_err(io::Error::other)?);
            let left = not_after(leaf)?
                .duration_since(SystemTime::now())
                .unwrap_or_default();
            expires = Some(Box::pin(tokio::time::sleep(left.min(LONGEST_LIFE))));
        }
        Ok(Connection { tls, peer, expires })
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
        if let Some(expires) = &mut self.expires
            && expires.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::other("the client certificate has expired")));
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
