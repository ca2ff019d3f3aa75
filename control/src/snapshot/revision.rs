//! A stored version as a [`ConfigSnapshot`], and back.
//!
//! It holds the spec only, and belongs to its object, so that it goes with it. Its name says of which object and generation it
//! is, so that no two replicas make two of one. It is no ControllerRevision, though that is Kubernetes' kind for an immutable
//! snapshot of state: whoever may write those decides what StatefulSets and DaemonSets run.
//!
//! Whoever may create them in a namespace could put another version of an object of that namespace in force that cannot be used at
//! the moment. Nobody else can: namespace, uid and owner have to agree.

use std::sync::Arc;

use kube::Resource as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tulle_runtime::names::labels;

use super::Version;
use crate::api::{self, ConfigSnapshot};
use crate::store::{Kind, ObjectKey, ObjectRef};

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
            name: format!("{}-{generation}", self.uid).into(),
        }
    }

    /// Of what it is a version.
    pub(super) fn of(&self) -> (ObjectRef, Arc<str>) {
        (self.object.clone(), self.uid.clone())
    }

    /// The ConfigSnapshot.
    pub(crate) fn manifest(&self) -> Value {
        let (group, kind) = name_of(self.object.kind);
        let spec = self.version.spec.as_deref().unwrap_or("{}");
        let spec: Value = serde_json::from_str(spec).unwrap_or_default();
        let key = self.key();
        json!({
            "apiVersion": ConfigSnapshot::api_version(&()),
            "kind": ConfigSnapshot::kind(&()),
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
            "spec": { "generation": self.version.generation, "content": spec },
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
    metadata: Owned,
    #[serde(borrow)]
    spec: Spec<'a>,
}

#[derive(Deserialize)]
struct Spec<'a> {
    generation: i64,
    #[serde(borrow)]
    content: &'a RawValue,
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

/// A ConfigSnapshot that was read.
#[derive(Debug)]
pub(crate) struct Found {
    /// What it is called; `None` if nobody can tell.
    pub(crate) key: Option<ObjectKey>,
    /// Its `resourceVersion`.
    pub(crate) version: Option<String>,
    /// An error says why it cannot be used.
    pub(crate) revision: Result<Revision, String>,
}

/// Reads a ConfigSnapshot.
pub(crate) fn read(json: &str) -> Found {
    let Named { metadata } = match serde_json::from_str(json) {
        Ok(named) => named,
        Err(error) => {
            return Found {
                key: None,
                version: None,
                revision: Err(error.to_string()),
            };
        }
    };
    let key = ObjectKey {
        namespace: metadata.namespace,
        name: metadata.name,
    };
    Found {
        revision: revision(json, &key),
        key: Some(key),
        version: metadata.resource_version,
    }
}

/// Uid and generation, if a name has them.
fn parts(name: &str) -> Option<(&str, i64)> {
    let (uid, generation) = name.rsplit_once('-')?;
    Some((uid, generation.parse().ok()?))
}

fn revision(json: &str, key: &ObjectKey) -> Result<Revision, String> {
    let stored: Stored<'_> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let [owner] = &stored.metadata.owner_references[..] else {
        return Err("it has more than one owner, or none".to_owned());
    };
    let generation = stored.spec.generation;
    if parts(&key.name) != Some((&*owner.uid, generation)) {
        return Err("its name is not that of its owner's uid and its generation".to_owned());
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
            generation,
            spec: Some(stored.spec.content.get().into()),
        },
    })
}
