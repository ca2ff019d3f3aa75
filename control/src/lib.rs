//! Tulle's control plane: sources, translation, xDS and the CA.
//!
//! The way of a change: a [`source`] parses Kubernetes objects into room types, the [`store`] publishes them as an
//! immutable world, [`translate`] makes xDS resources of it.

pub mod source;
pub mod store;
pub mod translate;
