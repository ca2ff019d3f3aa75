//! Makes one connection: TCP, then TLS where the endpoint has a sidecar, within the cluster's connect timeout.

use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tulle_identity::mesh_server_name;
use tulle_runtime::names::{INBOUND_SOURCE_V4, INBOUND_SOURCE_V6, alpn};

use super::{ConnectError, Leg, Target};
use crate::conn::HttpVersion;
use crate::io::{IoStream, Transport};
use crate::worker::Worker;

pub(super) async fn connect(
    worker: &Worker,
    target: &Target,
    version: HttpVersion,
) -> Result<IoStream, ConnectError> {
    let connecting = async {
        let tcp = tcp(worker, target).await?;
        let Some(peer) = target.identity() else {
            return Ok(IoStream::from(tcp));
        };
        let protocol = match version {
            HttpVersion::Http1 => alpn::HTTP1,
            HttpVersion::Http2 => alpn::H2,
        };
        let config = worker.identity.load().client(&peer.0, protocol);
        let transport = Transport::new(tcp).reading_ahead();
        let handshake = TlsConnector::from(config).connect(mesh_server_name(), transport);
        Ok(IoStream::Client(Box::new(
            handshake.await.map_err(ConnectError::Tls)?,
        )))
    };
    // Boxed: making a connection is rare, and its state would be carried by every request.
    let connected =
        tokio::time::timeout(target.cluster.connect_timeout, Box::pin(connecting)).await;
    connected.unwrap_or(Err(ConnectError::Timeout))
}

async fn tcp(worker: &Worker, target: &Target) -> Result<TcpStream, ConnectError> {
    let v4 = target.address.is_ipv4();
    let socket = if v4 {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_nodelay(true)?;
    let reference = socket2::SockRef::from(&socket);
    reference.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    if let Some(mark) = worker.settings.socket_mark {
        reference.set_mark(mark)?;
    }
    if target.leg == Leg::App {
        let source = if v4 {
            IpAddr::V4(INBOUND_SOURCE_V4)
        } else {
            IpAddr::V6(INBOUND_SOURCE_V6)
        };
        socket.bind(SocketAddr::new(source, 0))?;
    }
    Ok(socket.connect(target.address).await?)
}

/// How long sent bytes may stay unacknowledged before the connection counts as broken.
const USER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
