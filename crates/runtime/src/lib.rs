//! The chassis every Tulle program stands on.
//!
//! Rooms in the order in which a program meets them: names, environment, limits and reasons, tracing with its writer and its gate,
//! metrics, tasks, signals and drain, back-off, causes of errors, the allocator, listening, and the admin HTTP server. Nothing here knows
//! xDS, TLS or Kubernetes.

pub mod admin;
pub mod allocator;
pub mod backoff;
pub mod causes;
pub mod drain;
pub mod env;
pub mod gate;
pub mod limits;
pub mod listen;
pub mod metrics;
pub mod names;
pub mod reasons;
pub mod signals;
pub mod tasks;
pub mod trace;
pub mod writer;
