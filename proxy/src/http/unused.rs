//! Ends connections that nobody uses: those that never bring a request, and those that bring no more.
//!
//! One timer a connection, which a request never touches: it looks at how long the connection has been idle whenever it
//! runs out.

use tokio::time::{Instant, sleep_until};

use super::exchange::Connection;
use crate::overload::LOOK;
use crate::telemetry::Limit;

/// Resolves when a connection has been unused for as long as it may, and says which time is up.
pub(super) async fn unused(connection: &Connection) -> Limit {
    let patience = &connection.worker.settings.patience;
    let begun = Instant::now();
    while connection.is_fresh() {
        let left = patience.first_request.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Limit::FirstRequest;
        }
        sleep_until(Instant::now() + left.min(LOOK)).await;
        let direction = connection.downstream.direction;
        if connection.is_fresh() && connection.worker.overload.is_crowded(direction) {
            return Limit::FirstRequest;
        }
    }
    loop {
        let since = connection.idle_since();
        let until = since.unwrap_or_else(Instant::now) + patience.idle;
        if since.is_some() && until <= Instant::now() {
            return Limit::Idle;
        }
        sleep_until(until).await;
    }
}

/// Tells who held a connection for nothing.
pub(super) fn tell(connection: &Connection, limit: Limit) {
    connection.reached(limit, "a connection without requests is closed");
}
