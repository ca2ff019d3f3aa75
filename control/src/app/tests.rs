//! The control plane as its clients see it: over real TLS connections on loopback.

mod certificates;
mod files;
mod harness;
mod operators;
mod sidecars;
mod streams;
