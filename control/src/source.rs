//! Where objects come from: Kubernetes manifests in directories, or a Kubernetes cluster.
//!
//! A source parses and validates at the edge and hands room types to the store; what it cannot read it reports by
//! place, field and remedy, and keeps the rest working. Kubernetes types are named here and in `api` only.

mod awaited;
mod document;
pub mod file;
mod kubernetes;
mod layers;
mod metrics;
mod parse;
pub mod report;
mod stack;

pub use crate::platform::follow::{ConnectError, connect};
pub use file::{FileSource, SourceError};
pub use kubernetes::KubernetesSource;
pub use report::{Place, Problem, SourceReport};

/// What a file says, for fuzz targets and tests of other rooms.
#[cfg(any(feature = "fuzz", test))]
pub(crate) fn read(text: &str, json: bool) -> (Vec<crate::store::Event>, Vec<Problem>) {
    let path = if json { "it.json" } else { "it.yaml" }.into();
    let mut outcomes = layers::Outcomes::default();
    layers::Layers::default().set(&layers::Place { layer: 0, path }, text, &mut outcomes);
    let problems = outcomes.problems.into_values().flatten().collect();
    (outcomes.events, problems)
}

/// The objects of a text, for tests of other rooms.
#[cfg(test)]
pub(crate) fn objects(text: &str) -> Vec<crate::store::Object> {
    let parse = |document: &_| match parse::document(document) {
        parse::Outcome::Object(object) => object,
        other => panic!("{other:?}"),
    };
    document::split(text, false).iter().map(parse).collect()
}
