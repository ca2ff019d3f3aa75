//! `tulle uninstall`: takes away everything that Tulle brought into a cluster, wherever it is.

use std::process::ExitCode;

use clap::Args;

use super::owned::{self, NAMESPACE, Owned};
use super::{Access, Format, print};
use crate::error::CliError;
use crate::output;

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Sidecars stay in the pods that have one until they are restarted, and go on as they are; new pods get none. The definitions of \
Tulle's own kinds stay, and with them the policies that were written, unless --purge is given.

Examples:
  tulle uninstall             list what would be deleted
  tulle uninstall --yes       delete it
  tulle uninstall --yes --purge
  tulle uninstall --yes --revision next    a second control plane, and not the first")]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    access: Access,
    /// Delete; without it only list
    #[arg(short, long)]
    yes: bool,
    /// Delete the definitions of Tulle's own kinds too, and with them every object of these kinds
    #[arg(long)]
    purge: bool,
    /// Only the parts of this revision, and nothing that others share; not for the last one
    #[arg(long, value_name = "NAME", conflicts_with = "purge")]
    revision: Option<String>,
    /// How to print what is deleted
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

const CRD: &str = "CustomResourceDefinition";
/// What asks for pods, or would write anew what is deleted, in the order in which it goes.
const FIRST: [&str; 3] = [
    "MutatingWebhookConfiguration",
    "HorizontalPodAutoscaler",
    "Deployment",
];

pub(crate) async fn run(args: UninstallArgs) -> Result<ExitCode, CliError> {
    let client = args.access.client().await?;
    let wanted = |target: &Owned| match &args.revision {
        Some(revision) => target.is_of(revision),
        None => args.purge || target.kind != CRD,
    };
    let mut targets = owned::find(&client).await?;
    targets.retain(wanted);
    if targets.is_empty() {
        output::note("Nothing of Tulle is in this cluster.");
        return Ok(ExitCode::SUCCESS);
    }
    targets.sort_by_key(rank);
    print(args.output, &targets, |targets| table(targets))?;
    if !args.yes {
        output::note("Nothing was deleted: add --yes to delete all of this.");
        return Ok(ExitCode::SUCCESS);
    }
    let (first, _) = targets.split_at(targets.partition_point(|target| rank(target) < FIRST.len()));
    for target in first {
        target.delete().await?;
        target.gone().await?;
    }
    // Now that nobody writes any more, also what was written until then.
    let mut rest = owned::find(&client).await?;
    rest.retain(wanted);
    rest.sort_by_key(rank);
    for target in &rest {
        target.delete().await?;
    }
    for target in &rest {
        target.gone().await?;
    }
    output::note(&format!("{} objects deleted.", first.len() + rest.len()));
    Ok(ExitCode::SUCCESS)
}

/// The lower the earlier: what acts, what is acted upon, and what holds other things.
fn rank(object: &Owned) -> usize {
    let first = FIRST.iter().position(|kind| *kind == object.kind);
    match object.kind.as_str() {
        CRD => FIRST.len() + 2,
        NAMESPACE => FIRST.len() + 1,
        _ => first.unwrap_or(FIRST.len()),
    }
}

fn table(targets: &[Owned]) -> String {
    let row = |target: &Owned| {
        [
            target.kind.clone(),
            target.namespace.clone().unwrap_or_else(|| "-".to_owned()),
            target.name.clone(),
        ]
    };
    output::aligned(["KIND", "NAMESPACE", "NAME"], targets.iter().map(row))
}
