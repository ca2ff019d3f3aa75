//! What of a cluster is ours: everything that bears our label, whoever wrote it.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PropagationPolicy};
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Client, ResourceExt as _};
use serde::Serialize;
use tulle_runtime::names::{CONTROL_NAMESPACE, labels};

use super::answer;
use crate::error::CliError;

/// How long an object may take to be gone.
const GONE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// The kind of namespaces.
pub(super) const NAMESPACE: &str = "Namespace";

/// What goes with its Service, although it says so nowhere.
const ENDPOINTS: &str = "Endpoints";

/// An object of ours.
#[derive(Debug, Serialize)]
pub(super) struct Owned {
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    #[serde(skip)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(skip)]
    api: Api<DynamicObject>,
}

impl Owned {
    /// Kind and name, as people say it.
    pub(super) fn title(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} {namespace}/{}", self.kind, self.name),
            None => format!("{} {}", self.kind, self.name),
        }
    }

    /// Whether it was installed with a revision, and not written by a control plane at work.
    pub(super) fn is_of(&self, revision: &str) -> bool {
        let of = self.labels.get(labels::REVISION);
        of.is_some_and(|of| of == revision) && self.labels.contains_key(labels::APP_NAME)
    }

    pub(super) async fn delete(&self) -> Result<(), CliError> {
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

    /// Waits until it is there no more.
    pub(super) async fn gone(&self) -> Result<(), CliError> {
        let what = format!("look whether {} is gone", self.title());
        let wait = async {
            while answer(&what, self.api.get_metadata_opt(&self.name))
                .await?
                .is_some()
            {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        match tokio::time::timeout(GONE, wait).await {
            Ok(gone) => gone,
            Err(_) => Err(CliError::Cluster {
                what: format!("delete {}", self.title()),
                reason: format!(
                    "it is still there after {} s; a finalizer may hold it",
                    GONE.as_secs()
                ),
            }),
        }
    }
}

/// Every object that bears our label and belongs to no other object.
pub(super) async fn find(client: &Client) -> Result<Vec<Owned>, CliError> {
    let discovery = Discovery::new(client.clone());
    let discovery = answer("list the kinds of the cluster", discovery.run()).await?;
    let selector = format!("{}={}", labels::PART_OF, labels::PART_OF_TULLE);
    let list = ListParams::default().labels(&selector);
    let mut targets = Vec::new();
    for (resource, capabilities) in discovery
        .groups()
        .flat_map(|group| group.recommended_resources())
    {
        let can = |verb| capabilities.supports_operation(verb);
        if !can(verbs::LIST) || !can(verbs::DELETE) {
            continue;
        }
        let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let what = format!("list {}", resource.plural);
        let found = answer(&what, all.list_metadata(&list)).await?;
        for object in found {
            // The cluster keeps one for each Service, with the Service's labels.
            if !object.owner_references().is_empty() || resource.kind == ENDPOINTS {
                continue;
            }
            let namespace = object
                .namespace()
                .filter(|_| capabilities.scope == Scope::Namespaced);
            let api = match &namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => all.clone(),
            };
            targets.push(Owned {
                kind: resource.kind.clone(),
                name: object.name_any(),
                labels: object.labels().clone(),
                namespace,
                api,
            });
        }
    }
    // A namespace of somebody else's is not ours to delete, whatever its labels say.
    targets.retain(|target| target.kind != NAMESPACE || target.name == CONTROL_NAMESPACE);
    Ok(targets)
}
