//! Makes one connection: TCP, then TLS where the endpoint has a sidecar, within the cluster's connect timeout.

use std::time::Duration;

use tulle_runtime::names::alpn;

use super::{ConnectError, Target};
use crate::conn::HttpVersion;
use crate::io::{IoStream, Transport};
use crate::net::dial;
use crate::worker::Worker;

/// How long sent bytes may stay unacknowledged before a pooled connection counts as broken.
const USER_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn connect(
    worker: &Worker,
    target: &Target,
    version: HttpVersion,
) -> Result<IoStream, ConnectError> {
    let connecting = async {
        let tcp = dial(&worker.settings, target.address, target.reach).await?;
        socket2::SockRef::from(&tcp).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        let Some(peer) = target.identity() else {
            return Ok(IoStream::from(tcp));
        };
        let protocol = match version {
            HttpVersion::Http1 => alpn::HTTP1,
            HttpVersion::Http2 => alpn::H2,
        };
        Ok(worker
            .tls
            .connect(Transport::new(tcp), peer, protocol)
            .await?)
    };
    let connected = tokio::time::timeout(target.cluster.connect_timeout, connecting);
    connected.await.unwrap_or(Err(ConnectError::Timeout))
}
