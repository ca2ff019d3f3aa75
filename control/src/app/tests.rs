//! The control plane as its clients see it: over real TLS connections on loopback.

mod admission;
mod certificates;
mod files;
mod finished;
mod frames;
mod full;
pub(crate) mod harness;
mod headless;
mod lines;
mod operators;
mod pace;
mod program;
mod requests;
mod shares;
mod shop;
mod sidecars;
mod streams;
