//! Where both directions hand a connection over to HTTP.

use std::rc::Rc;

use crate::conn::{Downstream, HttpVersion};
use crate::http;
use crate::io::IoStream;
use crate::worker::Worker;

/// Serves a connection as HTTP until it ends.
pub(crate) async fn serve_http(
    worker: Rc<Worker>,
    downstream: Downstream,
    io: IoStream,
    version: HttpVersion,
) {
    let (peer, original_dst) = (downstream.peer, downstream.original_dst);
    if let Err(error) = http::serve(worker, downstream, io, version).await {
        tracing::debug!(client.addr = %peer, server.addr = %original_dst, %error, "HTTP connection ended");
    }
}
