//! A stored version as a ControllerRevision, and back.
//!
//! <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/controller-revision-v1/>. It holds the spec only, and
//! belongs to its object, so that it goes with it. Its name says of which object and generation it is, so that no two
//! replicas make two of one.
//!
//! Whoever may create ControllerRevisions in a namespace may decide what its StatefulSets run, and could put another version of an
//! object of that namespace in force that cannot be used at the moment. Nobody else can: namespace, uid and owner have to agree.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tulle_runtime::names::labels;

use super::Version;
use crate::api;
use crate::store::{Kind, ObjectKey, ObjectRef};

/// What the names of all of them begin with.
const PREFIX: &str = "tulle-";
const GATEWAY: &str = "gateway.networking.k8s.io";

/// A version of an object, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revision {
    pub(crate) object: ObjectRef,
    /// Of the object: another one of the same name has another.
    pub(crate) uid: Arc<str>,
    /// The version of its API.
    pub(crate) api: Arc<str>,
    pub(crate) version: Version,
}

impl Revision {
    /// What it is called.
    pub(crate) fn key(&self) -> ObjectKey {
        let generation = self.version.generation;
        ObjectKey {
            namespace: self.object.key.namespace.clone(),
            name: format!("{PREFIX}{}-{generation}", self.uid).into(),
        }
    }

    /// Of what it is a version.
    pub(super) fn of(&self) -> (ObjectRef, Arc<str>) {
        (self.object.clone(), self.uid.clone())
    }

    /// The ControllerRevision.
    pub(crate) fn manifest(&self) -> Value {
        let (group, kind) = name_of(self.object.kind);
        let spec = self.version.spec.as_deref().unwrap_or("{}");
        let spec: Value = serde_json::from_str(spec).unwrap_or_default();
        let key = self.key();
        json!({
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "labels": { labels::PART_OF: labels::PART_OF_TULLE },
                "ownerReferences": [{
                    "apiVersion": format!("{group}/{}", self.api),
                    "kind": kind,
                    "name": self.object.key.name,
                    "uid": self.uid,
                    "controller": true,
                    "blockOwnerDeletion": false,
                }],
            },
            "revision": self.version.generation,
            "data": { "spec": spec },
        })
    }
}

/// Group and kind as manifests write them.
fn name_of(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::PeerAuthentication => (api::GROUP, kind.as_str()),
        Kind::IstioPeerAuthentication => (api::ISTIO_GROUP, Kind::PeerAuthentication.as_str()),
        _ => (GATEWAY, kind.as_str()),
    }
}

fn kind_of(group: &str, name: &str) -> Option<Kind> {
    let mut kinds = Kind::ALL.into_iter().filter(|kind| kind.is_authored());
    kinds.find(|kind| name_of(*kind) == (group, name))
}

#[derive(Deserialize)]
struct Named {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Arc<str>,
    namespace: Arc<str>,
    resource_version: Option<String>,
}

#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    data: Data<'a>,
    metadata: Owned,
    revision: i64,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    spec: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Owned {
    owner_references: Vec<Owner>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Owner {
    api_version: String,
    kind: String,
    name: Arc<str>,
    uid: Arc<str>,
}

/// A ControllerRevision that was read.
#[derive(Debug)]
pub(crate) struct Found {
    /// What it is called; `None` if nobody can tell.
    pub(crate) key: Option<ObjectKey>,
    /// Its `resourceVersion`.
    pub(crate) version: Option<String>,
    /// `None`: none of ours. An error says why it cannot be used.
    pub(crate) revision: Option<Result<Revision, String>>,
}

/// Reads a ControllerRevision that has our label; somebody else's may have it, too.
pub(crate) fn read(json: &str) -> Found {
    let Ok(Named { metadata }) = serde_json::from_str(json) else {
        return Found {
            key: None,
            version: None,
            revision: None,
        };
    };
    let key = ObjectKey {
        namespace: metadata.namespace,
        name: metadata.name,
    };
    let revision = parts(&key.name).map(|parts| revision(json, &key, parts));
    Found {
        key: Some(key),
        version: metadata.resource_version,
        revision,
    }
}

/// Uid and generation, if a name has them.
fn parts(name: &str) -> Option<(&str, i64)> {
    let (uid, generation) = name.strip_prefix(PREFIX)?.rsplit_once('-')?;
    let generation: i64 = generation.parse().ok()?;
    // Names of others end in a hash.
    let is_uid = uid.len() == 36 && uid.matches('-').count() == 4;
    (is_uid && generation > 0).then_some((uid, generation))
}

fn revision(json: &str, key: &ObjectKey, parts: (&str, i64)) -> Result<Revision, String> {
    let stored: Stored<'_> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let [owner] = &stored.metadata.owner_references[..] else {
        return Err("it has more than one owner, or none".to_owned());
    };
    if (&*owner.uid, stored.revision) != parts {
        return Err("its name is not that of its owner's uid and its revision".to_owned());
    }
    let named = owner
        .api_version
        .split_once('/')
        .and_then(|(group, api)| Some((kind_of(group, &owner.kind)?, api)));
    let Some((kind, api)) = named else {
        let (api, kind) = (&owner.api_version, &owner.kind);
        return Err(format!(
            "its owner is a {kind} of {api}, of which none are kept"
        ));
    };
    Ok(Revision {
        object: ObjectRef {
            kind,
            key: ObjectKey {
                namespace: key.namespace.clone(),
                name: owner.name.clone(),
            },
        },
        uid: owner.uid.clone(),
        api: api.into(),
        version: Version {
            generation: stored.revision,
            spec: Some(stored.data.spec.get().into()),
        },
    })
}
