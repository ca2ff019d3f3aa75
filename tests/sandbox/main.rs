//! End-to-end tests over real pods, sidecars and a control plane. One file a subject.

use std::process::ExitCode;

mod http1;

fn main() -> ExitCode {
    tulle_tests::run([http1::cases()].into_iter().flatten().collect())
}
