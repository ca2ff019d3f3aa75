//! Relays bytes once both sides have switched protocols (WebSocket and the like).

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::exchange::Exchange;
use crate::balance::ActiveGuard;
use crate::telemetry::ResponseFlag;

/// Bytes pass from now on; the exchange is over when both directions are. The task belongs to the two connections,
/// which exist no longer as HTTP.
pub(super) fn relay(
    mut exchange: Exchange,
    active: ActiveGuard,
    client: OnUpgrade,
    upstream: OnUpgrade,
) {
    tokio::task::spawn_local(async move {
        let _active = active;
        let (client, upstream) = match tokio::try_join!(client, upstream) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "upgrade did not happen");
                return;
            }
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        match tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
            Ok((_, sent)) => exchange.record.bytes_sent = sent,
            Err(error) => {
                tracing::debug!(%error, "upgraded connection ended");
                exchange
                    .record
                    .flags
                    .insert(ResponseFlag::UpstreamConnectionTermination);
            }
        }
        exchange.report();
    });
}
