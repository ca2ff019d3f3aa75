//! `tulle check`: whether a cluster can have the mesh, and whether the one that it has works.
//!
//! Each finding says what was looked at, how it is, and what to do. What cannot be looked at is a finding, too.

mod before;
mod finding;
mod installed;
mod workloads;

use std::process::ExitCode;

use clap::Args;

use super::{Access, Format, print};
use crate::error::CliError;
use finding::{Findings, Level};

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Exits with 1 if something does not work; warnings alone do not make it fail.

Examples:
  tulle check --pre            before anything is installed
  tulle check                  whether what is installed works
  tulle check --namespace shop only the workloads of one namespace
  tulle check --output json | jq '.[] | select(.level != \"ok\")'")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    access: Access,
    /// Only whether the mesh could be installed
    #[arg(long)]
    pre: bool,
    /// Workloads of this namespace alone
    #[arg(short, long, conflicts_with = "pre")]
    namespace: Option<String>,
    /// How to print the findings
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) async fn run(args: CheckArgs) -> Result<ExitCode, CliError> {
    let client = args.access.client().await?;
    let mut findings = Findings::default();
    before::version(&client, &mut findings).await?;
    if args.pre {
        before::permissions(&client, &mut findings).await;
    } else {
        let control = installed::control_plane(&client, &mut findings).await;
        installed::webhooks(&client, &mut findings).await;
        if control {
            installed::trust(&client, &mut findings).await;
            installed::source(&client, &mut findings).await;
            installed::proxies(&client, &mut findings).await;
        }
    }
    before::gateway_api(&client, &mut findings).await;
    workloads::look(&client, args.namespace.as_deref(), args.pre, &mut findings).await;
    print(args.output, &findings.all, |all| finding::table(all))?;
    Ok(match findings.worst() {
        Level::Error => ExitCode::FAILURE,
        Level::Ok | Level::Warning => ExitCode::SUCCESS,
    })
}
