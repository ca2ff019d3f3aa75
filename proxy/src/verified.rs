//! The certificates of the clients of one worker: when a root is trusted no more, the connections of its clients end.
//!
//! What a handshake has verified would else hold for as long as the connection does. Nothing in here is looked at unless the
//! roots change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::task::{self, Id};

use crate::conn::Direction;
use crate::net::Refusal;
use crate::worker::Worker;

/// The clients that have shown a certificate. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Verified(Rc<RefCell<HashMap<Id, Client>>>);

#[derive(Debug)]
struct Client {
    chain: Box<[CertificateDer<'static>]>,
    at: UnixTime,
}

/// A client's entry, which goes with its connection.
#[derive(Debug)]
pub struct Entry {
    verified: Verified,
    id: Id,
}

impl Verified {
    /// The client of the connection that this task serves was verified just now.
    pub(crate) fn enter(&self, chain: Box<[CertificateDer<'static>]>) -> Entry {
        let (id, at) = (task::id(), UnixTime::now());
        self.0.borrow_mut().insert(id, Client { chain, at });
        Entry {
            verified: self.clone(),
            id,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.verified.0.borrow_mut().remove(&self.id);
    }
}

/// Ends connections whose clients are of no trusted root any more, for as long as the worker lives.
pub(crate) async fn watch(worker: Rc<Worker>) {
    let mut changed = worker.identity.changed();
    let mut bundle = worker.identity.load().bundle().clone();
    while changed.changed().await.is_ok() {
        let current = worker.identity.current();
        // A new certificate of our own says nothing about others.
        if Arc::ptr_eq(&bundle, current.bundle()) {
            continue;
        }
        bundle = current.bundle().clone();
        let distrusted: Vec<Id> = {
            let clients = worker.verified.0.borrow();
            let bad = clients
                .iter()
                .filter(|(_, client)| !current.still_trusts(&client.chain, client.at));
            bad.map(|(id, _)| *id).collect()
        };
        for id in &distrusted {
            worker.newest.give_up_task(*id);
            worker
                .connections
                .refuse(Direction::Inbound, Refusal::DistrustedRoot);
        }
        if !distrusted.is_empty() {
            let connections = distrusted.len();
            tracing::info!(
                connections,
                "closed: the root of their clients is trusted no more"
            );
        }
    }
}
