//! Nothing is lost: what becomes of steady load while pods, parts of the mesh and nodes come and go.

mod control;
mod ended;
mod generators;
mod killed;
mod lost;
mod order;
mod shop;
mod upgrade;

use tulle_tests::{Case, Kubernetes};

/// The tests of every file.
pub(crate) fn all() -> impl Iterator<Item = Case<Kubernetes>> {
    let files = [
        ended::cases(),
        killed::cases(),
        control::cases(),
        lost::cases(),
        order::cases(),
        upgrade::cases(),
    ];
    files.into_iter().flatten()
}
