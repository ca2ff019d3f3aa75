//! An object as it is to be, and the one in the cluster.

use kube::Client;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use serde_json::{Value, json};

use super::change::{Change, Verb};
use super::replicas;
use crate::cluster::error::ClusterError;
use crate::cluster::helm::Release;
use crate::cluster::{answer, title};
use crate::error::CliError;
use crate::output;

/// Who owns the fields: whoever installs with kubectl, so that one goes on where the other was.
const MANAGER: &str = "kubectl";

/// Where an object goes, and what it is to be.
pub(super) struct Target {
    kind: String,
    namespace: Option<String>,
    name: String,
    object: Value,
    api: Api<DynamicObject>,
}

impl Target {
    pub(super) fn new(client: &Client, object: Value) -> Result<Self, CliError> {
        let types: TypeMeta = serde_json::from_value(object.clone())
            .map_err(|error| CliError::Render(error.into()))?;
        let kind =
            GroupVersionKind::try_from(types).map_err(|error| CliError::Render(error.into()))?;
        let resource = ApiResource::from_gvk(&kind);
        let text = |field: &str| object["metadata"][field].as_str().map(ToOwned::to_owned);
        let namespace = text("namespace");
        let api = match &namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        Ok(Self {
            kind: kind.kind,
            namespace,
            name: text("name").unwrap_or_default(),
            object,
            api,
        })
    }

    /// Kind and name, as people say it.
    pub(super) fn title(&self) -> String {
        title(&self.kind, self.namespace.as_deref(), &self.name)
    }

    /// Its name, if it is what pods are rolled out by.
    pub(super) fn deployment(&self) -> Option<&str> {
        (self.kind == "Deployment").then_some(&*self.name)
    }

    /// What applying it would change; `None` if nothing.
    ///
    /// # Errors
    /// If it cannot be seen, or is Helm's.
    pub(super) async fn change(&self) -> Result<Option<Change>, CliError> {
        let before = self.live().await?;
        let after = match &before {
            // Where its namespace or kind is to be made first, there is nothing to try it in.
            None => self.object.clone(),
            Some(live) => {
                not_of_helm(live)?;
                let mut object = self.object.clone();
                if let Some(count) = replicas::at_stake(&object, &value(live)?, MANAGER) {
                    object["spec"]["replicas"] = json!(count);
                }
                plain(self.patch(&object, true).await?)?
            }
        };
        let change = match before {
            None => Verb::Create,
            Some(_) => Verb::Change,
        };
        let before = before.map(plain).transpose()?;
        let (before, after) = (yaml(before.as_ref())?, yaml(Some(&after))?);
        Ok((before != after).then(|| Change {
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            change,
            before,
            after,
        }))
    }

    pub(super) async fn apply(&self) -> Result<(), CliError> {
        if self.kind == "Deployment"
            && let Some(live) = self.live().await?
            && let Some(count) = replicas::at_stake(&self.object, &value(&live)?, MANAGER)
        {
            self.keep(count).await?;
        }
        self.patch(&self.object, false).await?;
        Ok(())
    }

    /// Has so many replicas stay.
    async fn keep(&self, replicas: u64) -> Result<(), ClusterError> {
        let kept = replicas::kept(&self.object, replicas);
        let how = PatchParams::apply(replicas::KEEPER);
        let what = format!("keep the replicas of {}", self.title());
        let applied = async {
            match self.api.patch(&self.name, &how, &Patch::Apply(kept)).await {
                // Somebody has scaled it meanwhile, and so has the say.
                Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
                other => other.map(drop),
            }
        };
        answer(&what, applied).await
    }

    async fn live(&self) -> Result<Option<DynamicObject>, ClusterError> {
        let what = format!("read {}", self.title());
        answer(&what, self.api.get_opt(&self.name)).await
    }

    async fn patch(&self, object: &Value, dry_run: bool) -> Result<DynamicObject, ClusterError> {
        let mut how = PatchParams::apply(MANAGER).force();
        how.dry_run = dry_run;
        let what = format!("apply {}", self.title());
        let patch = Patch::Apply(object);
        answer(&what, self.api.patch(&self.name, &how, &patch)).await
    }
}

/// What Helm has installed is Helm's to change.
fn not_of_helm(live: &DynamicObject) -> Result<(), ClusterError> {
    match Release::of(live.annotations()) {
        None => Ok(()),
        Some(Release { name, namespace }) => Err(ClusterError::OfHelm {
            release: name,
            namespace,
        }),
    }
}

fn value(object: &DynamicObject) -> Result<Value, CliError> {
    serde_json::to_value(object).map_err(|error| CliError::Render(error.into()))
}

/// Without what the API server keeps for itself.
fn plain(mut object: DynamicObject) -> Result<Value, CliError> {
    object.managed_fields_mut().clear();
    let mut value = value(&object)?;
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        for field in [
            "creationTimestamp",
            "generation",
            "managedFields",
            "resourceVersion",
            "uid",
        ] {
            metadata.remove(field);
        }
    }
    Ok(value)
}

fn yaml(object: Option<&Value>) -> Result<String, CliError> {
    let text = object.map(output::yaml).transpose()?;
    Ok(text.unwrap_or_default())
}
