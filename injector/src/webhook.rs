//! The admission webhook: reviews over HTTPS, from the API server.
//!
//! In travel order: [`listener`] takes connections and speaks TLS with the live identity, [`requests`] says which request is a
//! review and reads it, [`Room`] says whether there is room for one more. Reviews are computed on threads of their own, so
//! that a large one holds up neither a handshake nor a small one. Whoever can reach the port can send reviews: each thing
//! that a client can make grow is bounded, for all and for one address, and what there is no room for is answered at once.

mod connections;
mod listener;
mod metrics;
mod refusal;
mod requests;
mod room;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tulle_runtime::gate::{Gate, Gates};

use crate::Reviewer;
use crate::events::Teller;
use crate::namespaces::Namespaces;

pub(crate) use listener::serve;
pub(crate) use metrics::Metrics;
use refusal::Unserved;
use room::Room;

/// How much there may be at a time, and how long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Connections; for one more, an idle one of the address that has most is closed.
    pub(crate) connections: usize,
    /// Requests that are read, wait, are reviewed or have an answer that is not taken; half of them may be of one address.
    pub(crate) requests: usize,
    /// Bytes of all these, or of their answers; half of them may be of one address.
    pub(crate) bytes: usize,
    /// Reviews that are computed at a time.
    pub(crate) reviews: usize,
    /// How long a request may wait for its turn to be reviewed, whatever its client says.
    pub(crate) turn: Duration,
    /// How long a handshake, a head, a body or the taking of an answer may take.
    pub(crate) receive: Duration,
}

/// What the connections of a webhook have in common.
#[derive(Debug)]
pub(crate) struct Webhook {
    reviewer: Arc<Reviewer>,
    namespaces: Arc<Namespaces>,
    teller: Teller,
    metrics: Metrics,
    bounds: Bounds,
    room: Room,
    turns: Arc<Semaphore>,
    /// Lines about requests that are none, and about clients that are refused.
    told: Gates<Unserved>,
    /// Lines about reviews that were refused.
    refused_told: Gate,
    /// Lines about pods that are let in with a warning.
    warned_told: Gate,
    /// Lines about bodies that are no reviews.
    malformed_told: Gates<()>,
    /// Lines about handshakes that failed.
    failures_told: Gates<()>,
    /// Lines about there being no room for a connection.
    full_told: Gate,
    /// Lines about the want of file descriptors.
    files_told: Gate,
}

impl Webhook {
    pub(crate) fn new(
        reviewer: Reviewer,
        namespaces: Arc<Namespaces>,
        teller: Teller,
        metrics: Metrics,
        bounds: Bounds,
    ) -> Arc<Self> {
        Arc::new(Self {
            reviewer: Arc::new(reviewer),
            namespaces,
            teller,
            metrics,
            bounds,
            room: Room::new(bounds),
            turns: Arc::new(Semaphore::new(bounds.reviews)),
            told: Gates::default(),
            refused_told: Gate::wide(),
            warned_told: Gate::wide(),
            malformed_told: Gates::default(),
            failures_told: Gates::default(),
            full_told: Gate::default(),
            files_told: Gate::default(),
        })
    }
}

#[cfg(test)]
mod tests;
