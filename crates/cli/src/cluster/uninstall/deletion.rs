//! Takes away what was found, in an order in which nobody writes anew what is gone already.

use std::collections::BTreeSet;
use std::process::ExitCode;

use kube::Client;
use tulle_runtime::names::CONTROL_NAMESPACE;

use super::{UninstallArgs, ended, rank};
use crate::cluster::INCOMPLETE;
use crate::cluster::check::some;
use crate::cluster::error::ClusterError;
use crate::cluster::owned::{self, Found, NAMESPACE, Owned, Strangers, strangers};
use crate::error::CliError;
use crate::output;
use crate::progress::Progress;

pub(super) async fn delete(
    client: &Client,
    args: &UninstallArgs,
    targets: Vec<Owned>,
) -> Result<ExitCode, CliError> {
    let (first, _) = targets.split_at(targets.partition_point(super::acts));
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
    let kept = kept(client, args, &mut rest).await?;
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
    if let Some((title, reason)) = &kept {
        output::warning(&format!("{title} is still there: {reason}"));
        stay.insert(title.clone());
    }
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

/// Takes our namespace from what is to go, if something of others would go with it, and says why.
async fn kept(
    client: &Client,
    args: &UninstallArgs,
    rest: &mut Found,
) -> Result<Option<(String, String)>, ClusterError> {
    let Some(at) = rest.objects.iter().position(|it| it.kind == NAMESPACE) else {
        return Ok(None);
    };
    if args.force {
        return Ok(None);
    }
    let strangers = strangers(client, CONTROL_NAMESPACE, args.purge).await?;
    let reason = reason(&strangers);
    Ok(reason.map(|reason| (rest.objects.remove(at).title(), reason)))
}

/// Why a namespace stays because of others, or because nobody can tell whether there are any.
fn reason(strangers: &Strangers) -> Option<String> {
    let few = |names: Vec<&str>| some(&names);
    if !strangers.objects.is_empty() {
        let objects = few(strangers.objects.iter().map(String::as_str).collect());
        return Some(format!(
            "it has others' objects, which would go with it ({objects}); move them, and try again, or have them go by --force"
        ));
    }
    let unseen = few(strangers.unseen.keys().map(String::as_str).collect());
    (!strangers.are_none()).then(|| {
        format!(
            "it may have others' objects, for not everything could be looked at ({unseen}); try again once it can, or have it go by \
             --force"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_stays_if_others_are_in_it_or_may_be() {
        for (objects, unseen, expected) in [
            (
                &["Secret mine"][..],
                &[][..],
                Some("others' objects, which would go with it (Secret mine)"),
            ),
            (
                &[],
                &["kinds of away.example"],
                Some("may have others' objects"),
            ),
            (
                &["Secret mine"],
                &["kinds of away.example"],
                Some("(Secret mine)"),
            ),
            (&[], &[], None),
        ] {
            let strangers = Strangers {
                objects: objects.iter().map(|it| (*it).to_owned()).collect(),
                unseen: unseen
                    .iter()
                    .map(|it| ((*it).to_owned(), "away".to_owned()))
                    .collect(),
            };
            let said = reason(&strangers);
            assert_eq!(said.is_some(), expected.is_some(), "{said:?}");
            let said = said.unwrap_or_default();
            assert!(said.contains(expected.unwrap_or_default()), "{said}");
        }
    }
}
