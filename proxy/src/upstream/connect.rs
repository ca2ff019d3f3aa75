//! Makes one connection: TCP, then TLS where the endpoint has a sidecar, within the cluster's connect timeout.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tulle_runtime::names::alpn;

use super::{ConnectError, Target};
use crate::conn::HttpVersion;
use crate::io::{IoStream, Transport};
use crate::net::{Reach, dial};
use crate::silence::PATIENCE;
use crate::worker::Worker;

/// Idle time after which the kernel asks whether the peer is still there, how often then, and how many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(1), 3);

pub(super) async fn connect(
    worker: &Worker,
    target: &Target,
    version: HttpVersion,
) -> Result<IoStream, ConnectError> {
    let connecting = async {
        let tcp = dial(&worker.settings, target.address, target.reach).await?;
        expect_life(&tcp, target, version)?;
        let Some(peer) = target.identity() else {
            return Ok(IoStream::from(tcp));
        };
        let protocol = match (version, target.is_foreign()) {
            (HttpVersion::Http1, false) => alpn::HTTP1,
            (HttpVersion::Http2, false) => alpn::H2,
            (HttpVersion::Http1, true) => b"http/1.1",
            (HttpVersion::Http2, true) => b"h2",
        };
        Ok(worker
            .tls
            .connect(Transport::new(tcp), peer, protocol)
            .await?)
    };
    let connected = tokio::time::timeout(target.cluster.connect_timeout, connecting);
    let mut io = connected.await.unwrap_or(Err(ConnectError::Timeout))?;
    io.takes_in(worker.overload.intake());
    if target.reach == Reach::Out {
        let endpoint = target.endpoint.as_ref().map(|it| (&*target.cluster, it));
        worker.silence.watch(worker, &mut io, endpoint);
    }
    Ok(io)
}

/// Has the kernel notice a peer that is gone, but never one that only takes its time.
///
/// Another sidecar always reads an HTTP/2 connection, whatever its app does, so bytes that stay unacknowledged mean
/// that it is gone. Whoever else speaks HTTP/2 reads as well, as a rule, but gets more time, and is not sent a PING every few
/// seconds. Every other peer may pause and let its window fill for as long as it likes, and is only looked at from
/// [outside](crate::silence); and the app of this pod cannot be gone without its socket saying so.
fn expect_life(tcp: &TcpStream, target: &Target, version: HttpVersion) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    if target.reach == Reach::App {
        return Ok(());
    }
    let (idle, interval, probes) = KEEPALIVE;
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval(interval)
        .with_retries(probes);
    socket.set_tcp_keepalive(&keepalive)?;
    if version == HttpVersion::Http2 {
        let (sidecar, other) = PATIENCE;
        let timeout = if target.is_sidecar() { sidecar } else { other };
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
