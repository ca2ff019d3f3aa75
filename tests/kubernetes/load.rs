//! Nothing is lost: what becomes of steady load while pods, parts of the mesh and nodes come and go.

mod classic;
mod control;
mod ended;
mod generators;
mod killed;
mod lost;
pub(crate) mod order;
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
        classic::cases(),
        upgrade::cases(),
    ];
    files.into_iter().flatten()
}
