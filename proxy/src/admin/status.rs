//! How far the sidecar has come: set by the composition root, shown by the admin endpoint.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tulle_identity::Identity;

use crate::config::Config;

/// A handle to the sidecar's progress. Clones see the same one.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    identity: OnceLock<Identity>,
    listening: AtomicBool,
    draining: AtomicBool,
    drain_requested: watch::Sender<bool>,
}

impl Status {
    /// The first certificate has come.
    pub fn set_identity(&self, identity: Identity) {
        // There is one identity in a process; a second call would bring the same.
        let _ = self.0.identity.set(identity);
    }

    /// The data path accepts connections.
    pub fn set_listening(&self) {
        self.0.listening.store(true, Ordering::Release);
    }

    /// The sidecar drains: it is no longer ready.
    pub fn set_draining(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Resolves when an operator has asked for a drain.
    pub async fn drain_requested(&self) {
        let mut requested = self.0.drain_requested.subscribe();
        // The sender lives as long as we do.
        let _ = requested.wait_for(|requested| *requested).await;
    }

    pub(super) fn request_drain(&self) {
        tracing::info!("drain requested by an operator");
        self.0.drain_requested.send_replace(true);
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.0.identity.get()
    }

    /// Why the sidecar is not ready, if it is not.
    pub(super) fn unready(&self, config: &Config) -> Option<&'static str> {
        if self.0.draining.load(Ordering::Acquire) {
            return Some("draining");
        }
        let Some(identity) = self.identity() else {
            return Some("no certificate from the CA yet");
        };
        if identity.load().check().is_err() {
            return Some(
                "the certificate has expired or is no longer trusted, and the CA gives no new one",
            );
        }
        if config.load().inbound.is_none() {
            return Some("no configuration from the control plane yet");
        }
        if !self.0.listening.load(Ordering::Acquire) {
            return Some("not listening yet");
        }
        None
    }
}
