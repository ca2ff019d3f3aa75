//! The tulle program: inject, the echo workload, and every role.
//!
//! A library, so that tests run the very program that users run. Each command is a room of its own; [`args`] lists
//! them, and this file runs the one that was asked for and turns its end into an exit status.

mod app;
mod args;
mod cluster;
mod demo;
mod error;
mod inject;
mod input;
mod install;
pub mod mesh;
mod narrate;
mod output;
mod progress;
mod sandbox;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command, ProxyCommand};
use error::CliError;
use tulle_runtime::env::Env;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Before any thread exists: this process may be one that the sandbox started to prepare a container.
    tulle_sandbox::dispatch();
    run(std::env::args_os())
}

/// Runs the command that `args` spell, the name of the program first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(usage) => {
            // A closed output is the only thing that can go wrong, and there is nowhere left to say so.
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli.command) {
        Ok(status) => status,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Inject(args) => inject::run(&args),
        Command::Install(args) => install::run(&args),
        Command::App(args) => app::run(args.command),
        Command::Demo(args) => demo::run(&args).map_err(CliError::of_demo),
        Command::Sandbox(args) => sandbox::run(args.command),
        Command::Control(args) => match tulle_control::run(*args) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(CliError::Control(error.into())),
        },
        Command::Check(args) => cluster::run(cluster::check::run(args)),
        Command::Upgrade(args) => cluster::run(cluster::upgrade::run(args)),
        Command::Uninstall(args) => cluster::run(cluster::uninstall::run(args)),
        Command::Status(args) => cluster::run(cluster::status::run(args)),
        Command::Proxy { command } => match command {
            ProxyCommand::Look(look) => cluster::run(cluster::proxy::run(look)),
            ProxyCommand::Role(role) => Ok(role.execute()),
        },
        Command::Injector(args) => match tulle_injector::run(*args) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(CliError::Injector(error.into())),
        },
        Command::Agent(args) => match tulle_agent::run(*args, Env::process()) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(CliError::Agent(error.into())),
        },
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tulle", &mut script);
            output::bytes(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { directory } => {
            let written = std::fs::create_dir_all(&directory)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &directory));
            written.map_err(|source| CliError::Pages {
                path: directory,
                source,
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests;
