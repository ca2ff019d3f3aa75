//! Where both directions hand a connection over to HTTP.

use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::conn::{Downstream, HttpVersion};
use crate::http;
use crate::io::IoStream;
use crate::worker::Worker;

/// Serves a connection as HTTP until it ends.
pub(crate) async fn serve_http(
    worker: Rc<Worker>,
    downstream: Downstream,
    mut io: IoStream,
    version: HttpVersion,
) {
    io.takes_in(worker.overload.intake());
    let (peer, original_dst) = (downstream.peer, downstream.original_dst);
    expect_reading(io.tcp(), worker.settings.patience.unread);
    if let Err(error) = http::serve(worker, downstream, io, version).await {
        tracing::debug!(client.addr = %peer, server.addr = %original_dst, %error, "HTTP connection ended");
    }
}

/// Has the kernel break a connection whose peer takes none of what there is for it for so long. One system call a
/// connection, and no timer of ours: a peer that reads, however slowly, begins the time anew.
fn expect_reading(tcp: &TcpStream, patience: Duration) {
    if let Err(error) = SockRef::from(tcp).set_tcp_user_timeout(Some(patience)) {
        tracing::debug!(%error, "a client that does not read would be waited for");
    }
}
