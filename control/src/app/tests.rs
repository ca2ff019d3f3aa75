//! The control plane as its clients see it: over real TLS connections on loopback.

mod admission;
mod certificates;
mod files;
mod full;
mod harness;
mod operators;
mod program;
mod shop;
mod sidecars;
mod streams;
