//! The sidecar program that pods run.

use std::process::ExitCode;

fn main() -> ExitCode {
    tulle_proxy::main()
}
