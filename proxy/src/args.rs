//! The command line: `run` is the sidecar, `capture` is the init container before it.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use tulle_runtime::env::Env;
use tulle_runtime::names::variables;
use tulle_runtime::trace;

use crate::app;
use crate::capture::{Capture, Owner};

/// The sidecar proxy of a Tulle mesh.
#[derive(Debug, Parser)]
#[command(name = "tulle-proxy", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the sidecar program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sidecar, as the environment says
    Run,
    /// Bring this network namespace's connections to the sidecar
    Capture(CaptureArgs),
}

/// What stays out of the mesh.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// Print the rules in nft syntax instead of applying them
    #[arg(long)]
    dry_run: bool,
    /// Ports of the pod that are reached directly, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_inbound_ports: Vec<u16>,
    /// Ports that the app reaches directly, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_outbound_ports: Vec<u16>,
    /// Networks that the app reaches directly, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    exclude_outbound_cidrs: Vec<IpNet>,
}

impl Command {
    /// Does it, and says on standard error what went wrong.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        let done = match self {
            Self::Run => app::run(Env::process()),
            Self::Capture(args) => args.execute(Env::process()),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("tulle-proxy: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

impl CaptureArgs {
    fn execute(self, env: Env) -> anyhow::Result<()> {
        let mark = env.get::<bool>(variables::MARK_SOCKETS).unwrap_or(false);
        let filter = env.text(variables::LOG).unwrap_or("info").to_owned();
        env.finish()?;
        let capture = Capture {
            owner: if mark { Owner::Mark } else { Owner::User },
            exclude_inbound_ports: self.exclude_inbound_ports,
            exclude_outbound_ports: self.exclude_outbound_ports,
            exclude_outbound_cidrs: self.exclude_outbound_cidrs,
        };
        if self.dry_run {
            return write!(std::io::stdout(), "{}", capture.ruleset())
                .context("could not print the rules");
        }
        trace::init(&filter, trace::Format::default())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("could not start")?;
        runtime.block_on(capture.apply())?;
        tracing::info!("connections of this pod are captured");
        Ok(())
    }
}

/// The `tulle-proxy` program: reads the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    main_from(std::env::args_os())
}

/// As [`main`], for a command line of another origin. Its first word is the program's name.
#[must_use]
pub fn main_from(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(cli) => cli.command.execute(),
        Err(error) => {
            // Help and version are no errors; clap knows where each belongs.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}
