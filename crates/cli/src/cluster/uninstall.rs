//! `tulle uninstall`: takes away everything that Tulle brought into a cluster, wherever it is.

mod deletion;
mod hindrance;
mod revisions;

use std::process::ExitCode;

use clap::Args;
use kube::Client;
use tulle_runtime::names::CONTROL_NAMESPACE;

use super::error::ClusterError;
use super::owned::{self, Found, NAMESPACE, Owned};
use super::upgrade::KINDS;
use super::{Access, Format, INCOMPLETE, print, sidecars};
use crate::error::CliError;
use crate::output;
use crate::progress::Progress;
pub(crate) use hindrance::Hindrance;
use revisions::Revisions;

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
New pods get no sidecar then; those that have one keep it until they are restarted. As nobody renews certificates any more, they \
fail when these end, within a day unless the installation says otherwise. So nothing is deleted while such pods are there, unless \
--force is given: have their namespaces ask for no mesh and restart them first. With --revision only pods of that revision count, and \
namespaces that ask for it are in the way, too: new pods there would start without a sidecar.

What Helm has installed is left to Helm, unless --force is given. So is namespace tulle-system as long as something is in it that \
is not of Tulle, which would go with it.

The definitions of Tulle's own kinds stay, and with them the policies that were written, unless --purge is given.

Exits with 1 if it could not be done, with 3 if it was, but for what could not be looked at, goes only once somebody is back who is \
away, or stays for others' sake.

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
    /// Delete although something speaks against it: pods with sidecars, which fail when their certificates end; namespaces that ask
    /// for the revision; a release of Helm's; others' objects in namespace tulle-system, which go with it
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
    let revisions = Revisions::found(&found.objects);
    found.objects.retain(|object| args.wants(object));
    found.objects.sort_by_key(rank);
    found.warn();
    if found.objects.is_empty() {
        return nothing(&client, &args, &found, &revisions).await;
    }
    print(args.output, &found.objects, |targets| table(targets))?;
    let mut hindrances = hindrances(&client, &args, &found, &revisions).await;
    if !args.yes {
        strangers(&client, &args, &found).await?;
        for problem in hindrances {
            output::warning(&format!("{problem}; {}", problem.next_step()));
        }
        output::note("Nothing was deleted: add --yes to delete all of this.");
        return Ok(ended(&found));
    }
    let against = |it: &ClusterError| !args.force || !can_be_forced(it);
    if hindrances.iter().any(against) {
        let first = hindrances.remove(0);
        for problem in hindrances {
            output::warning(&format!("{problem}; {}", problem.next_step()));
        }
        return Err(first.into());
    }
    for problem in hindrances {
        output::warning(&problem.to_string());
    }
    deletion::delete(&client, &args, found.objects).await
}

/// What to say where nothing is to be deleted.
async fn nothing(
    client: &Client,
    args: &UninstallArgs,
    found: &Found,
    revisions: &Revisions,
) -> Result<ExitCode, CliError> {
    let say = |what: &str, found: &Found| {
        output::note(&match found.unseen.is_empty() {
            true => format!("{what} is in this cluster."),
            false => {
                format!("{what} was found in this cluster, but not everything could be looked at.")
            }
        });
        Ok(ended(found))
    };
    let Some(revision) = &args.revision else {
        return say("Nothing of Tulle", found);
    };
    if !found.unseen.is_empty() {
        return say(&format!("Nothing of revision {revision}"), found);
    }
    let others = revisions.all();
    if others.is_empty() {
        // Definitions stay after an installation, and what control planes have written is of no revision.
        let mut all = owned::find(client, None).await?;
        all.objects.retain(|object| object.kind != CRD);
        if all.objects.is_empty() {
            all.warn();
            return say("Nothing of Tulle", &all);
        }
    }
    let revision = revision.clone();
    Err(ClusterError::from(Hindrance::NoSuchRevision { revision, others }).into())
}

/// Whether somebody may mean it all the same. The last revision goes with all that revisions share, and by another command.
fn can_be_forced(problem: &ClusterError) -> bool {
    !matches!(problem, ClusterError::Uninstall(Hindrance::LastRevision(_)))
}

/// What speaks against deleting it, what cannot be forced first.
async fn hindrances(
    client: &Client,
    args: &UninstallArgs,
    found: &Found,
    revisions: &Revisions,
) -> Vec<ClusterError> {
    let releases = found.objects.iter().map(|it| it.release.as_ref());
    let of_helm = hindrance::of_helm(releases).map_err(ClusterError::from);
    let (mut last, mut asked) = (Ok(()), Ok(()));
    if let Some(revision) = &args.revision {
        last = hindrance::last(revisions, revision).map_err(ClusterError::from);
        asked = hindrance::asked(client, revisions, revision).await;
    }
    let sidecars = sidecars::stay(client, args.revision.as_deref()).await;
    let all = [last, of_helm, sidecars, asked];
    all.into_iter().filter_map(Result::err).collect()
}

/// Names what would go with our namespace, and is not ours.
async fn strangers(
    client: &Client,
    args: &UninstallArgs,
    found: &Found,
) -> Result<(), ClusterError> {
    if !found.objects.iter().any(|it| it.kind == NAMESPACE) {
        return Ok(());
    }
    let strangers = owned::strangers(client, CONTROL_NAMESPACE, args.purge).await?;
    if !strangers.objects.is_empty() {
        output::warning(&format!(
            "goes with namespace {CONTROL_NAMESPACE}, and is not of Tulle: {}; without --force the namespace stays",
            strangers.objects.join(", ")
        ));
    }
    Ok(())
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

fn ended(found: &Found) -> ExitCode {
    match found.unseen.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(INCOMPLETE),
    }
}

/// Whether it goes before all that is looked for once more.
fn acts(object: &Owned) -> bool {
    rank(object) < FIRST.len()
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
