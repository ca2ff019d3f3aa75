//! One worker: a thread with a `current_thread` runtime, and what its connections share.
//!
//! A connection lives and dies on the worker that accepted it. [`Worker`] is handed down as `Rc`, so what hangs on it
//! (pools, caches) needs no lock. It holds handles, never config: that is loaded from [`Config`] once per request.

use std::sync::Arc;

use tulle_identity::Identity;
use tulle_runtime::drain::DrainWatch;

use crate::config::Config;
use crate::settings::Settings;
use crate::telemetry::Telemetry;
use crate::upstream::Pools;

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Worker {
    /// The data path's view of what the control plane said.
    pub config: Config,
    /// Held while the worker has something to finish.
    pub drain: DrainWatch,
    /// Who this pod is.
    pub identity: Identity,
    /// What the operator said.
    pub settings: Arc<Settings>,
    /// Takes what there is to tell about requests.
    pub telemetry: Telemetry,
    /// HTTP connections to whatever answers.
    pub upstream: Pools,
}
