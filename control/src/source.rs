//! Where objects come from: Kubernetes manifests in directories.
//!
//! A source parses and validates at the edge and hands room types to the store; what it cannot read it reports by
//! place, field and remedy, and keeps the rest working. Kubernetes types are named here and in `api` only.

mod document;
pub mod file;
mod layers;
mod parse;
pub mod report;

pub use file::{FileSource, SourceError};
pub use report::{Problem, SourceReport};
