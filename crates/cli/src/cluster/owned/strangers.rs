//! What is in a namespace of ours and is not ours: it would go with the namespace, and nobody has asked for that.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, stream};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::discovery::Scope;
use kube::{Client, ResourceExt as _};
use tulle_runtime::names::labels;

use super::{AT_ONCE, kinds};
use crate::cluster::answer;
use crate::cluster::error::ClusterError;

/// What Kubernetes puts into each namespace: <https://kubernetes.io/docs/concepts/security/service-accounts/#default-service-accounts>
/// and <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#root-ca-cert-publisher>.
const OF_EACH: [(&str, &str); 2] = [
    ("ServiceAccount", "default"),
    ("ConfigMap", "kube-root-ca.crt"),
];
/// What Kubernetes writes of other objects, and nobody misses.
const PASSING: [&str; 2] = ["Event", "EndpointSlice"];
/// The group of the kinds that we define.
const OURS: &str = "tulle.dev";

/// What was found of others, and where nobody could look.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Strangers {
    /// Kind and name, in order.
    pub(in crate::cluster) objects: Vec<String>,
    /// Kinds, or groups of them, that could not be listed, and why.
    pub(in crate::cluster) unseen: BTreeMap<String, String>,
}

impl Strangers {
    pub(in crate::cluster) fn are_none(&self) -> bool {
        self.objects.is_empty() && self.unseen.is_empty()
    }
}

/// An object of a namespace.
#[derive(Debug)]
struct Resident {
    group: String,
    kind: String,
    name: String,
    uid: String,
    owners: Vec<String>,
    ours: bool,
}

/// Looks for others' objects of all kinds in a namespace. If our own kinds go with all of theirs, these do not count.
///
/// # Errors
/// If the API server does not say what groups there are.
pub(in crate::cluster) async fn strangers(
    client: &Client,
    namespace: &str,
    own_kinds_go: bool,
) -> Result<Strangers, ClusterError> {
    let mut unseen = BTreeMap::new();
    let kinds = kinds(client, None, &mut unseen).await?;
    let kinds = kinds.into_iter().filter(|(kind, scope)| {
        let goes = own_kinds_go && kind.group == OURS;
        *scope == Scope::Namespaced && !PASSING.contains(&&*kind.kind) && !goes
    });
    let listed = kinds.map(|(kind, _)| async move { list(client, namespace, kind).await });
    let mut listed = stream::iter(listed).buffered(AT_ONCE);
    let mut residents = Vec::new();
    while let Some((kind, objects)) = listed.next().await {
        match objects {
            Ok(objects) => residents.extend(objects),
            Err(error) => {
                unseen.insert(kind, error.reason());
            }
        }
    }
    Ok(Strangers {
        objects: of_others(&residents),
        unseen,
    })
}

async fn list(
    client: &Client,
    namespace: &str,
    kind: ApiResource,
) -> (String, Result<Vec<Resident>, ClusterError>) {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
    let what = format!("list the {} of {namespace}", kind.plural);
    let listed = answer(&what, api.list_metadata(&ListParams::default())).await;
    let resident = |object: PartialObjectMeta<DynamicObject>| Resident {
        group: kind.group.clone(),
        kind: kind.kind.clone(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        owners: object
            .owner_references()
            .iter()
            .map(|it| it.uid.clone())
            .collect(),
        ours: object.labels().get(labels::PART_OF).map(String::as_str)
            == Some(labels::PART_OF_TULLE),
    };
    let residents = listed.map(|listed| listed.into_iter().map(resident).collect());
    (kind.plural.clone(), residents)
}

/// Those of others by kind and name. What belongs to another object of the namespace goes as that does.
fn of_others(residents: &[Resident]) -> Vec<String> {
    let uids: BTreeSet<_> = residents.iter().map(|it| &it.uid).collect();
    let counts = |it: &&Resident| {
        let of_each = it.group.is_empty() && OF_EACH.contains(&(&*it.kind, &*it.name));
        let belongs = it.owners.iter().any(|owner| uids.contains(owner));
        !it.ours && !of_each && !belongs
    };
    let mut seen = BTreeSet::new();
    let others = residents.iter().filter(counts);
    // Two groups may serve one object.
    let others = others.filter(|it| seen.insert(&it.uid));
    let mut named: Vec<_> = others
        .map(|it| format!("{} {}", it.kind, it.name))
        .collect();
    named.sort();
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(kind: &str, name: &str, owner: &str, ours: bool) -> Resident {
        let (group, kind) = kind.rsplit_once('/').unwrap_or(("", kind));
        Resident {
            group: group.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            uid: format!("{group}/{kind}/{name}"),
            owners: [owner]
                .into_iter()
                .filter(|it| !it.is_empty())
                .map(str::to_owned)
                .collect(),
            ours,
        }
    }

    #[test]
    fn an_object_is_of_others_unless_it_is_ours_kubernetes_or_belongs_to_one_that_counts() {
        let ours = || resident("apps/Deployment", "tulle-control", "", true);
        let theirs = || resident("apps/StatefulSet", "db", "", false);
        for (name, object, counts) in [
            ("ours", resident("Secret", "tulle-ca", "", true), false),
            ("a Secret", resident("Secret", "mine", "", false), true),
            (
                "each has it",
                resident("ConfigMap", "kube-root-ca.crt", "", false),
                false,
            ),
            (
                "each has it",
                resident("ServiceAccount", "default", "", false),
                false,
            ),
            (
                "only its like",
                resident("Secret", "default", "", false),
                true,
            ),
            (
                "another group's",
                resident("example.org/ServiceAccount", "default", "", false),
                true,
            ),
            (
                "of one that goes",
                resident(
                    "apps/ReplicaSet",
                    "a-1",
                    "apps/Deployment/tulle-control",
                    false,
                ),
                false,
            ),
            (
                "of one that is named",
                resident("Pod", "db-0", "apps/StatefulSet/db", false),
                false,
            ),
            (
                "of one elsewhere",
                resident("Secret", "root", "somewhere", false),
                true,
            ),
        ] {
            let title = format!("{} {}", object.kind, object.name);
            let named = of_others(&[ours(), object, theirs()]);
            assert_eq!(named.contains(&title), counts, "{name}: {named:?}");
            assert!(named.contains(&"StatefulSet db".to_owned()), "{named:?}");
        }
    }

    #[test]
    fn what_two_groups_serve_is_one_object() {
        let twice = [(); 2].map(|()| resident("Ingress", "web", "", false));
        assert_eq!(of_others(&twice), ["Ingress web"]);
    }
}
