//! Tulle's control plane: sources, translation, xDS and the CA.
//!
//! The way of a change: a [`source`] parses Kubernetes objects into room types, the [`store`] publishes them as an
//! immutable world, [`translate`] makes xDS resources of it, [`discovery`] serves them to proxies. The [`ca`] gives
//! proxies their identity. What any of their clients may make grow has a [`limit`]. [`app`] puts it all together.

mod admin;
pub mod api;
pub mod app;
pub mod ca;
mod discovery;
mod limit;
pub mod source;
pub mod store;
pub mod translate;

#[cfg(feature = "fuzz")]
pub mod fuzz;

pub use app::{Args, Control, LimitArgs, run};
