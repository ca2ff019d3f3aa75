//! Keeps a connection that many share from ending because of some.
//!
//! h2 ends a connection on which too many small pieces of bodies wait, which is what a few requests can bring about whose
//! app takes nothing. Before that is so, [`relieve`] has everything taken that waits, and gives those up that have too much
//! of it. An HTTP/2 request with a body is entered here, which is a push to a list; nothing else is done until it is needed.

use std::cell::RefCell;

use super::exchange::Connection;
use super::refused;
use crate::retry::Waiting;
use crate::telemetry::Limit;

/// The bodies of a connection.
#[derive(Debug, Default)]
pub(super) struct Crowd(RefCell<Vec<Waiting>>);

impl Crowd {
    pub(super) fn enter(&self, body: Waiting) {
        let mut bodies = self.0.borrow_mut();
        if bodies.len() == bodies.capacity() {
            bodies.retain(|body| !body.is_over());
        }
        bodies.push(body);
    }

    /// No exchange is under way.
    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    /// Takes all that waits. How many bodies are given up.
    fn take(&self) -> usize {
        let bodies = self.0.borrow();
        bodies.iter().filter(|body| !body.take()).count()
    }
}

/// Looks after a connection for as long as it lives.
pub(super) async fn relieve(connection: &Connection) {
    let Some(calm) = connection.calm() else {
        return std::future::pending().await;
    };
    let pieces = calm.pieces();
    pieces.watch(connection.worker.settings.http2.connection_window);
    loop {
        pieces.stop().await;
        refused::tell_http2(connection, calm);
        if !pieces.are_too_many() {
            continue;
        }
        if connection.crowd.take() > 0 {
            let what = "requests are given up of which too many small pieces wait";
            connection.reached(Limit::H2DataFrames, what);
        }
        if !pieces.go_on() {
            let what = "too many small pieces came for requests that were over";
            connection.leave(Limit::H2DataFrames, what);
        }
    }
}
