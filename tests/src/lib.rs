//! What the end-to-end tests share: the harness, what it needs of the machine, and a mesh that every test may use.
//!
//! [`run`] is the `main` of a test program and [`cases!`] lists its tests; [`gate`] says what the machine must have;
//! [`mesh`] brings up one sandbox and one control plane for the whole program, and [`arena`] is a test's own Kubernetes
//! namespace in it; [`kubernetes`] is a real cluster for those that need one. [`manifests`] writes what runs there. [`Anyone`] is a client that believes every server. Benchmarks
//! stand on the same mesh ([`with_mesh`]) and measure the program that pods run ([`thin`]).

mod anyone;
pub mod arena;
pub mod gate;
mod harness;
pub mod kubernetes;
pub mod manifests;
pub mod mesh;
mod metrics;
mod scale;
pub mod thin;

pub use anyone::Anyone;
pub use arena::{Arena, Ran, eventually};
pub use harness::{Case, World, as_tulle, run, with_mesh};
pub use kubernetes::Kubernetes;
pub use manifests::{App, app};
pub use mesh::Mesh;
pub use metrics::Metrics;
pub use scale::{progress, scaled};
pub use tulle_cli::mesh::{Load, Summary};
