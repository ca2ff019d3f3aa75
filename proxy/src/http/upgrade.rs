//! Relays bytes once both sides have switched protocols (WebSocket and the like).

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::exchange::{Connection, Exchange};
use crate::admission;
use crate::balance::ActiveGuard;
use crate::tcp;

/// What is left of an HTTP/1 connection whose client and upstream speak another protocol from now on.
#[derive(Debug)]
pub(super) struct Tunnel {
    exchange: Exchange,
    _active: ActiveGuard,
    client: OnUpgrade,
    upstream: OnUpgrade,
}

/// Bytes pass once hyper has let go of the client's connection. The task that serves the connection moves them, so
/// everything that holds for a connection holds for what has become of it.
pub(super) fn relay(
    exchange: Exchange,
    active: ActiveGuard,
    client: OnUpgrade,
    upstream: OnUpgrade,
) {
    let connection = exchange.connection.clone();
    connection.tunnel(Tunnel {
        exchange,
        _active: active,
        client,
        upstream,
    });
}

impl Tunnel {
    /// Moves bytes until both sides are done, policy forbids it, or nothing moves any more.
    pub(super) async fn run(mut self, connection: &Connection) {
        let (client, upstream) = match tokio::try_join!(self.client, self.upstream) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "upgrade did not happen");
                return;
            }
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        let (worker, downstream) = (&connection.worker, &connection.downstream);
        let passes_through = self.exchange.record.endpoint.is_none();
        let stop = admission::ends(worker, downstream, passes_through);
        let idle = worker.settings.patience.tcp_idle;
        let moving = tcp::relay(&mut client, &mut upstream, |_, _| {}, idle, stop);
        let (moved, ended) = moving.await;
        let record = &mut self.exchange.record;
        record.bytes_sent = moved.received;
        if let Err(error) = ended {
            tracing::debug!(%error, "upgraded connection ended");
            if matches!(error, tcp::RelayError::Idle) {
                tcp::tell_idle(worker, downstream);
            }
            record.flags.insert(error.flag());
            record.details = error.details();
        }
        self.exchange.report();
    }
}
