//! Tulle's control plane: sources, translation, xDS and the CA.
//!
//! The way of a change: a [`source`] parses Kubernetes objects into room types, the [`store`] publishes them as an
//! immutable world, [`translate`] makes xDS resources of it, [`discovery`] serves them to proxies. The [`ca`] gives
//! proxies their identity. What any of their clients may make grow has a [`limit`]. On Kubernetes the replicas have an
//! [`election`] of the one that has the [`writer`] write, tells routes their [`status`] and stores a [`snapshot`] of what an edit has broken; all ask the API server by way of the [`platform`]. [`app`] puts it
//! all together.

mod admin;
pub mod api;
pub mod app;
pub mod ca;
mod discovery;
mod election;
mod limit;
mod platform;
mod snapshot;
pub mod source;
mod status;
pub mod store;
pub mod translate;
mod writer;

#[cfg(feature = "fuzz")]
pub mod fuzz;

pub use app::{Args, Control, LimitArgs, run};
