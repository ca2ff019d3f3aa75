//! `tulle app`: a workload that says who answered, a load generator that hides nothing, and a client.
//!
//! None of the three retries: what a mesh does for an application must not be done by the application already.

mod call;
mod client;
mod load;
mod serve;
mod target;

use std::future::Future;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::error::CliError;

pub(crate) use call::presented;

/// Messages and services of `proto/`.
mod pb {
    #![expect(unreachable_pub, unused_qualifications, reason = "generated")]
    /// The echo service.
    pub mod echo {
        tonic::include_proto!("tulle.app.v1");
    }
    /// gRPC's standard health service.
    pub mod health {
        tonic::include_proto!("grpc.health.v1");
    }
}

/// Headers by which `tulle app serve` says who answered, and by which a caller turns its knobs.
mod headers {
    /// Before the name of a knob.
    pub(super) const KNOB_PREFIX: &str = "x-tulle-app-";
    /// Name of the app that answered.
    pub(super) const NAME: &str = "x-tulle-app-name";
    /// Its version.
    pub(super) const VERSION: &str = "x-tulle-app-version";
    /// Its pod.
    pub(super) const POD: &str = "x-tulle-app-pod";
    /// The protocol in which the request arrived.
    pub(super) const PROTOCOL: &str = "x-tulle-app-protocol";
    /// Id under which a request is counted.
    pub(super) const ID: &str = "x-tulle-app-id";
}

#[derive(Debug, Args)]
pub(crate) struct AppArgs {
    #[command(subcommand)]
    pub(crate) command: AppCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// Echo workload: HTTP/1.1 and h2c, gRPC, TCP
    Serve(serve::ServeArgs),
    /// Send requests at a fixed rate and report what came back
    Load(load::LoadArgs),
    /// Send one request and print the answer
    Call(call::CallArgs),
}

pub(crate) fn run(command: AppCommand) -> Result<ExitCode, CliError> {
    match command {
        AppCommand::Serve(args) => block_on(serve::run(args)),
        AppCommand::Load(args) => block_on(load::run(args)),
        AppCommand::Call(args) => block_on(call::run(args)),
    }
}

fn block_on(
    command: impl Future<Output = Result<ExitCode, CliError>>,
) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let result = runtime.block_on(command);
    // A lookup of a name may still be under way on a thread of its own; nobody waits for it.
    runtime.shutdown_background();
    result
}
