//! End-to-end tests over a real Kubernetes cluster. One file a subject.

use std::process::ExitCode;

mod application;
mod beside;
mod check;
mod conformance;
mod crash;
mod ha;
mod helm;
mod identity;
mod load;
mod mesh;
mod nodes;
mod odd;
mod operators;
mod redis;
mod rotation;
mod routes;
mod selectors;
mod source;
mod webhook;

fn main() -> ExitCode {
    if let Some(status) = tulle_tests::as_tulle() {
        return status;
    }
    if crash::is_victim() {
        return match crash::victim() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(folder) = webhook::folder() {
        return webhook::injector(&folder);
    }
    let files = [
        nodes::cases(),
        odd::cases(),
        redis::cases(),
        mesh::cases(),
        operators::cases(),
        check::cases(),
        application::cases(),
        beside::cases(),
        crash::cases(),
        source::cases(),
        webhook::cases(),
        conformance::cases(),
        ha::cases(),
        helm::cases(),
        rotation::cases(),
        routes::cases(),
        selectors::cases(),
    ];
    let cases = files
        .into_iter()
        .flatten()
        .chain(identity::all())
        .chain(load::all());
    tulle_tests::kubernetes::run(cases.collect())
}
