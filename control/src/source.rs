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

/// The objects of a text, for tests of other rooms.
#[cfg(test)]
pub(crate) fn objects(text: &str) -> Vec<crate::store::Object> {
    let parse = |document: &_| match parse::document(document) {
        parse::Outcome::Object(object) => object,
        other => panic!("{other:?}"),
    };
    document::split(text, false).iter().map(parse).collect()
}
