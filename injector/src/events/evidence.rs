//! What an Event goes by. The webhook takes reviews of whoever reaches it, so what one says of a pod and its owner is a hint alone:
//! an Event is written about an owner that the API server has, of what is in the template of its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ObjectReference, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use serde_json::Value;

use super::Unanswered;
use super::owner::controller;

/// How long the API server may take to say what an owner is.
const ASK: Duration = Duration::from_secs(5);

/// What the words about a pod are made of: its annotations, and the names of its containers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    annotations: BTreeMap<String, String>,
    containers: BTreeSet<String>,
}

impl Evidence {
    /// That of a pod which is reviewed.
    pub(crate) fn of(pod: &Value) -> Self {
        let annotations = pod["metadata"]["annotations"].as_object();
        let annotations = annotations
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        let lists = ["containers", "initContainers"].map(|list| pod["spec"][list].as_array());
        let containers = lists.into_iter().flatten().flatten();
        let names = containers.filter_map(|it| it["name"].as_str());
        Self {
            annotations: annotations.collect(),
            containers: names.map(str::to_owned).collect(),
        }
    }

    /// Whether all of it that these words name is in a template, too.
    fn bears(&self, words: &str, template: &PodTemplateSpec) -> bool {
        let meta = template.metadata.as_ref();
        let theirs = meta.and_then(|it| it.annotations.as_ref());
        let mut named = self
            .annotations
            .iter()
            .filter(|(name, _)| words.contains(*name));
        let annotations =
            named.all(|(name, value)| theirs.and_then(|it| it.get(name)) == Some(value));
        let spec = template.spec.as_ref();
        let has = |name: &String| {
            let init = spec.iter().flat_map(|it| &it.init_containers).flatten();
            let mut all = spec.iter().flat_map(|it| &it.containers).chain(init);
            all.any(|it| it.name == *name)
        };
        let mut named = self.containers.iter().filter(|name| words.contains(*name));
        annotations && named.all(has)
    }
}

/// Whose a pod is that these words are about, as far as Kubernetes' own controllers go; nothing where the API server has no such owner
/// with such pods, or it is of a kind that is not known here.
pub(crate) async fn proven(
    client: &Client,
    owner: &ObjectReference,
    evidence: &Evidence,
    words: &str,
) -> Result<Option<ObjectReference>, Unanswered> {
    let named = [&owner.namespace, &owner.name].map(|it| it.as_deref().unwrap_or_default());
    let [namespace, name] = named;
    let (version, kind) = (owner.api_version.as_deref(), owner.kind.as_deref());
    let client = client.clone();
    let asking = async {
        let found = match (version, kind) {
            (Some("apps/v1"), Some("ReplicaSet")) => {
                let found = Api::<ReplicaSet>::namespaced(client, namespace)
                    .get_opt(name)
                    .await?;
                found.and_then(|it| Some((it.metadata, it.spec?.template?)))
            }
            (Some("apps/v1"), Some("StatefulSet")) => {
                let found = Api::<StatefulSet>::namespaced(client, namespace)
                    .get_opt(name)
                    .await?;
                found.and_then(|it| Some((it.metadata, it.spec?.template)))
            }
            (Some("apps/v1"), Some("DaemonSet")) => {
                let found = Api::<DaemonSet>::namespaced(client, namespace)
                    .get_opt(name)
                    .await?;
                found.and_then(|it| Some((it.metadata, it.spec?.template)))
            }
            (Some("batch/v1"), Some("Job")) => {
                let found = Api::<Job>::namespaced(client, namespace)
                    .get_opt(name)
                    .await?;
                found.and_then(|it| Some((it.metadata, it.spec?.template)))
            }
            _ => None,
        };
        Ok::<Option<(ObjectMeta, PodTemplateSpec)>, kube::Error>(found)
    };
    let found = tokio::time::timeout(ASK, asking).await??;
    let is_it = |meta: &ObjectMeta| meta.uid.is_some() && meta.uid == owner.uid;
    let found = found.filter(|(meta, template)| is_it(meta) && evidence.bears(words, template));
    Ok(found.map(|(meta, _)| controller(&meta, namespace).unwrap_or_else(|| owner.clone())))
}
