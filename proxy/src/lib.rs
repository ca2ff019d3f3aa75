//! Tulle's data plane: the sidecar proxy.
//!
//! Rooms in the order in which a byte travels: it is accepted and its original destination found, its protocol is
//! detected, TLS is ended; then it is HTTP (routed, balanced, sent upstream over a pool) or opaque TCP. A room uses
//! only rooms earlier on the way.

pub mod map;

pub mod config;
pub mod settings;
pub mod xds;

pub mod capture;
pub mod conn;
pub mod fields;
pub mod io;

pub mod net;

pub mod detect;

pub mod tls;

pub mod overload;
pub mod worker;

mod admission;
pub mod verified;

pub mod grpc;
pub mod route;

pub mod balance;
pub mod ready;
pub mod retry;
mod scout;
mod silence;
pub mod telemetry;
pub mod upstream;

pub mod tcp;

pub mod http;

mod handover;

pub mod inbound;
pub mod outbound;

pub mod merged;
pub mod probes;

pub mod admin;
pub mod app;
pub mod args;

#[cfg(feature = "fuzz")]
pub mod fuzz;

pub use args::{main, main_from};
