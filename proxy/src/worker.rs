//! One worker: a thread with a `current_thread` runtime, and what its connections share.
//!
//! A connection lives and dies on the worker that accepted it. [`Worker`] is handed down as `Rc`, so what hangs on it
//! (pools, caches) needs no lock. It holds handles, never config: that is loaded from [`Config`] once per request.

use std::cell::Cell;
use std::sync::Arc;

use tulle_identity::Identity;
use tulle_runtime::drain::DrainWatch;

use crate::config::Config;
use crate::net;
use crate::overload::{Newest, Overload};
use crate::retry::Uploads;
use crate::settings::Settings;
use crate::silence::Silence;
use crate::telemetry::{Hub, Limits, Telemetry};
use crate::tls::Connector;
use crate::upstream::Pools;
use crate::verified::Verified;

/// What all workers share; a worker is made of it on its own thread.
#[derive(Clone, Debug)]
pub struct Handles {
    /// The data path's view of what the control plane said.
    pub config: Config,
    /// Who this pod is.
    pub identity: Identity,
    /// What the operator said.
    pub settings: Arc<Settings>,
    /// Counts captured connections.
    pub connections: net::Metrics,
    /// Counts limits that peers reached.
    pub limits: Limits,
    /// What there may be at a time.
    pub overload: Overload,
    /// Where telemetry goes; `None`: nowhere.
    pub telemetry: Option<Arc<Hub>>,
    /// Held while there is something to finish.
    pub drain: DrainWatch,
}

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Worker {
    /// The data path's view of what the control plane said.
    pub config: Config,
    /// Who this pod is.
    pub identity: Identity,
    /// What the operator said.
    pub settings: Arc<Settings>,
    /// Counts captured connections.
    pub connections: net::Metrics,
    /// Counts limits that peers reached.
    pub limits: Limits,
    /// What there may be at a time.
    pub overload: Overload,
    /// The clients of its connections that have shown a certificate.
    pub verified: Verified,
    /// Its captured connections, to give the newest up if it comes to that.
    pub newest: Newest,
    /// The bodies of its requests, to give those up that do not move.
    pub uploads: Uploads,
    /// Requests that are under way.
    pub requests: Cell<usize>,
    /// Takes what there is to tell about requests.
    pub telemetry: Telemetry,
    /// Opens TLS towards endpoints.
    pub tls: Connector,
    /// HTTP connections to whatever answers.
    pub upstream: Pools,
    /// Ends connections whose peer is gone without a word.
    pub silence: Silence,
    /// Held while the worker has something to finish: the last to go, after the last lines of the access log.
    pub drain: DrainWatch,
}

impl Worker {
    /// A worker without any connection yet.
    #[must_use]
    pub fn new(handles: Handles) -> Self {
        let Handles {
            config,
            identity,
            settings,
            connections,
            limits,
            overload,
            telemetry,
            drain,
        } = handles;
        Self {
            tls: Connector::new(identity.clone()),
            config,
            drain,
            identity,
            settings,
            connections,
            limits,
            overload,
            verified: Verified::default(),
            newest: Newest::default(),
            uploads: Uploads::default(),
            requests: Cell::new(0),
            telemetry: telemetry.map_or_else(Telemetry::default, Telemetry::new),
            upstream: Pools::default(),
            silence: Silence::default(),
        }
    }
}
