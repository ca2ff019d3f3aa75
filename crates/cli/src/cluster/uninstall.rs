//! `tulle uninstall`: takes away everything that Tulle brought into a cluster, wherever it is.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Args;
use kube::Client;

use super::check::some;
use super::owned::{self, Found, NAMESPACE, Owned};
use super::upgrade::KINDS;
use super::{Access, Format, INCOMPLETE, print, sidecars};
use crate::error::CliError;
use crate::output;
use crate::progress::Progress;

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
New pods get no sidecar then; those that have one keep it until they are restarted. As nobody renews certificates any more, they \
fail when these end, within a day unless the installation says otherwise. So nothing is deleted while such pods are there, unless \
--force is given: have their namespaces ask for no mesh and restart them first. With --revision only pods of that revision count.

The definitions of Tulle's own kinds stay, and with them the policies that were written, unless --purge is given.

Exits with 1 if it could not be done, with 3 if it was, but for what could not be looked at, or goes only once somebody is back who \
is away.

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
    /// Delete although pods with sidecars stay, which fail when their certificates end
    #[arg(long)]
    force: bool,
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
    let mut progress = Progress::new();
    progress.says("looking for everything of Tulle");
    let mut found = owned::find(&client, args.kinds()).await?;
    drop(progress);
    found.objects.retain(|object| args.wants(object));
    found.objects.sort_by_key(rank);
    found.warn();
    if found.objects.is_empty() {
        let what = match &args.revision {
            Some(revision) => format!("Nothing of revision {revision}"),
            None => "Nothing of Tulle".to_owned(),
        };
        output::note(&match found.unseen.is_empty() {
            true => format!("{what} is in this cluster."),
            false => {
                format!("{what} was found in this cluster, but not everything could be looked at.")
            }
        });
        return Ok(ended(&found));
    }
    print(args.output, &found.objects, |targets| table(targets))?;
    let stay = sidecars::stay(&client, args.revision.as_deref()).await;
    if !args.yes {
        if let Err(problem) = stay {
            output::warning(&problem.to_string());
        }
        output::note("Nothing was deleted: add --yes to delete all of this.");
        return Ok(ended(&found));
    }
    match stay {
        Err(problem) if args.force => output::warning(&problem.to_string()),
        stay => stay?,
    }
    delete(&client, &args, found.objects).await
}

impl UninstallArgs {
    /// Where to look: what control planes have written is of any kind, and of no revision.
    fn kinds(&self) -> Option<&'static [(&'static str, &'static str)]> {
        self.revision.as_ref().map(|_| &KINDS[..])
    }

    fn wants(&self, object: &Owned) -> bool {
        match &self.revision {
            Some(revision) => object.is_of(revision),
            None => self.purge || object.kind != CRD,
        }
    }
}

async fn delete(
    client: &Client,
    args: &UninstallArgs,
    targets: Vec<Owned>,
) -> Result<ExitCode, CliError> {
    let (first, _) = targets.split_at(targets.partition_point(|target| rank(target) < FIRST.len()));
    let mut progress = Progress::new();
    for target in first {
        progress.says(&format!("deleting {}", target.title()));
        target.delete().await?;
        // What stays for now is met again below; its pods are away, and have no rights any more by then.
        target.gone().await?;
    }
    progress.says("looking for what is left");
    // Now that nobody writes any more, also what was written until then.
    let mut rest = owned::find(client, args.kinds()).await?;
    rest.objects.retain(|object| args.wants(object));
    rest.objects.sort_by_key(rank);
    for target in &rest.objects {
        progress.says(&format!("deleting {}", target.title()));
        target.delete().await?;
    }
    let mut stay = BTreeSet::new();
    for target in &rest.objects {
        progress.says(&format!("waiting until {} is gone", target.title()));
        if let Some(reason) = target.gone().await? {
            progress.clear();
            output::warning(&format!("{} is still there: {reason}", target.title()));
            stay.insert(target.title());
        }
    }
    drop(progress);
    let deleted = first.iter().chain(&rest.objects).map(Owned::title);
    let deleted: BTreeSet<_> = deleted.filter(|title| !stay.contains(title)).collect();
    output::note(&format!("{} objects deleted.", deleted.len()));
    if !rest.unseen.is_empty() {
        let unseen: Vec<_> = rest.unseen.keys().map(String::as_str).collect();
        output::warning(&format!(
            "something may be left, for not everything could be looked at: {}; `tulle uninstall` says so once it can",
            some(&unseen)
        ));
    }
    match stay.is_empty() {
        true => Ok(ended(&rest)),
        false => Ok(ExitCode::from(INCOMPLETE)),
    }
}

fn ended(found: &Found) -> ExitCode {
    match found.unseen.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(INCOMPLETE),
    }
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
