//! Relays bytes once both sides have switched protocols (WebSocket and the like).
//!
//! What switched protocols was HTTP/1 on both sides, and owns both connections. A tunnel that breaks at one end is reset at
//! the other: neither can take a part of what there was for all of it.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::exchange::{Connection, Exchange};
use super::server::Client;
use crate::admission;
use crate::balance::ActiveGuard;
use crate::io::{Answers, IoStream};
use crate::net::reset;
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
        let (client, upstream) = tokio::join!(self.client, self.upstream);
        let mut ends = Ends {
            client: client.ok().map(TokioIo::new),
            upstream: upstream.ok().map(TokioIo::new),
        };
        let (Some(client), Some(upstream)) = (&mut ends.client, &mut ends.upstream) else {
            return tracing::debug!("upgrade did not happen");
        };
        let (worker, downstream) = (&connection.worker, &connection.downstream);
        let passes_through = self.exchange.record.endpoint.is_none();
        let stop = admission::ends(worker, downstream, passes_through);
        let idle = worker.settings.patience.tcp_idle;
        let moving = tcp::relay(client, upstream, |_, _| {}, idle, stop);
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
        } else {
            ends.have_said_all();
        }
        self.exchange.report();
    }
}

/// The ends of a tunnel. Whatever drops them before both have said all they had to say resets them.
struct Ends {
    client: Option<TokioIo<Upgraded>>,
    upstream: Option<TokioIo<Upgraded>>,
}

impl Ends {
    /// They have been told so already.
    fn have_said_all(&mut self) {
        (self.client, self.upstream) = (None, None);
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let [client, upstream] =
            [self.client.take(), self.upstream.take()].map(|end| end.map(TokioIo::into_inner));
        // Streams in memory, which tests have, are not reset.
        if let Some(Ok(client)) = client.map(Upgraded::downcast::<TokioIo<Client<IoStream>>>) {
            reset(client.io.inner().get_ref().get_ref().tcp());
        }
        if let Some(Ok(upstream)) = upstream.map(Upgraded::downcast::<TokioIo<Answers<IoStream>>>) {
            reset(upstream.io.inner().get_ref().tcp());
        }
    }
}
