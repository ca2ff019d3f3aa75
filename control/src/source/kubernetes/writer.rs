//! The one who writes: takes what all kinds have to say at one moment into one update.

use std::collections::BTreeSet;

use tokio::sync::mpsc::Receiver;

use super::WAITING;
use crate::status::{Claim, Claims};
use crate::store::{Event, Kind, ObjectRef, StoreWriter};

/// What a kind has to say.
#[derive(Debug)]
pub(super) enum Message {
    /// This happened.
    Events(Vec<Event>),
    /// This is what objects claim of which that was told before; `None`: nothing any more.
    Claims(Vec<(ObjectRef, Option<Claim>)>),
    /// Everything of the kind that existed has been told, or there is no such kind.
    Settled(Kind),
}

/// Writes until nobody has anything to say any more; `missing` are the kinds that have to settle first.
pub(super) async fn run(
    mut writer: StoreWriter,
    mut messages: Receiver<Message>,
    mut missing: BTreeSet<Kind>,
    claims: Claims,
) {
    let mut batch = Vec::new();
    while messages.recv_many(&mut batch, WAITING).await > 0 {
        let (mut events, mut claimed) = (Vec::new(), Vec::new());
        let mut settled = false;
        for message in batch.drain(..) {
            match message {
                Message::Events(more) => events.extend(more),
                Message::Claims(more) => claimed.extend(more),
                Message::Settled(kind) => settled |= missing.remove(&kind),
            }
        }
        writer.apply(events);
        // After what the store has of them.
        claims.apply(claimed);
        if settled && missing.is_empty() {
            tracing::info!("everything in the cluster has been read");
            writer.set_synced();
        }
    }
}
