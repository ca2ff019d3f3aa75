//! What a sidecar consists of, written into the raw JSON of a pod.
//!
//! Order: check that nothing of the pod is in the way, rewrite probes (which goes by the index of a container), take
//! out what the user says of the sidecar, then volumes, containers and metadata. The editor records what it does, so patch and document always agree.

mod containers;
mod editor;
mod guard;
mod identity;
mod metrics;
pub(crate) mod own;
mod probes;
mod resources;

use std::net::SocketAddr;

use json_patch::Patch;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use tulle_runtime::names::{annotations, containers as names, labels};

use crate::located;
use crate::options::Options;
use crate::{InjectError, InjectorConfig, Warning, WarningReason};
use editor::Editor;
use metrics::Scrape;

/// Annotation that `kubectl logs` and `kubectl exec` read; of use only where the sidecar comes first.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// A pod or pod template, typed: read only.
#[derive(Debug)]
pub(crate) struct Pod<'a> {
    pub(crate) meta: &'a ObjectMeta,
    pub(crate) spec: &'a PodSpec,
    /// Name of the workload that the template belongs to, where the document is one.
    pub(crate) workload: Option<&'a str>,
}

/// Adds a sidecar to the pod found at `template` of the document.
pub(crate) fn patch(
    document: Value,
    kind: &str,
    template: &[&str],
    pod: &Pod<'_>,
    config: &InjectorConfig,
) -> Result<(Patch, Value, Vec<Warning>), InjectError> {
    let options = Options::parse(pod.meta.annotations.as_ref(), config)?;
    guard::check(pod.spec)?;
    let mut warnings = options.warnings(pod.meta.annotations.as_ref());
    let scrape = metrics::plan(pod, &options);
    let unclear = scrape.as_ref().err().cloned();
    warnings.extend(unclear.map(|message| Warning::new(WarningReason::Scrape, message)));
    let scrape = scrape.ok().flatten();
    if !options.native_sidecar && options.xds_address.is_some() && is_to_end(kind, pod) {
        let message = format!(
            "{kind} has a sidecar that is not native and a control plane ({}) that does not tell it when the app has ended, so it \
             would keep its pods from completing: annotate them {}=true, or label them {}=disabled",
            annotations::XDS_ADDRESS,
            annotations::NATIVE_SIDECAR,
            labels::INJECT
        );
        warnings.push(Warning::new(WarningReason::Unending, message));
    }
    if located::is_needed(pod.spec) && !is_located(config) {
        let message = format!(
            "its resolver (spec.dnsPolicy) may not know {}, and then its sidecar, and so the app, does not start: unless its nameservers \
             know the cluster's names, set dnsPolicy ClusterFirst, or give the injector an address of the control plane \
             (--control-address)",
            config.control_address
        );
        warnings.push(Warning::new(WarningReason::Resolver, message));
    }
    if config.rewrite_probes {
        let apart = probes::apart(pod.spec, &options);
        warnings.extend(apart.map(|message| Warning::new(WarningReason::Apart, message)));
    }
    let mut editor = Editor::new(document, template);
    let result = write(&mut editor, pod, &options, config, scrape.as_ref());
    result.map_err(|source| InjectError::Patch {
        kind: kind.to_owned(),
        source,
    })?;
    let (patch, document) = editor.finish();
    Ok((patch, document, warnings))
}

/// Adds the label that says that there is a sidecar.
pub(crate) fn label(
    document: Value,
    kind: &str,
    template: &[&str],
) -> Result<(Patch, Value), InjectError> {
    let mut editor = Editor::new(document, template);
    let set = editor.set(&["metadata", "labels"], labels::PROXIED, json!("true"));
    set.map_err(|source| InjectError::Patch {
        kind: kind.to_owned(),
        source,
    })?;
    Ok(editor.finish())
}

/// Whether sidecars can be told where the control plane is without a name.
fn is_located(config: &InjectorConfig) -> bool {
    let named: Option<SocketAddr> = config.control_address.parse().ok();
    named.or_else(|| config.control_at.at()).is_some()
}

/// Whether somebody waits for the end of such pods: the API server shows the webhook none of a Job but its pods.
fn is_to_end(kind: &str, pod: &Pod<'_>) -> bool {
    let mut owners = pod.meta.owner_references.iter().flatten();
    matches!(kind, "Job" | "CronJob")
        || owners.any(|owner| owner.kind == "Job")
        || pod
            .spec
            .restart_policy
            .as_deref()
            .is_some_and(|policy| policy != "Always")
}

fn write(
    editor: &mut Editor,
    pod: &Pod<'_>,
    options: &Options,
    config: &InjectorConfig,
    scrape: Option<&Scrape>,
) -> Result<(), json_patch::PatchError> {
    let probes = if config.rewrite_probes {
        probes::rewrite(editor, pod.spec, options, &config.hook_key)?
    } else {
        probes::Probes::default()
    };
    for volume in containers::volumes() {
        editor.append(&["spec", "volumes"], volume)?;
    }
    let present = pod.spec.image_pull_secrets.as_deref().unwrap_or_default();
    for name in &config.image_pull_secrets {
        if !present.iter().any(|secret| secret.name == *name) {
            editor.append(&["spec", "imagePullSecrets"], json!({ "name": name }))?;
        }
    }
    let capture = containers::capture(options, config);
    let app_metrics = scrape.and_then(Scrape::to_variable);
    let mut sidecar = containers::sidecar(options, config, pod.spec, &probes, app_metrics);
    if let Some(own) = own::take(editor, pod)? {
        sidecar = own::merge(sidecar, own);
    }
    resources::widen(editor, &sidecar)?;
    if options.native_sidecar {
        editor.insert(&["spec", "initContainers"], 0, capture)?;
        editor.insert(&["spec", "initContainers"], 1, sidecar)?;
    } else {
        // The user's init containers run before any sidecar, so they need their network uncaptured.
        editor.append(&["spec", "initContainers"], capture)?;
        editor.insert(&["spec", "containers"], 0, sidecar)?;
        let has_default =
            (pod.meta.annotations.as_ref()).is_some_and(|all| all.contains_key(DEFAULT_CONTAINER));
        let mut apps = pod.spec.containers.iter();
        if let (Some(first), false) = (apps.find(|app| !own::is_own(app)), has_default) {
            editor.set(
                &["metadata", "annotations"],
                DEFAULT_CONTAINER,
                json!(first.name),
            )?;
        }
    }
    mark(editor, pod, options, config)?;
    if let Some(scrape) = scrape {
        scrape.write(editor)?;
    }
    Ok(())
}

/// Says what was injected, and who it is.
fn mark(
    editor: &mut Editor,
    pod: &Pod<'_>,
    options: &Options,
    config: &InjectorConfig,
) -> Result<(), json_patch::PatchError> {
    editor.set(&["metadata", "labels"], labels::PROXIED, json!("true"))?;
    let revision = (labels::REVISION, Some(config.revision.to_string()));
    let canonical = [
        revision,
        (labels::CANONICAL_NAME, identity::canonical_name(pod)),
        (
            labels::CANONICAL_REVISION,
            Some(identity::canonical_revision(pod.meta)),
        ),
    ];
    // What the pod says itself stays.
    for (name, value) in canonical {
        let present = pod
            .meta
            .labels
            .as_ref()
            .is_some_and(|all| all.get(name).is_some_and(|value| !value.is_empty()));
        if let (Some(value), false) = (value, present) {
            editor.set(&["metadata", "labels"], name, json!(value))?;
        }
    }
    editor.set(
        &["metadata", "annotations"],
        annotations::STATUS,
        json!(status(options, config)),
    )
}

/// What was injected, so that it can be recognised, inspected and taken out again.
fn status(options: &Options, config: &InjectorConfig) -> String {
    let (init_containers, containers): (&[&str], &[&str]) = if options.native_sidecar {
        (&[names::CAPTURE, names::PROXY], &[])
    } else {
        (&[names::CAPTURE], &[names::PROXY])
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": config.revision.as_str(),
        "image": config.image,
        "initContainers": init_containers,
        "containers": containers,
        "volumes": [names::TOKEN_VOLUME, names::STATE_VOLUME],
    })
    .to_string()
}

#[cfg(test)]
mod tests;
