//! The one who writes: takes what all kinds have to say at one moment into one update.

use tokio::sync::mpsc::Receiver;
use tokio::time::timeout_at;

use super::WAITING;
use super::wait::Wait;
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

/// Writes until nobody has anything to say any more. The world counts when there is nothing to wait for.
pub(super) async fn run(
    mut writer: StoreWriter,
    mut messages: Receiver<Message>,
    mut wait: Wait,
    claims: Claims,
) {
    let mut batch = Vec::new();
    loop {
        let heard = messages.recv_many(&mut batch, WAITING);
        let heard = match wait.look_again() {
            Some(time) => timeout_at(time, heard).await,
            None => Ok(heard.await),
        };
        if matches!(heard, Ok(0)) {
            return;
        }
        let (mut events, mut claimed) = (Vec::new(), Vec::new());
        for message in batch.drain(..) {
            match message {
                Message::Events(more) => events.extend(more),
                Message::Claims(more) => claimed.extend(more),
                Message::Settled(kind) => wait.settled(kind),
            }
        }
        if heard.is_ok() {
            writer.apply(events);
            // After what the store has of them.
            claims.apply(claimed);
        }
        if wait.ends() {
            writer.set_synced();
        }
    }
}
