//! Where clients of the relay come in: loopback or a socket in the file system, HTTP/2 without TLS.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tulle_runtime::tasks::Tasks;

use super::Relay;
use crate::args::XdsListen;

/// Bytes of a request's head.
const MAX_HEAD: u32 = 16 * 1024;
/// Pause after accept has failed, as it does for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that is gone without a word is noticed after the sum of both.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, std::path::PathBuf),
}

impl Listener {
    /// Binds. A socket file that nobody serves any more is replaced; the file is for the agent's user and group.
    pub(crate) async fn bind(at: &XdsListen) -> io::Result<Self> {
        match at {
            XdsListen::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            XdsListen::Unix(path) => {
                remove_stale(path)?;
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    /// Where it really listens.
    pub(crate) fn address(&self) -> io::Result<XdsListen> {
        Ok(match self {
            Self::Tcp(listener) => XdsListen::Tcp(listener.local_addr()?),
            Self::Unix(_, path) => XdsListen::Unix(path.clone()),
        })
    }

    /// Serves until the tasks are cancelled. Connections beyond what the relay takes wait in the kernel's queue.
    pub(crate) async fn serve(self, relay: Relay, tasks: Tasks) {
        tokio::select! {
            biased;
            () = tasks.cancelled() => {}
            () = self.accept_loop(&relay, &tasks) => {}
        }
    }

    async fn accept_loop(&self, relay: &Relay, tasks: &Tasks) {
        let places = Arc::new(Semaphore::new(relay.connections()));
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, client)| {
                    // A relay has nothing to gain from waiting for more to send.
                    let _ = stream.set_nodelay(true);
                    serve_connection(stream, relay.clone(), Some(client)).boxed()
                }),
                Self::Unix(listener, _) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| serve_connection(stream, relay.clone(), None).boxed()),
            };
            match accepted {
                Ok(served) => {
                    // Only who has come may have to wait.
                    let place = take(&places, relay).await;
                    tasks.spawn_connection("relay", async move {
                        served.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    relay.0.metrics.accept_failures.inc();
                    if let Some(left_out) = relay.0.told.accepts.pass() {
                        tracing::warn!(%error, left_out, "cannot accept a client of the relay");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Waits for room; if it has to, it says so.
async fn take(places: &Arc<Semaphore>, relay: &Relay) -> OwnedSemaphorePermit {
    if let Ok(place) = places.clone().try_acquire_owned() {
        return place;
    }
    relay.waits();
    let place = places.clone().acquire_owned().await;
    place.expect("the semaphore is never closed")
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    relay: Relay,
    client: Option<SocketAddr>,
) {
    let streams = u32::try_from(relay.connections()).unwrap_or(u32::MAX);
    let service = service_fn(move |request| {
        let relay = relay.clone();
        async move { Ok::<_, Infallible>(relay.call(request, client).await) }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .max_header_list_size(MAX_HEAD)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client's connection ended badly");
    }
}

/// Removes the socket of an agent that ended; whatever else lies there stays, and binding will say so.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
