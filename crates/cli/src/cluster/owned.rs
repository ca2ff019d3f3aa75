//! What of a cluster is ours: everything that bears our label, whoever wrote it.

mod held;
mod strangers;

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, PartialObjectMeta, PropagationPolicy,
};
use kube::discovery::{self, ApiCapabilities, ApiGroup, Scope, verbs};
use kube::{Client, ResourceExt as _};
use serde::Serialize;
use tulle_runtime::names::{CONTROL_NAMESPACE, labels};

use super::{answer, ours, title};
use crate::cluster::error::ClusterError;
use crate::cluster::helm::Release;
use crate::output;
pub(super) use strangers::{Strangers, strangers};

/// How long an object may take to be gone.
const GONE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Questions to the API server at a time.
const AT_ONCE: usize = 8;

/// The kind of namespaces.
pub(super) const NAMESPACE: &str = "Namespace";
/// The kind of what runs pods of ours.
pub(super) const DEPLOYMENT: &str = "Deployment";

/// By which Kubernetes keeps an object until what belongs to it is gone.
const OF_KUBERNETES: &str = "foregroundDeletion";

/// What goes with its Service, although it says so nowhere.
const ENDPOINTS: &str = "Endpoints";

/// The groups of what people write for control planes.
const AUTHORED: [&str; 3] = [
    "gateway.networking.k8s.io",
    "security.istio.io",
    "tulle.dev",
];

/// An object of ours.
#[derive(Debug, Serialize)]
pub(super) struct Owned {
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    #[serde(skip)]
    pub(super) labels: BTreeMap<String, String>,
    /// What Helm has installed it with.
    #[serde(skip)]
    pub(super) release: Option<Release>,
    #[serde(skip)]
    api: Api<DynamicObject>,
}

impl Owned {
    /// Kind and name, as people say it.
    pub(super) fn title(&self) -> String {
        title(&self.kind, self.namespace.as_deref(), &self.name)
    }

    /// The revision that it was installed with; none if a control plane at work has written it, or all share it.
    pub(super) fn revision(&self) -> Option<&str> {
        let of = self.labels.get(labels::REVISION).map(String::as_str);
        of.filter(|_| self.labels.contains_key(labels::APP_NAME))
    }

    pub(super) fn is_of(&self, revision: &str) -> bool {
        self.revision() == Some(revision)
    }

    pub(super) async fn delete(&self) -> Result<(), ClusterError> {
        let how = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        let what = format!("delete {}", self.title());
        let deleted = async {
            match self.api.delete(&self.name, &how).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                other => other.map(drop),
            }
        };
        answer(&what, deleted).await
    }

    /// Waits until it is there no more. If others who are away hold it until they are back, says why.
    pub(super) async fn gone(&self) -> Result<Option<String>, ClusterError> {
        let what = format!("look whether {} is gone", self.title());
        let mut finalizers = Vec::new();
        let wait = async {
            while let Some(object) = answer(&what, self.api.get_opt(&self.name)).await? {
                if let Some(reason) = self.held(&object).await {
                    return Ok(Some(reason));
                }
                finalizers = object.metadata.finalizers.unwrap_or_default();
                tokio::time::sleep(LOOK).await;
            }
            Ok(None)
        };
        match tokio::time::timeout(GONE, wait).await {
            Ok(gone) => gone,
            Err(_) => Err(ClusterError::StillThere {
                object: self.title(),
                seconds: GONE.as_secs(),
                finalizers: finalizers
                    .into_iter()
                    .filter(|it| it != OF_KUBERNETES)
                    .collect(),
            }),
        }
    }

    async fn held(&self, object: &DynamicObject) -> Option<String> {
        if self.kind == NAMESPACE
            && let Some(reason) = held::by_kinds(&object.data)
        {
            return Some(reason);
        }
        let (namespace, selector) = match self.kind.as_str() {
            NAMESPACE => (self.name.as_str(), BTreeMap::new()),
            DEPLOYMENT => (self.namespace.as_deref()?, held::selector(&object.data)?),
            _ => return None,
        };
        let client = self.api.clone().into_client();
        held::by_nodes(&client, namespace, &selector).await
    }
}

/// What was found of ours, and where nobody could look.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) objects: Vec<Owned>,
    /// Kinds, or groups of them, that could not be listed, and why.
    pub(super) unseen: BTreeMap<String, String>,
}

impl Found {
    /// Says where nobody could look.
    pub(super) fn warn(&self) {
        for (what, reason) in &self.unseen {
            output::warning(&format!("cannot look for {what}: {reason}"));
        }
    }
}

/// Every object that bears our label and belongs to no other object, of those kinds (group and kind), or of all.
///
/// What cannot be listed is left out and said: a group may be served by somebody who is away, and that is no reason to leave
/// everything else.
///
/// # Errors
/// If the API server does not say what groups there are.
pub(super) async fn find(
    client: &Client,
    only: Option<&[(&str, &str)]>,
) -> Result<Found, ClusterError> {
    let mut found = Found::default();
    let kinds = kinds(client, only, &mut found.unseen).await?;
    let listed = kinds
        .into_iter()
        .map(|(resource, scope)| async move { list(client, resource, scope).await });
    let mut listed = stream::iter(listed).buffered(AT_ONCE);
    let mut seen = BTreeSet::new();
    while let Some((kind, objects)) = listed.next().await {
        match objects {
            Ok(objects) => {
                let new = |it: &(Option<String>, Owned)| {
                    it.0.as_ref().is_none_or(|uid| seen.insert(uid.clone()))
                };
                let objects = objects.into_iter().filter(new);
                found.objects.extend(objects.map(|(_, object)| object));
            }
            Err(error) => {
                found.unseen.insert(kind, error.reason());
            }
        }
    }
    Ok(found)
}

/// The kinds whose objects may be ours, of those or of all that the cluster has. Where nobody could look is noted.
async fn kinds(
    client: &Client,
    only: Option<&[(&str, &str)]>,
    unseen: &mut BTreeMap<String, String>,
) -> Result<Vec<(ApiResource, Scope)>, ClusterError> {
    let groups = client.list_api_groups();
    let groups = answer("list the kinds of the cluster", groups).await?;
    let mut names: Vec<_> = groups.groups.into_iter().map(|group| group.name).collect();
    // The core group says nothing of itself; what two groups serve is taken of the first.
    names.push(ApiGroup::CORE_GROUP.to_owned());
    names.retain(|name| only.is_none_or(|only| only.iter().any(|(group, _)| group == name)));
    names.sort();
    let asked = names.iter().map(|name| async move {
        let what = format!("list the kinds of {name}");
        let group = discovery::group(client, name);
        (name, answer(&what, group).await)
    });
    let mut asked = stream::iter(asked).buffered(AT_ONCE);
    let mut kinds = Vec::new();
    while let Some((name, group)) = asked.next().await {
        match group {
            Ok(group) => kinds.extend(listable(&group, only)),
            Err(error) => {
                let kinds = match name.as_str() {
                    ApiGroup::CORE_GROUP => "core kinds".to_owned(),
                    name => format!("kinds of {name}"),
                };
                unseen.insert(kinds, error.reason());
            }
        }
    }
    Ok(kinds)
}

/// The kinds of a group whose objects may be ours, each once. Those of the version that the group prefers come first, and are not
/// all: a kind may have another version alone.
fn listable(group: &ApiGroup, only: Option<&[(&str, &str)]>) -> Vec<(ApiResource, Scope)> {
    let versions = iter::once(group.preferred_version_or_latest()).chain(group.versions());
    let kinds = versions.flat_map(|version| group.versioned_resources(version));
    let can = |it: &(ApiResource, ApiCapabilities)| {
        it.1.supports_operation(verbs::LIST) && it.1.supports_operation(verbs::DELETE)
    };
    let mut seen = BTreeSet::new();
    kinds
        .filter(can)
        .filter(|(it, _)| seen.insert(it.plural.clone()))
        // The cluster keeps one for each Service, with the Service's labels.
        .filter(|(it, _)| it.kind != ENDPOINTS)
        .filter(|(it, _)| only.is_none_or(|only| only.contains(&(&it.group, &it.kind))))
        .map(|(resource, capabilities)| (resource, capabilities.scope))
        .collect()
}

/// What bears our label of one kind, each with its uid.
async fn list(
    client: &Client,
    resource: ApiResource,
    scope: Scope,
) -> (String, Result<Vec<(Option<String>, Owned)>, ClusterError>) {
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let what = format!("list {}", resource.plural);
    let listed = match answer(&what, all.list_metadata(&ours())).await {
        Ok(listed) => listed,
        Err(error) => return (resource.plural, Err(error)),
    };
    let owned = |object: PartialObjectMeta<DynamicObject>| {
        let namespace = object.namespace();
        let namespace = namespace.filter(|_| scope == Scope::Namespaced);
        let api = match &namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => all.clone(),
        };
        let target = Owned {
            kind: resource.kind.clone(),
            name: object.name_any(),
            labels: object.labels().clone(),
            release: Release::of(object.annotations()),
            namespace,
            api,
        };
        (object.uid(), target)
    };
    let wanted = |object: &PartialObjectMeta<DynamicObject>| {
        // A namespace of somebody else's is not ours to delete, whatever its labels say.
        let foreign = resource.kind == NAMESPACE && object.name_any() != CONTROL_NAMESPACE;
        let mut owners = object.owner_references().iter();
        let goes_along = owners.any(|owner| !stays(&owner.api_version));
        !goes_along && !foreign
    };
    let objects = listed.into_iter().filter(wanted).map(owned).collect();
    (resource.plural.clone(), Ok(objects))
}

/// Whether an owner of that `apiVersion` is its author's, and stays: control planes store versions of what people write for
/// them, which belong to it.
fn stays(api_version: &str) -> bool {
    let group = api_version.split('/').next().unwrap_or_default();
    AUTHORED.contains(&group)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::hand_written::api_server;

    /// A group that prefers v1, and what it serves of that and of v1beta1.
    fn gateways(path: &str) -> Option<Value> {
        let version = |name: &str| json!({ "groupVersion": format!("gw/{name}"), "version": name });
        let resource = |plural: &str, kind: &str| {
            let verbs = ["list", "delete"];
            json!({ "name": plural, "singularName": "", "namespaced": true, "kind": kind, "verbs": verbs })
        };
        match path {
            "/apis" => {
                let versions = ["v1", "v1beta1"].map(version);
                let group =
                    json!({ "name": "gw", "versions": versions, "preferredVersion": versions[0] });
                Some(json!({ "groups": [group] }))
            }
            "/apis/gw/v1" => {
                let all = [resource("routes", "Route")];
                Some(json!({ "groupVersion": "gw/v1", "resources": all }))
            }
            "/apis/gw/v1beta1" => {
                let all = [resource("routes", "Route"), resource("grants", "Grant")];
                Some(json!({ "groupVersion": "gw/v1beta1", "resources": all }))
            }
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_kind_is_found_once_also_where_its_group_prefers_a_version_that_has_it_not() {
        let only = [("gw", "Route"), ("gw", "Grant")];
        for (only, expected) in [
            (None, &["gw/v1 Route", "gw/v1beta1 Grant"][..]),
            (Some(&only[1..]), &["gw/v1beta1 Grant"]),
        ] {
            let mut unseen = BTreeMap::new();
            let kinds = kinds(&api_server(gateways), only, &mut unseen).await;
            let kinds = kinds.expect("the groups are known");
            let named = |(it, _): &(ApiResource, Scope)| format!("{} {}", it.api_version, it.kind);
            assert_eq!(kinds.iter().map(named).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn only_what_people_write_stays_of_those_to_whom_something_of_ours_belongs() {
        for (owner, expected) in [
            ("gateway.networking.k8s.io/v1", true),
            ("tulle.dev/v1alpha1", true),
            ("apps/v1", false),
            ("v1", false),
        ] {
            assert_eq!(stays(owner), expected, "{owner}");
        }
    }
}
