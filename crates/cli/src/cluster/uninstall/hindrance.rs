//! What speaks against taking something away, and what to do about it.

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::{SYSTEM_NAMESPACES, labels};

use super::revisions::Revisions;
use crate::cluster::answer;
use crate::cluster::check::{ask_for, some};
use crate::cluster::error::ClusterError;
use crate::cluster::helm::Release;

/// Names of a command; with more of them somebody writes a loop.
const FEW: usize = 5;

/// Why something should not be taken away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Hindrance {
    #[error("there is no revision {revision}{}", there_are(others))]
    NoSuchRevision {
        revision: String,
        others: Vec<String>,
    },
    #[error("revision {0} does not go by itself: it is the last one")]
    LastRevision(String),
    #[error(
        "{} namespaces ask for revision {revision}, and new pods there would start without a sidecar: {}",
        namespaces.len(),
        few(namespaces)
    )]
    Asked {
        revision: String,
        namespaces: Vec<String>,
        /// Which they could ask for.
        others: Vec<String>,
    },
    #[error("it is of Helm's release {}", releases.iter().map(Release::to_string).collect::<Vec<_>>().join(" and "))]
    OfHelm { releases: Vec<Release> },
}

fn few(names: &[String]) -> String {
    some(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn there_are(others: &[String]) -> String {
    match others {
        [] => ", nor any other".to_owned(),
        others => format!("; there are: {}", others.join(", ")),
    }
}

impl Hindrance {
    /// What the user can do about it.
    pub(crate) fn next_step(&self) -> String {
        match self {
            Self::NoSuchRevision { others, .. } if others.is_empty() => {
                "see what is left of Tulle: `tulle uninstall`; with --yes that goes".to_owned()
            }
            Self::NoSuchRevision { .. } => "name one of these, or none for all of Tulle".to_owned(),
            Self::LastRevision(_) => "`tulle uninstall --yes` takes away the whole mesh".to_owned(),
            Self::Asked {
                namespaces, others, ..
            } => {
                let names = match namespaces.len() {
                    ..=FEW => namespaces.join(" "),
                    _ => "NAME".to_owned(),
                };
                let (other, which) = match &others[..] {
                    [other] => (other.as_str(), String::new()),
                    others => ("OTHER", format!(" (there are: {})", others.join(", "))),
                };
                format!(
                    "kubectl label namespace {names} {}={other} --overwrite{which}, restart what runs there, and try again; --force \
                     if they are to have none",
                    labels::REVISION
                )
            }
            Self::OfHelm { releases } => {
                let commands: Vec<_> = releases
                    .iter()
                    .map(|it| format!("`{}`", it.uninstall()))
                    .collect();
                format!(
                    "{} first, or Helm goes on listing it; then this takes away the rest; --force if Helm is no more",
                    commands.join(" and ")
                )
            }
        }
    }
}

/// Fails if a revision is the last one that works.
pub(super) fn last(revisions: &Revisions, revision: &str) -> Result<(), Hindrance> {
    match revisions.others(revision).is_empty() {
        true => Err(Hindrance::LastRevision(revision.to_owned())),
        false => Ok(()),
    }
}

/// Fails if Helm has installed any of it.
pub(super) fn of_helm<'a>(
    releases: impl Iterator<Item = Option<&'a Release>>,
) -> Result<(), Hindrance> {
    let mut releases: Vec<_> = releases.flatten().cloned().collect();
    releases.sort();
    releases.dedup();
    match releases.is_empty() {
        true => Ok(()),
        false => Err(Hindrance::OfHelm { releases }),
    }
}

/// Fails if namespaces ask for a revision that is not the last one. Pods that do so themselves have its sidecars, and count as that.
///
/// # Errors
/// Also if namespaces cannot be listed.
pub(super) async fn asked(
    client: &Client,
    revisions: &Revisions,
    revision: &str,
) -> Result<(), ClusterError> {
    let others = revisions.others(revision);
    if others.is_empty() {
        return Ok(());
    }
    let api: Api<Namespace> = Api::all(client.clone());
    let every = ListParams::default();
    let all = answer("list the namespaces", api.list(&every)).await?.items;
    let namespaces: Vec<_> = all
        .iter()
        .filter(|it| has_new_pods(it) && ask_for(it, revision))
        .map(Namespace::name_any)
        .collect();
    if namespaces.is_empty() {
        return Ok(());
    }
    Err(Hindrance::Asked {
        revision: revision.to_owned(),
        namespaces,
        others,
    }
    .into())
}

/// Whether pods with sidecars can be made in it.
fn has_new_pods(namespace: &Namespace) -> bool {
    let ours = SYSTEM_NAMESPACES.contains(&&*namespace.name_any());
    !ours && namespace.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_revision_that_is_the_last_one_does_not_go_by_itself() {
        let one = Revisions::of([("Deployment", "next"), ("ClusterRole", "old")]);
        let two = Revisions::of([("Deployment", "next"), ("Deployment", "default")]);
        for (revisions, revision, goes) in [
            (&two, "next", true),
            (&two, "default", true),
            (&one, "next", false),
            // What is left of one goes while another works.
            (&one, "old", true),
        ] {
            let judged = last(revisions, revision);
            assert_eq!(judged.is_ok(), goes, "{revision}: {judged:?}");
        }
    }

    #[test]
    fn what_helm_has_installed_names_its_releases_once_each() {
        let release = |name: &str| Release {
            name: name.to_owned(),
            namespace: "mesh".to_owned(),
        };
        let (one, two) = (release("a"), release("b"));
        assert!(of_helm([None, None].into_iter()).is_ok());
        let hindrance = of_helm([Some(&two), None, Some(&one), Some(&two)].into_iter());
        let hindrance = hindrance.expect_err("Helm's");
        assert_eq!(
            hindrance.to_string(),
            "it is of Helm's release a -n mesh and b -n mesh"
        );
        assert!(
            hindrance
                .next_step()
                .starts_with("`helm uninstall a -n mesh` and `helm uninstall b -n mesh` first,")
        );
    }

    #[test]
    fn who_asks_for_a_revision_hears_of_those_that_stay() {
        let asked = |namespaces: usize, others: &[&str]| Hindrance::Asked {
            revision: "next".to_owned(),
            namespaces: (0..namespaces).map(|at| format!("n{at}")).collect(),
            others: others.iter().map(|it| (*it).to_owned()).collect(),
        };
        for (hindrance, words) in [
            (
                asked(2, &["default"]),
                "kubectl label namespace n0 n1 tulle.dev/rev=default --overwrite,",
            ),
            (
                asked(1, &["a", "b"]),
                "kubectl label namespace n0 tulle.dev/rev=OTHER --overwrite (there are: a, b),",
            ),
            (asked(9, &["a"]), "kubectl label namespace NAME "),
        ] {
            let said = hindrance.next_step();
            assert!(said.starts_with(words), "{said}");
        }
    }

    #[test]
    fn a_revision_that_is_not_there_names_those_that_are() {
        let said = |others: &[&str]| {
            let others = others.iter().map(|it| (*it).to_owned()).collect();
            let revision = "nosuch".to_owned();
            Hindrance::NoSuchRevision { revision, others }.to_string()
        };
        let expected = "there is no revision nosuch; there are: default, next";
        assert_eq!(said(&["default", "next"]), expected);
        assert_eq!(said(&[]), "there is no revision nosuch, nor any other");
    }

    #[test]
    fn namespaces_count_in_which_pods_with_sidecars_can_be_made() {
        for (metadata, counts) in [
            (json!({ "name": "shop" }), true),
            (json!({ "name": "kube-system" }), false),
            (
                json!({ "name": "shop", "deletionTimestamp": "2026-01-01T00:00:00Z" }),
                false,
            ),
        ] {
            let namespace = serde_json::from_value(json!({ "metadata": metadata }));
            let namespace = namespace.expect("a namespace");
            assert_eq!(has_new_pods(&namespace), counts, "{metadata}");
        }
    }
}
