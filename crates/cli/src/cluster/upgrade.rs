//! `tulle upgrade`: what would change in the cluster, object by object, and then the change.
//!
//! The API server says what each object would be (server-side apply as a dry run), so that the difference is neither of
//! defaults nor of what others own.

mod change;
mod follow;
mod replicas;
mod target;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tulle_runtime::env::parse_duration;

use super::owned::{self, Found};
use super::{Access, FAILED, Format, print};
use crate::error::CliError;
use crate::install::{self, Choice};
use crate::output;
use crate::progress::Progress;
use change::Change;
use target::Target;

#[derive(Debug, Args)]
#[command(after_help = "\
Give the profile and the values that the installation was made with; what differs is shown before anything is changed. It \
stands for `tulle install ... | kubectl apply --server-side --force-conflicts -f -`, with the difference first; but where replicas \
become a matter of autoscaling, as many stay as there are, where kubectl would leave one until autoscaling acts.

What Helm has installed is left to `helm upgrade`.

With --yes it ends once both parts run as they are to, or once one of them has not got on for the time of --wait, and why.

Exits with 1 if something would change and --yes is not given, or if a rollout does not get on, with 2 if it failed.

Examples:
  tulle upgrade --profile ha              what would change
  tulle upgrade --profile ha --yes        change it
  tulle upgrade --output json | jq -r '.[] | .change + \" \" + .kind + \" \" + .name'")]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    choice: Choice,
    /// Change it; without it only show
    #[arg(short, long)]
    yes: bool,
    /// How long a rollout may stand still before it is given up
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "2m", requires = "yes")]
    wait: Duration,
    /// Do not wait for rollouts
    #[arg(long, requires = "yes", conflicts_with = "wait")]
    no_wait: bool,
    /// How to print what would change
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// The kinds that what belongs to one revision may be of, by group.
pub(super) const KINDS: [(&str, &str); 11] = [
    ("", "Service"),
    ("", "ServiceAccount"),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
    ),
    ("apps", "Deployment"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
];

pub(crate) async fn run(args: UpgradeArgs) -> Result<ExitCode, CliError> {
    match upgrade(&args).await {
        Ok(status) => Ok(status),
        Err(error) => {
            output::error(&error);
            Ok(ExitCode::from(FAILED))
        }
    }
}

async fn upgrade(args: &UpgradeArgs) -> Result<ExitCode, CliError> {
    let client = args.access.client().await?;
    let values = args.choice.values()?;
    let (mut changed, mut wanted) = (Vec::new(), BTreeSet::new());
    let (mut changes, mut deployments) = (Vec::new(), Vec::new());
    let mut progress = Progress::new();
    for object in install::all(&values) {
        let target = Target::new(&client, object)?;
        progress.says(&format!("comparing {}", target.title()));
        wanted.insert(target.title());
        deployments.extend(target.deployment().map(ToOwned::to_owned));
        if let Some(change) = target.change().await? {
            changes.push(change);
            changed.push(target);
        }
    }
    progress.says("looking for what is wanted no more");
    let mut left = owned::find(&client, Some(&KINDS)).await?;
    drop(progress);
    left.warn();
    let unwanted =
        |object: &owned::Owned| object.is_of(&values.revision) && !wanted.contains(&object.title());
    left.objects.retain(unwanted);
    changes.extend(left.objects.iter().map(Change::deleted));
    if args.output != Format::Table || !changes.is_empty() {
        print(args.output, &changes, |changes| change::table(changes))?;
    }
    if changes.is_empty() {
        output::note("Nothing would change.");
    } else if !args.yes {
        let count = changes.len();
        output::note(&format!(
            "{count} objects would change: add --yes to change them."
        ));
        return Ok(ExitCode::FAILURE);
    }
    if args.yes {
        apply(&changed, &left).await?;
    }
    if !args.yes || args.no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    // Also of what has been applied before: somebody may wait for it again.
    match follow::follow(&client, deployments, args.wait).await {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::FAILURE),
    }
}

async fn apply(changed: &[Target], left: &Found) -> Result<(), CliError> {
    let mut progress = Progress::new();
    for target in changed {
        progress.says(&format!("applying {}", target.title()));
        target.apply().await?;
        progress.clear();
        output::note(&format!("{} applied", target.title()));
    }
    for object in &left.objects {
        progress.says(&format!("deleting {}", object.title()));
        object.delete().await?;
        progress.clear();
        output::note(&format!("{} deleted", object.title()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_installed_is_looked_for_when_it_is_wanted_no_more() {
        for kind in install::kinds() {
            let (group, kind) = (kind.0.as_str(), kind.1.as_str());
            // These belong to all revisions, and are never left.
            let shared = ["Namespace", "CustomResourceDefinition"].contains(&kind);
            assert_eq!(KINDS.contains(&(group, kind)), !shared, "{group} {kind}");
        }
    }
}
