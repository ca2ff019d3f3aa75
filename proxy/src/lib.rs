//! Tulle's data plane: the sidecar proxy.

pub mod balance;
pub mod config;
pub mod route;
