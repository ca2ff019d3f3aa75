//! `tulle agent`: what a workload needs that brings its own xDS client, Envoy or gRPC, and runs without a sidecar of ours.
//!
//! In travel order: the settings are read ([`args`]), an SVID is obtained and kept fresh as files ([`files`]), a bootstrap
//! tells the client of both ([`bootstrap`]), and a relay on loopback carries the discovery streams of clients that cannot
//! present the SVID themselves ([`relay`]). The private key lies in memory only and never leaves the pod.

mod app;
pub mod args;
mod bootstrap;
mod files;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod ready;
mod relay;

pub use app::run;
pub use args::Args;
